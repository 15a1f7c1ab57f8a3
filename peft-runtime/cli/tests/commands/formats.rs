//! Adapters of other programs, in every command.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use peft_runtime::ModelWeights;
use peft_runtime::prelude::*;
use serde_json::{Value, json};

use crate::fixture::{Model, assert_same, error_of, json_of, lora, output_of, text};

/// A file or folder that the original tools wrote.
fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(path)
}

#[test]
fn every_command_takes_an_adapter_of_another_program() {
    let (base, adapter) = (fixture("mlx/base"), fixture("mlx/lora"));
    let folder = tempfile::tempdir().unwrap();
    let shown = output_of(&["inspect", text(&adapter)]);
    assert!(shown.contains("mlx") && shown.contains("model.layers.1.self_attn.q_proj"), "{shown}");
    let peft = folder.path().join("peft");
    let converted =
        json_of(&["convert", text(&adapter), "--from", "auto", "--to", "peft", "-o", text(&peft)]);
    assert_eq!((&converted["from"], &converted["tensors"]), (&"mlx".into(), &6.into()));
    assert!(peft.join("adapter_model.safetensors").is_file() && peft.join("adapter_config.json").is_file());
    let compared = output_of(&["diff", text(&adapter), text(&peft)]);
    assert!(compared.contains("identical"), "{compared}");
    let both = folder.path().join("both");
    output_of(&[
        "combine",
        text(&adapter),
        text(&peft),
        "--type",
        "linear",
        "-o",
        text(&both),
        "--base",
        text(&base),
    ]);
    let [of_mlx, of_peft] = [(&adapter, "a"), (&peft, "b")].map(|(adapter, name)| {
        let merged = folder.path().join(name);
        output_of(&[
            "merge",
            "--base",
            text(&base),
            "--adapter",
            text(adapter),
            "-o",
            text(&merged),
            "--check",
        ]);
        std::fs::read(merged.join("model.safetensors")).unwrap()
    });
    assert!(of_mlx == of_peft);
    let error = error_of(
        &["convert", text(&adapter), "--from", "kohya", "--to", "peft", "-o", text(&both), "--force"],
        1,
    );
    assert!(error.contains("in the format `mlx`, not `kohya`"), "{error}");
}

#[test]
fn an_adapter_that_needs_its_base_model_is_merged_compared_and_checked_with_it() {
    let (base, adapter) = (fixture("mlx/base"), fixture("gguf_adapters/alpha.gguf"));
    let folder = tempfile::tempdir().unwrap();
    let merged = folder.path().join("merged");
    let base = text(&base);
    let printed =
        output_of(&["merge", "--base", base, "--adapter", text(&adapter), "-o", text(&merged), "--check"]);
    assert!(printed.contains("was compared with base model and adapters"), "{printed}");
    let printed = output_of(&["check", text(&adapter), "--for", "llama.cpp", "--base", base]);
    assert!(printed.contains("yes"), "{printed}");
    // Under any name.
    let renamed = folder.path().join("adapter");
    std::fs::copy(&adapter, &renamed).unwrap();
    output_of(&["check", text(&renamed), "--for", "llama.cpp", "--base", base]);
    let (peft, fixed) = (folder.path().join("peft"), folder.path().join("fixed.gguf"));
    output_of(&["convert", text(&adapter), "--to", "peft", "-o", text(&peft), "--base", base]);
    output_of(&["check", text(&peft), "--for", "llama.cpp", "--fix", text(&fixed), "--base", base]);
    assert!(fixed.is_file());
}

#[test]
fn a_format_that_needs_the_base_model_says_so() {
    let adapter = fixture("gguf_adapters/alpha.gguf");
    for command in [&["inspect", text(&adapter)][..], &["diff", text(&adapter), text(&adapter)]] {
        let error = error_of(command, 1);
        assert!(error.contains("alpha.gguf") && error.contains("--base"), "{error}");
        output_of(&[command, &["--base", text(&fixture("mlx/base"))]].concat());
    }
}

#[test]
fn a_hostile_pickle_is_refused_by_name() {
    let error = error_of(&["inspect", text(&fixture("pickles/call_next_to_tensors.bin"))], 1);
    assert!(error.contains("call_next_to_tensors.bin") && error.contains("posix.system"), "{error}");
}

/// Tensors as their shapes and bits.
type Bits = BTreeMap<String, (Vec<usize>, Vec<u32>)>;

/// The tensors of mlx-lm's folder, bit for bit, and its config.
fn of_mlx(folder: &Path) -> (Bits, Value) {
    let tensors = candle_core::safetensors::load(folder.join("adapters.safetensors"), &Device::Cpu).unwrap();
    let bits = |tensor: candle_core::Tensor| {
        let values = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        (tensor.dims().to_vec(), values.into_iter().map(f32::to_bits).collect())
    };
    let config = std::fs::read_to_string(folder.join("adapter_config.json")).unwrap();
    let tensors = tensors.into_iter().map(|(name, tensor)| (name, bits(tensor))).collect();
    (tensors, serde_json::from_str(&config).unwrap())
}

#[test]
fn dora_of_mlx_lm_comes_back_from_pefts_form_as_mlx_lm_wrote_it() {
    let (base, adapter) = (fixture("mlx/base"), fixture("mlx/dora"));
    let folder = tempfile::tempdir().unwrap();
    let [peft, converted, fixed] = ["peft", "converted", "fixed"].map(|name| folder.path().join(name));
    output_of(&["convert", text(&adapter), "--to", "peft", "-o", text(&peft), "--base", text(&base)]);
    output_of(&["convert", text(&peft), "--to", "mlx", "-o", text(&converted)]);
    output_of(&["check", text(&peft), "--for", "mlx", "--fix", text(&fixed), "--base", text(&base)]);
    let (expected, _) = of_mlx(&adapter);
    assert!(expected.keys().any(|name| name.ends_with(".m")));
    for written in [converted, fixed] {
        let (tensors, config) = of_mlx(&written);
        assert_eq!(tensors, expected);
        assert_eq!(config["fine_tune_type"], json!("dora"));
        let parameters = &config["lora_parameters"];
        assert_eq!((&parameters["rank"], &parameters["scale"]), (&json!(3), &json!(1.7)));
    }
}

#[test]
fn dora_of_several_ranks_and_scalings_computes_the_same_in_mlx_lms_format() {
    let ranks = [("layers.1.self_attn.q_proj", 5)];
    let config = lora()
        .with_targets(["q_proj", "o_proj"])
        .with_dora(true)
        .with_rslora(true)
        .with_rank_pattern(ranks)
        .with_alpha_pattern([("o_proj", 1.0)]);
    let mut model = Model::random(DType::F32);
    let mut fresh = model.clone();
    let (base, adapter) = (model.save(), model.adapter(&config, "default"));
    let folder = tempfile::tempdir().unwrap();
    let (mlx, back) = (folder.path().join("mlx"), folder.path().join("back"));
    output_of(&["convert", text(adapter.path()), "--to", "mlx", "-o", text(&mlx)]);
    output_of(&["convert", text(&mlx), "--to", "peft", "-o", text(&back), "--base", text(base.path())]);
    fresh.load_adapter(&back, "default").unwrap();
    model.merge_and_unload(&MergeOptions::active()).unwrap();
    fresh.merge_and_unload(&MergeOptions::active()).unwrap();
    assert_same(&fresh.base_state_dict(), &model.base_state_dict(), 1e-5);
}

#[test]
fn dora_that_mlx_lm_computes_otherwise_is_refused() {
    for (config, words) in [
        (lora().with_dora(true).with_targets(["embed_tokens"]), "DoRA on something else than a linear layer"),
        (lora().with_dora(true).with_init(LoraInit::Pissa), "`pissa` changed the base weights"),
    ] {
        let adapter = Model::random(DType::F32).adapter(&config, "default");
        let output = adapter.path().join("mlx");
        let error = error_of(&["convert", text(adapter.path()), "--to", "mlx", "-o", text(&output)], 1);
        assert!(error.contains(words) && error.contains("help: ") && !output.exists(), "{error}");
    }
}

#[test]
fn outputs_that_a_fused_module_does_not_have_are_refused_with_their_number() {
    let (base, adapter) = (fixture("mlx/base"), fixture("mlx/lora"));
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("merged");
    for rows in ["0..99", "16..32"] {
        let fuse = format!("q_proj=q_proj:{rows}");
        let command = [
            "merge",
            "--base",
            text(&base),
            "--adapter",
            text(&adapter),
            "-o",
            text(&output),
            "--fuse",
            &fuse,
        ];
        let error = error_of(&command, 1);
        let words = format!("outputs {} of `", rows.replace("..", " to "));
        assert!(error.contains(&words) && error.contains("and it has 16"), "{error}");
        assert!(!output.exists());
    }
}

#[test]
fn targets_that_are_not_named_are_those_that_the_file_has() {
    let mut model = Model::random(DType::F32);
    let base = model.save();
    let adapter = model.adapter(&lora().with_targets(["q_proj", "k_proj"]), "default");
    let path = adapter.path().join("adapter_config.json");
    let mut config: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    config["target_modules"] = Value::Null;
    std::fs::write(&path, config.to_string()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("merged");
    output_of(&[
        "merge",
        "--base",
        text(base.path()),
        "--adapter",
        text(adapter.path()),
        "-o",
        text(&output),
    ]);
    let merged = ModelWeights::open(&output).unwrap();
    let read = |name: &str| (name.to_owned(), merged.tensor(name, &Device::Cpu).unwrap());
    let merged: BTreeMap<String, candle_core::Tensor> = merged.names().map(read).collect();
    model.merge_and_unload(&MergeOptions::active()).unwrap();
    let expected = model.base_state_dict();
    let merged = merged.into_iter().filter(|(name, _)| expected.contains_key(name)).collect();
    assert_same(&merged, &expected, 1e-6);
}
