//! `peft check --fix`: what is written computes the same and is taken.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use peft_runtime::adapter::AdapterMethod;
use peft_runtime::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{changed, tensors};
use crate::fixture::{Model, assert_same, distance, error_of, lora, output_of, text};

/// Repairs an adapter and returns the folder that was written.
fn fixed(adapter: &Path, program: &str, base: Option<&Path>) -> (TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("fixed");
    let mut arguments = vec!["check", text(adapter), "--for", program, "--fix", text(&output)];
    if let Some(base) = base {
        arguments.extend(["--base", text(base)]);
    }
    let printed = output_of(&arguments);
    assert!(printed.contains("checked again: yes"), "{printed}");
    (folder, printed)
}

/// What a model computes with the adapter in this folder merged.
fn merged(model: &Model, adapter: &Path) -> BTreeMap<String, Tensor> {
    let mut model = model.clone();
    model.load_adapter(adapter, "default").unwrap();
    model.merge_and_unload(&MergeOptions::active()).unwrap();
    model.base_state_dict()
}

#[test]
fn a_repaired_adapter_computes_the_same() {
    let adalora =
        AdaLoraConfig::new(3, 2, 10).with_alpha(4.0).with_init(false).with_targets(["q_proj", "k_proj"]);
    let patterns = lora()
        .with_rslora(true)
        .with_rank_pattern([("layers.1.self_attn.q_proj", 5)])
        .with_alpha_pattern([("o_proj", 1.0)]);
    let all: [(Box<dyn AdapterMethod>, &[&str]); 6] = [
        (Box::new(patterns), &["vllm", "llama.cpp"]),
        (Box::new(lora().with_rank_pattern([("o_proj", 3)])), &["vllm"]),
        (Box::new(adalora), &["vllm", "mistralrs", "llama.cpp"]),
        (Box::new(lora().with_init(LoraInit::Pissa)), &["vllm", "mistralrs", "llama.cpp"]),
        (Box::new(lora().with_init(LoraInit::Olora).with_rslora(true)), &["mistralrs"]),
        (Box::new(lora()), &["peft", "vllm"]),
    ];
    for (config, programs) in all {
        let mut model = Model::random(DType::F32);
        let (fresh, base) = (model.clone(), model.save());
        let adapter = model.adapter(config.as_ref(), "default");
        let expected = merged(&fresh, adapter.path());
        for program in programs {
            let (folder, _) = fixed(adapter.path(), program, Some(base.path()));
            assert_same(&merged(&fresh, &folder.path().join("fixed")), &expected, 1e-5);
        }
    }
}

/// How a key of PEFT's is named by another program.
type Naming = fn(&str) -> String;

#[test]
fn keys_are_rewritten_as_peft_writes_them() {
    let mut model = Model::random(DType::F32);
    let fresh = model.clone();
    let adapter = model.adapter(&lora(), "default");
    let expected = tensors(adapter.path());
    let namings: [(&str, Naming); 4] = [
        ("peft", |key| key.replace("base_model.model.", "")),
        ("peft", |key| format!("base_model.model.{key}")),
        ("peft", |key| key.replace("base_model.model.", "base_model.model._orig_mod.")),
        ("vllm", |key| key.replace(".weight", ".chat.weight")),
    ];
    for (program, name) in namings {
        let other = changed(adapter.path(), &json!({}), |tensors| {
            tensors.into_iter().map(|(key, tensor)| (name(&key), tensor)).collect()
        });
        let (folder, _) = fixed(other.path(), program, None);
        let output = folder.path().join("fixed");
        assert_same(&tensors(&output), &expected, 0.0);
        assert_same(&merged(&fresh, &output), &merged(&fresh, adapter.path()), 0.0);
    }
}

#[test]
fn paths_become_those_of_the_base_model() {
    let mut model = Model::random(DType::F32);
    let folder = tempfile::tempdir().unwrap();
    let named: BTreeMap<String, Tensor> = model
        .base_state_dict()
        .into_iter()
        .map(|(name, tensor)| (format!("language_model.{name}"), tensor))
        .collect();
    std::fs::write(folder.path().join("model.safetensors"), safetensors::serialize(&named, None).unwrap())
        .unwrap();
    for config in [
        lora(),
        lora().with_targets(TargetModules::Regex(r"model\.layers\.\d\.self_attn\.(q|o)_proj".to_owned())),
    ] {
        let adapter = model.adapter(&config, "default");
        let (written, printed) = fixed(adapter.path(), "peft", Some(folder.path()));
        assert!(printed.contains("paths of modules"), "{printed}");
        let (output, found) = (folder.path().join("merged"), written.path().join("fixed"));
        output_of(&[
            "merge",
            "--base",
            text(folder.path()),
            "--adapter",
            text(&found),
            "-o",
            text(&output),
            "--check",
        ]);
        let merged = peft_runtime::ModelWeights::open(&output).unwrap();
        for (name, expected) in model.merged(&["default"]) {
            let found = merged.tensor(&format!("language_model.{name}"), &Device::Cpu).unwrap();
            assert!(distance(&found, &expected) < 1e-6, "{name}");
        }
        std::fs::remove_dir_all(&output).unwrap();
        model.delete_adapter("default").unwrap();
    }
}

#[test]
fn copies_go_only_where_they_are_the_base_models() {
    let mut model = Model::random(DType::F32);
    let (fresh, base) = (model.clone(), model.save());
    let adapter = model.adapter(&lora().with_modules_to_save(["lm_head"]), "default");
    let output = adapter.path().join("fixed");
    let fix = ["check", text(adapter.path()), "--for", "vllm", "--fix", text(&output)];
    let error = error_of(&fix, 1);
    assert!(error.contains("lm_head") && error.contains("--base"), "{error}");
    let error = error_of(&[&fix[..], &["--base", text(base.path())]].concat(), 1);
    assert!(
        error.contains("lm_head") && error.contains("not what the base model has") && !output.exists(),
        "{error}"
    );
    let own = fresh.base_state_dict();
    let unchanged = changed(adapter.path(), &json!({}), |mut tensors| {
        tensors.insert("base_model.model.lm_head.weight".to_owned(), own["lm_head.weight"].clone());
        tensors
    });
    let (folder, printed) = fixed(unchanged.path(), "vllm", Some(base.path()));
    assert!(printed.contains("without 1 tensor that"), "{printed}");
    assert_same(&merged(&fresh, &folder.path().join("fixed")), &merged(&fresh, unchanged.path()), 0.0);
}

#[test]
fn what_has_no_other_form_is_refused_in_words() {
    let base = Model::random(DType::F32).save();
    let tokens = [("embed_tokens", vec![1])];
    let refused: [(Box<dyn AdapterMethod>, &str); 4] = [
        (Box::new(lora().with_dora(true)), "DoRA"),
        (Box::new(lora().with_trainable_tokens(tokens)), "rows"),
        (Box::new(lora().with_lora_bias(true)), "bias of B"),
        (Box::new(Ia3Config::new().with_targets(["q_proj"]).with_feedforward(Vec::<String>::new())), "IA3"),
    ];
    for (config, words) in refused {
        let adapter = Model::random(DType::F32).adapter(config.as_ref(), "default");
        let output = adapter.path().join("fixed");
        let error = error_of(
            &[
                "check",
                text(adapter.path()),
                "--for",
                "vllm",
                "--fix",
                text(&output),
                "--base",
                text(base.path()),
            ],
            1,
        );
        assert!(error.contains(words) && error.contains("help: ") && !output.exists(), "{error}");
    }
    let adapter = Model::random(DType::F32).adapter(&lora().with_init(LoraInit::Pissa), "default");
    let output = adapter.path().join("fixed");
    let error = error_of(&["check", text(adapter.path()), "--for", "vllm", "--fix", text(&output)], 1);
    assert!(error.contains("pissa") && error.contains("--base"), "{error}");
}

#[test]
fn mlx_gets_a_folder_of_its_own() {
    let mut model = Model::random(DType::F32);
    let (before, base) = (model.base_state_dict(), model.save());
    let config = lora()
        .with_targets(["q_proj", "o_proj", "embed_tokens"])
        .with_rslora(true)
        .with_rank_pattern([("layers.1.self_attn.q_proj", 5)]);
    let adapter = model.adapter(&config, "default");
    let (folder, _) = fixed(adapter.path(), "mlx", Some(base.path()));
    let output = folder.path().join("fixed");
    let text = std::fs::read_to_string(output.join("adapter_config.json")).unwrap();
    let config: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&config["fine_tune_type"], &config["num_layers"]), (&json!("lora"), &json!(-1)));
    let parameters = &config["lora_parameters"];
    assert_eq!(parameters["rank"], json!(5));
    assert_eq!(parameters["keys"], json!(["model.embed_tokens", "self_attn.o_proj", "self_attn.q_proj"]));
    let found = candle_core::safetensors::load(output.join("adapters.safetensors"), &Device::Cpu).unwrap();
    assert_eq!(found.len(), 10);
    let merged = model.merged(&["default"]);
    for (name, weight) in &before {
        let module = name.strip_suffix(".weight").unwrap();
        let Some(a) = found.get(&format!("{module}.lora_a")) else { continue };
        // scale · a · b, [in, out]; that of an embedding is not transposed.
        let update = (a.matmul(&found[&format!("{module}.lora_b")]).unwrap()
            * parameters["scale"].as_f64().unwrap())
        .unwrap();
        let update = if module.ends_with("embed_tokens") { update } else { update.t().unwrap() };
        let expected = (&merged[name] - weight).unwrap();
        assert!(distance(&update, &expected) < 1e-5, "{name}");
    }
}

#[test]
fn what_peft_does_not_load_is_written_as_it_does() {
    let mut model = Model::random(DType::F32);
    let fresh = model.clone();
    let copies = model.adapter(&lora().with_modules_to_save(["lm_head"]), "default");
    let expected = merged(&fresh, copies.path());
    let plain = Model::random(DType::F32).adapter(&lora(), "default");
    let nulls = json!({ "rank_pattern": null, "alpha_pattern": null, "bias": null });
    for name in ["modules_to_save", "modules_to_save.default"] {
        let renamed = changed(copies.path(), &json!({}), |tensors| {
            let rename = |key: String| key.replace("lm_head.weight", &format!("lm_head.{name}.weight"));
            tensors.into_iter().map(|(key, tensor)| (rename(key), tensor)).collect()
        });
        let (folder, printed) = fixed(renamed.path(), "peft", None);
        assert!(printed.contains("keys as PEFT writes them"), "{printed}");
        assert_same(&tensors(&folder.path().join("fixed")), &tensors(copies.path()), 0.0);
        assert_same(&merged(&fresh, &folder.path().join("fixed")), &expected, 0.0);
    }
    let (folder, printed) = fixed(changed(plain.path(), &nulls, |tensors| tensors).path(), "peft", None);
    assert!(printed.contains("without fields that are null"), "{printed}");
    assert_same(&tensors(&folder.path().join("fixed")), &tensors(plain.path()), 0.0);
}

/// The config of an adapter.
fn config(folder: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(folder.join("adapter_config.json")).unwrap()).unwrap()
}

#[test]
fn pruned_adalora_keeps_what_was_pruned() {
    let adalora = AdaLoraConfig::new(3, 2, 10).with_alpha(4.0).with_init(false).with_targets(["q_proj"]);
    let mut model = Model::random(DType::F32);
    let fresh = model.clone();
    let whole = model.adapter(&adalora, "default");
    let prune = |tensors: BTreeMap<String, Tensor>, kept: &[u32], name: &dyn Fn(&str) -> String| {
        let kept = Tensor::new(kept, &Device::Cpu).unwrap();
        let shorter = |(key, tensor): (String, Tensor)| {
            let dim = usize::from(key.contains("lora_B"));
            (name(&key), tensor.index_select(&kept, dim).unwrap())
        };
        tensors.into_iter().map(shorter).collect::<BTreeMap<_, _>>()
    };
    let q = |layer: usize| format!("model.layers.{layer}.self_attn.q_proj.lora_E");
    let pattern = json!({ q(0): [true, false, true], q(1): [true, false, true] });
    let pruned = changed(whole.path(), &json!({ "rank_pattern": pattern }), |tensors| {
        prune(tensors, &[0, 2], &str::to_owned)
    });
    let nested = changed(pruned.path(), &json!({}), |tensors| {
        tensors.into_iter().map(|(key, tensor)| (format!("base_model.model.{key}"), tensor)).collect()
    });
    let (folder, _) = fixed(nested.path(), "peft", None);
    let output = folder.path().join("fixed");
    assert_same(&tensors(&output), &tensors(pruned.path()), 0.0);
    assert_eq!(config(&output)["rank_pattern"], pattern);
    assert_same(&merged(&fresh, &output), &merged(&fresh, pruned.path()), 0.0);
    // A module at the root, and one of which nothing is left.
    for (kept, mask) in [(&[1u32][..], [false, true, false]), (&[][..], [false; 3])] {
        let fields = json!({ "rank_pattern": { "a.lora_E": mask }, "target_modules": ["a"] });
        let short = changed(whole.path(), &fields, |tensors| {
            let first = tensors.into_iter().filter(|(key, _)| key.contains("layers.0.")).collect();
            prune(first, kept, &|key: &str| key.replace("model.layers.0.self_attn.q_proj", "a"))
        });
        let (folder, _) = fixed(short.path(), "peft", None);
        let output = folder.path().join("fixed");
        let filled = |folder: &Path| -> BTreeMap<String, Tensor> {
            tensors(folder).into_iter().filter(|(_, tensor)| tensor.elem_count() > 0).collect()
        };
        assert_same(&filled(&output), &filled(short.path()), 0.0);
        assert_eq!(tensors(&output).len(), 3);
        assert_eq!(config(&output)["rank_pattern"], fields["rank_pattern"]);
    }
}
