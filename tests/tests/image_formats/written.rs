//! Adapters written for other programs: what is read again has every bit.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use peft_runtime::{ImageProgram, PeftConfig, PipelineModel, StoredAdapter};

use crate::fixtures::{Bases, cases, file, values};

type Bits = (DType, Vec<usize>, Vec<u32>);

fn bits(adapter: &StoredAdapter) -> BTreeMap<String, Bits> {
    let of = |(key, tensor): (String, Tensor)| {
        let values = tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap();
        let bits = values.to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect();
        (key, (tensor.dtype(), tensor.dims().to_vec(), bits))
    };
    adapter.tensors(&Device::Cpu).unwrap().into_iter().map(of).collect()
}

fn model_of(base: &str) -> PipelineModel {
    match base {
        "flux" | "flux_fused" => PipelineModel::Transformer,
        "text" => PipelineModel::TextEncoder,
        "text_2" => PipelineModel::TextEncoder2,
        _ => PipelineModel::Unet,
    }
}

/// The scaling of every layer.
fn scalings(adapter: &StoredAdapter) -> Vec<(String, Option<f64>)> {
    adapter.layers().unwrap().into_iter().map(|layer| (layer.path.to_string(), layer.scaling)).collect()
}

#[test]
fn what_a_format_can_hold_comes_back_with_every_bit() {
    let bases = Bases::read();
    let folder = tempfile::tempdir().unwrap();
    let mut written = [0, 0];
    for case in cases() {
        let base = bases.base(&case.base);
        let adapter = StoredAdapter::open_for(file(&case.file), &base).unwrap();
        for (number, program) in [ImageProgram::Kohya, ImageProgram::Diffusers].into_iter().enumerate() {
            let path = folder.path().join(format!("{}-{number}.safetensors", case.name));
            if adapter.save_for(&path, program, model_of(&case.base)).is_err() {
                assert!(!path.exists());
                continue;
            }
            written[number] += 1;
            let read = StoredAdapter::open_for(&path, &base).unwrap();
            assert_eq!(bits(&read), bits(&adapter), "{}", case.name);
            assert_eq!(scalings(&read), scalings(&adapter), "{}", case.name);
        }
    }
    assert!(written[0] > 25 && written[1] > 15, "{written:?}");
}

/// An adapter of LoRA on layers of FLUX, each with its outputs, inputs, rank and alpha.
fn of_flux(layers: &[(&str, [usize; 3], f64)]) -> StoredAdapter {
    let mut tensors = BTreeMap::new();
    for (path, [outputs, inputs, rank], _) in layers {
        let factor = |end: &str, rows: usize, columns: usize| {
            let values = values(&format!("{path} {end}"), rows * columns);
            let tensor = Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap();
            (format!("{path}.{end}.weight"), tensor.to_dtype(DType::F32).unwrap())
        };
        tensors.extend([factor("lora_A", *rank, *inputs), factor("lora_B", *outputs, *rank)]);
    }
    let pattern = |path: &str| format!("^{}", path.replace('.', r"\."));
    let paths: Vec<&str> = layers.iter().map(|(path, ..)| *path).collect();
    let ranks: BTreeMap<String, usize> =
        layers.iter().map(|(path, [.., rank], _)| (pattern(path), *rank)).collect();
    let alphas: BTreeMap<String, f64> =
        layers.iter().map(|(path, _, alpha)| (pattern(path), *alpha)).collect();
    let config = serde_json::json!({
        "peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": paths,
        "rank_pattern": ranks, "alpha_pattern": alphas,
    });
    let config = PeftConfig::from_json(&config.to_string()).unwrap();
    StoredAdapter::new("flux", config, tensors).unwrap()
}

/// Writes an adapter on layers of FLUX for kohya's programs, and returns the names of the modules in the file.
fn for_kohya(adapter: &StoredAdapter, path: &Path) -> peft_runtime::Result<BTreeSet<String>> {
    adapter.save_for(path, ImageProgram::Kohya, PipelineModel::Transformer)?;
    let tensors = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    Ok(tensors.keys().filter_map(|key| Some(key.split_once('.')?.0.to_owned())).collect())
}

#[test]
fn flux_has_the_names_of_its_own_program_in_files_of_kohya() {
    let (double, single) = ("transformer_blocks.0", "single_transformer_blocks.1");
    let names = [
        (format!("{double}.attn.to_q"), [8, 8, 2], 3.0),
        (format!("{double}.attn.to_k"), [8, 8, 2], 3.0),
        (format!("{double}.attn.to_v"), [8, 8, 2], 3.0),
        // Twice the scaling of its neighbour, and a part missing.
        (format!("{double}.attn.add_q_proj"), [8, 8, 2], 4.0),
        (format!("{double}.attn.add_v_proj"), [8, 8, 1], 4.0),
        (format!("{double}.ff.net.0.proj"), [32, 8, 2], 1.0),
        (format!("{single}.attn.to_v"), [8, 8, 2], 1.0),
        (format!("{single}.proj_mlp"), [32, 8, 3], 1.5),
        (format!("{single}.proj_out"), [8, 40, 2], 1.0),
        ("norm_out.linear".to_owned(), [16, 8, 2], 1.0),
        ("context_embedder".to_owned(), [8, 6, 2], 1.0),
    ];
    let layers: Vec<(&str, [usize; 3], f64)> =
        names.iter().map(|(path, sizes, alpha)| (path.as_str(), *sizes, *alpha)).collect();
    let adapter = of_flux(&layers);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("flux.safetensors");
    let modules = for_kohya(&adapter, &file).unwrap();
    let expected = [
        "double_blocks_0_img_attn_qkv",
        "double_blocks_0_img_mlp_0",
        "double_blocks_0_txt_attn_qkv",
        "final_layer_adaLN_modulation_1",
        "single_blocks_1_linear1",
        "single_blocks_1_linear2",
        "txt_in",
    ];
    assert_eq!(modules, expected.map(|name| format!("lora_unet_{name}")).into_iter().collect());
    // Read again, every layer has its own factors and scaling.
    let bases = Bases::read();
    let read = StoredAdapter::open_for(&file, &bases.base("flux")).unwrap();
    let (mut own, mut back) = (scalings(&adapter), scalings(&read));
    own.sort_by(|one, other| one.0.cmp(&other.0));
    back.sort_by(|one, other| one.0.cmp(&other.0));
    assert_eq!(own.len(), back.len(), "{back:?}");
    let (before, after) = (bits(&adapter), bits(&read));
    assert!(before.keys().eq(after.keys()));
    for (key, value) in before.iter().filter(|(key, _)| !key.contains("add_v_proj")) {
        assert_eq!(value, &after[key], "{key}");
    }
    // The part with another scaling has it in its B, exactly.
    let differing: Vec<_> = own.iter().zip(&back).filter(|(one, other)| one != other).collect();
    assert!(differing.iter().all(|(one, _)| one.0.ends_with("add_v_proj")), "{differing:?}");
    // FLUX's own program has modules of these names.
    let fused = StoredAdapter::open_for(&file, &bases.base("flux_fused")).unwrap();
    assert_eq!(fused.layers().unwrap().len(), expected.len());
}

#[test]
fn parts_of_flux_that_one_module_cannot_hold_exactly_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("flux.safetensors");
    let refused =
        |layers: &[(&str, [usize; 3], f64)]| for_kohya(&of_flux(layers), &file).unwrap_err().chain();
    let single = "single_transformer_blocks.0.proj_mlp";
    let (query, key) = ("transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.to_k");
    let error = refused(&[(single, [32, 8, 2], 1.0), (query, [8, 8, 2], 1.0), (key, [8, 8, 2], 0.3)]);
    assert!(error.contains(key) && error.contains("one alpha cannot say both exactly"), "{error}");
    let error = refused(&[(single, [32, 8, 2], 1.0), ("transformer_blocks.0.attn.norm_x", [8, 8, 2], 1.0)]);
    assert!(error.contains("FLUX's own program has no name for it"), "{error}");
    let error = refused(&[(query, [8, 8, 2], 1.0)]);
    assert!(error.contains("those of FLUX and of SD3"), "{error}");
    assert!(!file.exists());
}

#[test]
fn what_a_format_cannot_hold_is_refused_by_name() {
    let bases = Bases::read();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter.safetensors");
    let refusal = |name: &str, program: ImageProgram| {
        let adapter = StoredAdapter::open_for(file(name), &bases.base("sdxl")).unwrap();
        format!("{:?}", adapter.save_for(&path, program, PipelineModel::Unet).unwrap_err())
    };
    let error = refusal("lycoris_norms.safetensors", ImageProgram::Kohya);
    assert!(
        error.contains("`conv_norm_out` cannot be written: it is a parameter of the base model"),
        "{error}"
    );
    let error = refusal("lycoris_loha.safetensors", ImageProgram::Diffusers);
    assert!(
        error.contains("hada_w1_a` cannot be written: files of diffusers have nothing for it"),
        "{error}"
    );
    assert!(!path.exists());
}
