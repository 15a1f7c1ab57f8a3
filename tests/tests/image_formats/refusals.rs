//! What is refused, and in which words.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use peft_runtime::{BaseWeights, ModelWeights, StoredAdapter};

use crate::fixtures::{Bases, file};

fn zeros(shape: &[usize]) -> Tensor {
    Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap()
}

/// The error about a file with tensors of these names and shapes.
fn refusal(base: &str, tensors: &[(&str, &[usize])]) -> String {
    let bases = Bases::read();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("adapter.safetensors");
    let tensors: Vec<(&str, Tensor)> = tensors.iter().map(|(name, shape)| (*name, zeros(shape))).collect();
    safetensors::serialize_to_file(tensors, None, &file).unwrap();
    format!("{:?}", StoredAdapter::open_for(&file, &bases.base(base)).unwrap_err())
}

/// Both factors under a name of kohya's.
fn factors(names: &BTreeMap<String, Vec<usize>>) -> Vec<(&str, &[usize])> {
    names.iter().map(|(name, shape)| (name.as_str(), shape.as_slice())).collect()
}

fn kohya(module: &str, outputs: usize, inputs: usize) -> BTreeMap<String, Vec<usize>> {
    BTreeMap::from([
        (format!("{module}.lora_down.weight"), vec![2, inputs]),
        (format!("{module}.lora_up.weight"), vec![outputs, 2]),
    ])
}

#[test]
fn a_name_that_belongs_nowhere_is_refused_with_the_nearest() {
    let mut names = kohya("lora_unet_conv_in", 4, 36);
    names.extend(kohya("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_qq", 8, 8));
    let error = refusal("sd15", &factors(&names));
    assert!(error.contains("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_qq"), "{error}");
    assert!(error.contains("`mid_block_attentions_0_transformer_blocks_0_attn1_to_q`"), "{error}");
}

#[test]
fn a_file_whose_names_are_no_modules_needs_the_base_model() {
    let error = StoredAdapter::open(file("xlabs_flux.safetensors")).unwrap_err().chain();
    assert!(error.contains("xlabs") && error.contains("open_for"), "{error}");
}

#[test]
fn a_file_for_another_model_is_refused() {
    let error = refusal("text", &factors(&kohya("lora_unet_conv_in", 4, 36)));
    assert!(error.contains("nothing in it is for this base model: it has `lora_unet`"), "{error}");
    let error = refusal("sd15", &factors(&kohya("lora_te_text_model_encoder_layers_0_mlp_fc1", 16, 8)));
    assert!(error.contains("nothing in it is for this base model: it has `lora_te`"), "{error}");
}

#[test]
fn shapes_that_do_not_fit_are_named_with_both_sides() {
    let error = refusal("sd15", &factors(&kohya("lora_unet_conv_in", 4, 4)));
    assert!(
        error.contains("makes an update of [4, 4], which does not fit the weight of `conv_in` [4, 4, 3, 3]"),
        "{error}"
    );
    let error = refusal("flux", &factors(&kohya("lora_unet_double_blocks_0_img_attn_qkv", 25, 8)));
    assert!(
        error.contains(
            "makes an update with 25 outputs, and the base model has `transformer_blocks.0.attn.to_q`"
        ),
        "{error}"
    );
}

#[test]
fn half_an_update_is_refused() {
    let error = refusal("sd15", &[("lora_unet_conv_in.lora_down.weight", &[2, 4, 3, 3])]);
    assert!(error.contains("`lora_unet_conv_in.lora_down.weight` has no `lora_up` next to it"), "{error}");
    let error = refusal("sd15", &[("lora_unet_conv_in.alpha", &[1])]);
    assert!(error.contains("`lora_unet_conv_in.alpha` has no factors next to it"), "{error}");
    let error = refusal(
        "sd15",
        &[("lora_unet_conv_in.hada_w1_a", &[4, 2]), ("lora_unet_conv_in.hada_w1_b", &[2, 36])],
    );
    assert!(error.contains("has no `hada_w2_a` next to it"), "{error}");
}

#[test]
fn tensors_of_methods_that_are_not_read_are_refused_by_the_methods_names() {
    let mut names = kohya("lora_unet_conv_out", 4, 36);
    names.insert("lora_unet_conv_in.oft_blocks".to_owned(), vec![2, 2, 2]);
    let error = refusal("sd15", &factors(&names));
    assert!(
        error.contains("`lora_unet_conv_in.oft_blocks` is a tensor of OFT, which is not supported"),
        "{error}"
    );
    for ia3 in ["lycoris_conv_in", "lora_unet_conv_in"] {
        let names = [(format!("{ia3}.on_input"), vec![]), (format!("{ia3}.weight"), vec![4])];
        let error = refusal("sd15", &factors(&names.into_iter().collect()));
        assert!(error.contains("on_input` is a tensor of LyCORIS's IA3, which is not supported"), "{error}");
    }
    let mut names = kohya("lora_unet_conv_out", 4, 36);
    names.insert("emb_params".to_owned(), vec![2, 2]);
    let error = refusal("sd15", &factors(&names));
    assert!(error.contains("`emb_params` is no part of an adapter that is known"), "{error}");
}

#[test]
fn a_file_of_norms_only_is_refused_as_that() {
    let norm = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_norm1";
    let (weight, bias) = (format!("{norm}.w_norm"), format!("{norm}.b_norm"));
    let error = refusal("sd15", &[(&weight, &[4]), (&bias, &[4])]);
    assert!(error.contains("w_norm` is added to a norm or a bias, and the file has nothing else"), "{error}");
}

#[test]
fn a_language_models_adapter_without_its_config_is_not_taken_for_one_of_diffusers() {
    let refused = |module: &str, model_type: Option<&str>| {
        let folder = tempfile::tempdir().unwrap();
        let names = [("lora_A", vec![2, 4]), ("lora_B", vec![4, 2])];
        let tensors: Vec<(String, Tensor)> = names
            .into_iter()
            .map(|(end, shape)| (format!("transformer.{module}.{end}.weight"), zeros(&shape)))
            .collect();
        let file = folder.path().join("adapter.safetensors");
        safetensors::serialize_to_file(tensors, None, &file).unwrap();
        let Some(model_type) = model_type else {
            return StoredAdapter::open(&file).map(|adapter| adapter.format());
        };
        let base = folder.path().join("base");
        std::fs::create_dir(&base).unwrap();
        std::fs::write(base.join("config.json"), format!(r#"{{"model_type": "{model_type}"}}"#)).unwrap();
        let weight = [(format!("transformer.{module}.weight"), zeros(&[4, 4]))];
        safetensors::serialize_to_file(weight, None, &base.join("model.safetensors")).unwrap();
        let base = BaseWeights::new(ModelWeights::open(&base).unwrap()).unwrap();
        StoredAdapter::open_for(&file, &base).map(|adapter| adapter.format())
    };
    assert_eq!(refused("layers.0.attn.to_q", None).unwrap(), "diffusers");
    for module in ["h.0.mlp.c_fc", "layer.0.ffn.lin1", "blocks.0.attn.Wqkv"] {
        let error = refused(module, None).unwrap_err().chain();
        assert!(error.contains("named as in no format that is known"), "{error}");
    }
    let error = refused("blocks.0.ffn.up_proj", Some("mpt")).unwrap_err().chain();
    assert!(error.contains("`mpt` of transformers") && error.contains("adapter_config.json"), "{error}");
}

#[test]
fn two_names_of_one_tensor_and_two_updates_of_one_module_are_refused() {
    let old = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight";
    let new = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight";
    let error = refusal("sd15", &[(old, &[2, 8]), (new, &[2, 8])]);
    assert!(error.contains(old) && error.contains(new) && error.contains("under two names"), "{error}");
    let mut names = kohya("lora_unet_time_embedding_linear_1", 16, 4);
    names.extend(kohya("lora_unet_time_embed_0", 16, 4));
    let error = refusal("sd15", &factors(&names));
    assert!(error.contains("is for outputs that `lora_unet_time_embed"), "{error}");
}

#[test]
fn without_the_base_model_flattened_names_are_refused() {
    let error = format!("{:?}", StoredAdapter::open(file("kohya_sd15.safetensors")).unwrap_err());
    assert!(error.contains("open_for"), "{error}");
    let error = format!("{:?}", StoredAdapter::open(file("diffusers_old.safetensors")).unwrap_err());
    assert!(error.contains("`text_encoder`, `unet`") || error.contains("`unet`, `text_encoder`"), "{error}");
    let adapter = StoredAdapter::open(file("diffusers_unet.safetensors")).unwrap();
    assert_eq!(adapter.format(), "diffusers");
    assert!(!adapter.layers().unwrap().is_empty());
}

#[test]
fn a_name_that_two_modules_flatten_to_is_refused_with_both() {
    let folder = tempfile::tempdir().unwrap();
    let weights = ["down_blocks.0.a_b.weight", "down_blocks.0.a.b.weight"].map(|name| (name, zeros(&[4, 4])));
    let base = folder.path().join("base.safetensors");
    safetensors::serialize_to_file(weights, None, &base).unwrap();
    let path = folder.path().join("adapter.safetensors");
    let names = kohya("lora_unet_down_blocks_0_a_b", 4, 4);
    let tensors: Vec<(&str, Tensor)> =
        factors(&names).into_iter().map(|(name, shape)| (name, zeros(shape))).collect();
    safetensors::serialize_to_file(tensors, None, &path).unwrap();
    let base = BaseWeights::new(ModelWeights::open(&base).unwrap()).unwrap();
    let error = format!("{:?}", StoredAdapter::open_for(&path, &base).unwrap_err());
    assert!(error.contains("`down_blocks.0.a.b` or `down_blocks.0.a_b`"), "{error}");
}

#[test]
fn two_text_encoders_that_both_fit_are_not_guessed() {
    let bases = Bases::read();
    let folder = tempfile::tempdir().unwrap();
    let mut names = kohya("lora_te1_text_model_encoder_layers_0_mlp_fc1", 16, 8);
    names.extend(kohya("lora_te2_text_model_encoder_layers_0_mlp_fc1", 16, 8));
    let path = folder.path().join("adapter.safetensors");
    let tensors: Vec<(&str, Tensor)> =
        factors(&names).into_iter().map(|(name, shape)| (name, zeros(shape))).collect();
    safetensors::serialize_to_file(tensors, None, &path).unwrap();
    let weights = bases.folder("text").join("model.safetensors");
    let open = |name: &str| {
        let base = folder.path().join(name);
        std::fs::create_dir(&base).unwrap();
        std::fs::copy(&weights, base.join("model.safetensors")).unwrap();
        StoredAdapter::open_for(&path, &BaseWeights::new(ModelWeights::open(&base).unwrap()).unwrap())
    };
    let error = format!("{:?}", open("encoder").unwrap_err());
    assert!(error.contains("has parts for several text encoders (lora_te1, lora_te2)"), "{error}");
    let second = open("text_encoder_2").unwrap();
    assert!(second.left_out().iter().all(|key| key.starts_with("lora_te1_")), "{:?}", second.left_out());
    assert_eq!(second.left_out().len(), 2);
}
