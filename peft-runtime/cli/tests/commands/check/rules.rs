//! One case for each rule: what PEFT, vLLM, mistral.rs and llama.cpp do with what is in an adapter.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use peft_runtime::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::adapters::{configured, made, with_keys, with_more};
use super::mismatches::mismatches;
use super::{WEIGHTS, answers, changed, report, status};
use crate::fixture::{lora, output_of, random, run, text};

/// The features of methods and their settings, with the answers of PEFT, vLLM, mistral.rs and llama.cpp.
fn settings() -> Vec<(&'static str, TempDir, &'static str)> {
    let adalora = AdaLoraConfig::new(3, 2, 10).with_init(false).with_targets(["q_proj"]);
    let ia3 = Ia3Config::new().with_targets(["q_proj"]).with_feedforward(Vec::<String>::new());
    let tokens = lora().with_trainable_tokens([("embed_tokens", vec![1, 3])]);
    vec![
        ("lora", made(&lora()), "yyyy"),
        ("ada-lora", made(&adalora), "yrrr"),
        ("ia3", made(&ia3), "yrrr"),
        ("loha", made(&LohaConfig::new(2, 2.0).with_targets(["q_proj"])), "yrrr"),
        ("lokr", made(&LokrConfig::new(2, 2.0).with_targets(["q_proj"])), "yrrr"),
        ("other-method", configured(json!({ "peft_type": "VERA" })), "yrrr"),
        ("unknown-method", configured(json!({ "peft_type": "NEWEST" })), "rrrr"),
        ("dora", made(&lora().with_dora(true)), "yrrr"),
        ("rs-lora", made(&lora().with_rslora(true)), "yyyi"),
        ("lora-bias", made(&lora().with_lora_bias(true)), "yrrr"),
        (
            "base-bias",
            with_more(json!({ "bias": "all" }), &[("model.layers.0.self_attn.q_proj.base_layer.bias", &[8])]),
            "yrrr",
        ),
        ("full-copies", made(&lora().with_modules_to_save(["lm_head"])), "yrrr"),
        (
            "norm-copies",
            with_more(json!({ "modules_to_save": ["norm"] }), &[("model.norm.weight", &[8])]),
            "yrri",
        ),
        ("trainable-tokens", made(&tokens), "yrrr"),
        ("mixed-ranks", made(&lora().with_rank_pattern([("o_proj", 3)])), "yiyy"),
        ("alpha-pattern", made(&lora().with_alpha_pattern([("o_proj", 1.0)])), "yiyi"),
        ("init-found-again", made(&lora().with_init(LoraInit::Pissa)), "yiri"),
        ("init-found-again", made(&lora().with_init(LoraInit::Olora)), "yiri"),
        ("init-found-again", configured(json!({ "init_lora_weights": "loftq" })), "yiri"),
        ("init-randomised", configured(json!({ "init_lora_weights": "pissa_niter_4" })), "iiri"),
        ("init-corda", configured(json!({ "init_lora_weights": "corda" })), "riri"),
        ("init-lora-ga", configured(json!({ "init_lora_weights": "lora_ga" })), "iiri"),
        ("layer-replication", configured(json!({ "layer_replication": [[0, 2], [1, 2]] })), "yiri"),
        ("alora", configured(json!({ "alora_invocation_tokens": [1, 2] })), "yiry"),
        ("qalora", configured(json!({ "use_qalora": true })), "yrrr"),
        ("fan-in-fan-out", configured(json!({ "fan_in_fan_out": true })), "yyyi"),
        ("weight-tying", configured(json!({ "ensure_weight_tying": true })), "yiri"),
        ("other-variant", configured(json!({ "kasa_config": { "x": 1 } })), "yiri"),
    ]
}

/// The features of tensors and their names.
fn contents() -> Vec<(&'static str, TempDir, &'static str)> {
    let conv: [(&str, &[usize]); 2] =
        [("conv.lora_A.weight", &[2, 4, 3, 3]), ("conv.lora_B.weight", &[5, 2, 1, 1])];
    let experts: [(&str, &[usize]); 2] =
        [("mlp.experts.lora_A.weight", &[4, 8]), ("mlp.experts.lora_B.weight", &[8, 4])];
    let named = |name: &'static str| with_keys(move |key| key.replace(".weight", &format!(".{name}.weight")));
    let bits = |tensors: BTreeMap<String, Tensor>| {
        tensors.into_iter().map(|(key, tensor)| (key, tensor.to_dtype(DType::U8).unwrap())).collect()
    };
    vec![
        ("embedding", made(&lora().with_targets(["embed_tokens"])), "yyry"),
        ("head", made(&lora().with_targets(["lm_head"])), "yyry"),
        ("saved-embeddings", with_more(json!({}), &[("model.embed_tokens.weight", &[12, 8])]), "yrrr"),
        (
            "saved-weights",
            with_more(json!({}), &[("model.embed_tokens.base_layer.weight", &[11, 8])]),
            "yiri",
        ),
        ("convolution", with_more(json!({}), &conv), "yrrr"),
        ("experts", with_more(json!({ "target_parameters": ["mlp.experts.down_proj"] }), &experts), "yyyr"),
        ("bare-parameters", configured(json!({ "target_parameters": ["block.weight"] })), "yrrr"),
        ("no-prefix", with_keys(|key| key.replace("base_model.model.", "")), "iyyy"),
        ("nested-prefix", with_keys(|key| format!("base_model.model.{key}")), "iyry"),
        (
            "wrapper-prefix",
            with_keys(|key| key.replace("base_model.model.", "base_model.model._orig_mod.")),
            "iirr",
        ),
        (
            "wrapper-prefix",
            with_keys(|key| key.replace("base_model.model.", "base_model.model.module.")),
            "iirr",
        ),
        ("adapter-name", named("default"), "yryr"),
        ("other-adapter-name", named("chat"), "iryr"),
        ("not-float", changed(made(&lora()).path(), &json!({}), bits), "yrrr"),
        ("strangers", with_more(json!({}), &[("model.layers.0.something", &[2])]), "irrr"),
        ("half-pairs", with_more(json!({}), &[("model.x_proj.lora_A.weight", &[2, 8])]), "irrr"),
        ("inconsistent", configured(json!({ "r": 7 })), "riri"),
    ]
}

#[test]
fn each_program_treats_each_feature_as_its_sources_say() {
    let golden: Value = serde_json::from_str(include_str!("peft_rules.json")).unwrap();
    let mut compared = BTreeSet::new();
    for (feature, adapter, expected) in settings().into_iter().chain(contents()).chain(mismatches()) {
        let found = answers(adapter.path(), feature);
        assert_eq!(found[..4], *expected, "{feature}: peft, vllm, mistralrs, llama.cpp");
        if let Some(answer) = golden["answers"][feature].as_str() {
            let letters = [("taken", 'y'), ("ignored", 'i'), ("refused", 'r')];
            let letter = letters.iter().find(|(name, _)| *name == answer).map(|(_, letter)| *letter);
            assert_eq!(expected.chars().next(), letter, "{feature}: what PEFT did");
            compared.insert(feature);
        }
        // mlx-lm opens no folder of PEFT's.
        assert_eq!(answers(adapter.path(), "peft-folder"), "yyyyr", "{feature}");
    }
    assert_eq!(compared.len(), golden["answers"].as_object().unwrap().len());
}

#[test]
fn the_status_says_whether_a_program_uses_all_of_an_adapter() {
    let (plain, dora) = (made(&lora()), made(&lora().with_dora(true)));
    let stabilised = made(&lora().with_rslora(true));
    for (program, expected) in [
        ("peft", [0, 0, 0]),
        ("vllm", [0, 1, 0]),
        ("mistralrs", [0, 1, 0]),
        ("llama.cpp", [0, 1, 1]),
        ("mlx", [1, 1, 1]),
    ] {
        let found =
            [&plain, &dora, &stabilised].map(|adapter| status(&[text(adapter.path()), "--for", program]));
        assert_eq!(found, expected, "{program}");
    }
    assert_eq!(status(&[text(dora.path())]), 0, "one program takes it");
    let unknown = configured(json!({ "peft_type": "NEWEST" }));
    assert_eq!(status(&[text(unknown.path())]), 1);
    assert_eq!(status(&["no/such/adapter"]), 1);
    assert_eq!(status(&[text(plain.path()), "--for", "ollama"]), 2);
}

#[test]
fn all_programs_have_a_line_each_and_one_has_its_reasons() {
    let adapter = made(&lora().with_rslora(true));
    let printed = output_of(&["check", text(adapter.path())]);
    assert_eq!(printed.lines().count(), 5, "{printed}");
    assert!(printed.contains("peft 0.21.2") && printed.contains("uses all 8 tensors"), "{printed}");
    let output = run(&["check", text(adapter.path()), "--for", "llama.cpp"]);
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(
        printed.contains("ignored: rank-stabilised") && printed.contains("convert_lora_to_gguf.py"),
        "{printed}"
    );
    let report = report(&[text(with_more(json!({}), &[("x", &[1])]).path()), "--for", "peft"]);
    assert_eq!(report["programs"][0]["ignored"][0]["tensors"], json!(["base_model.model.x"]), "{report}");
}

#[test]
fn ranks_are_compared_with_what_the_program_is_started_with() {
    let adapter = |rank: usize| {
        let factors = |tensors: BTreeMap<String, Tensor>| {
            let wide = |(key, tensor): (String, Tensor)| {
                let shape = if key.contains("lora_A") {
                    vec![rank, tensor.dims()[1]]
                } else {
                    vec![tensor.dims()[0], rank]
                };
                (key, Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap())
            };
            tensors.into_iter().map(wide).collect()
        };
        changed(made(&lora()).path(), &json!({ "r": rank }), factors)
    };
    let ask = |rank: usize, program: &str, more: &[&str]| {
        let adapter = adapter(rank);
        status(&[&[text(adapter.path()), "--for", program], more].concat())
    };
    assert_eq!(
        [ask(16, "vllm", &[]), ask(17, "vllm", &[]), ask(17, "vllm", &["--max-rank", "32"])],
        [0, 1, 0]
    );
    assert_eq!([ask(513, "vllm", &["--max-rank", "1024"]), ask(513, "peft", &[])], [1, 0]);
    assert_eq!(
        [
            ask(256, "mistralrs", &[]),
            ask(257, "mistralrs", &[]),
            ask(257, "mistralrs", &["--max-rank", "300"])
        ],
        [0, 1, 0]
    );
    let output = run(&["check", text(adapter(64).path()), "--for", "vllm"]);
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(printed.contains("--max-lora-rank 64"), "{printed}");
}

#[test]
fn files_of_other_names_are_told_apart() {
    let adapter = made(&lora());
    let renamed = adapter.path().join("best.safetensors");
    std::fs::copy(adapter.path().join(WEIGHTS), &renamed).unwrap();
    assert_eq!(answers(&renamed, "other-file-name"), "rrrrr");
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("style.safetensors");
    std::fs::copy(adapter.path().join(WEIGHTS), &image).unwrap();
    assert_eq!(answers(&image, "image-file"), "rrrrr");
    let mlx = mlx_folder(json!({ "num_layers": 2, "lora_parameters": { "rank": 2, "scale": 20.0 } }), 2);
    assert_eq!(answers(mlx.path(), "mlx"), "rrrry");
    assert_eq!(status(&[text(mlx.path()), "--for", "mlx"]), 0);
    let other_rank =
        mlx_folder(json!({ "num_layers": 2, "lora_parameters": { "rank": 4, "scale": 20.0 } }), 2);
    assert_eq!(status(&[text(other_rank.path()), "--for", "mlx"]), 1);
    assert_eq!(status(&[text(mlx_folder(json!({}), 2).path()), "--for", "mlx"]), 1);
}

fn mlx_folder(config: Value, rank: usize) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let tensors: BTreeMap<String, Tensor> = [
        ("model.layers.0.self_attn.q_proj.lora_a".to_owned(), random(&[8, rank])),
        ("model.layers.0.self_attn.q_proj.lora_b".to_owned(), random(&[rank, 8])),
    ]
    .into();
    write(folder.path(), "adapters.safetensors", &safetensors::serialize(&tensors, None).unwrap());
    write(folder.path(), "adapter_config.json", config.to_string().as_bytes());
    folder
}

fn write(folder: &Path, name: &str, bytes: &[u8]) {
    std::fs::write(folder.join(name), bytes).unwrap();
}
