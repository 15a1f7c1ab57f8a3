//! `peft convert`.

use std::collections::BTreeMap;
use std::fs::File;
use std::process::Command;

use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::{DType, Device, Tensor};
use peft_runtime::StoredAdapter;
use peft_runtime::adapter::AdapterMethod;
use peft_runtime::prelude::*;

use crate::fixture::{HEADS, Model, assert_same, distance, error_of, lora, output_of, text};

/// Adapters that are not plain LoRA, and whether converting them needs the base model.
fn not_plain() -> Vec<(Box<dyn AdapterMethod>, bool)> {
    let mut all: Vec<(Box<dyn AdapterMethod>, bool)> = Vec::new();
    let ranks = [("layers.1.self_attn.q_proj", 5)];
    let patterns = lora().with_rslora(true).with_rank_pattern(ranks).with_alpha_pattern([("o_proj", 1.0)]);
    all.push((Box::new(patterns), false));
    all.push((Box::new(lora().with_targets(["embed_tokens", "q_proj"])), false));
    all.push((Box::new(lora().with_modules_to_save(["lm_head"])), false));
    let adalora =
        AdaLoraConfig::new(3, 2, 10).with_alpha(4.0).with_init(false).with_targets(["q_proj", "k_proj"]);
    all.push((Box::new(adalora), false));
    all.push((Box::new(lora().with_init(LoraInit::Pissa)), true));
    all.push((Box::new(lora().with_init(LoraInit::Olora).with_rslora(true)), true));
    all
}

#[test]
fn plain_lora_computes_the_same_on_the_unchanged_base_model() {
    for (config, needs_base) in not_plain() {
        let mut model = Model::random(DType::F32);
        let base = model.save();
        let mut fresh = model.clone();
        let adapter = model.adapter(config.as_ref(), "default");
        let folder = tempfile::tempdir().unwrap();
        let arguments = ["convert", text(adapter.path()), "--to", "plain-lora", "-o", text(folder.path())];
        if needs_base {
            let error = error_of(&arguments, 1);
            assert!(error.contains("base model"), "{error}");
            output_of(&[&arguments[..], &["--base", text(base.path())]].concat());
        } else {
            output_of(&arguments);
        }
        let converted = StoredAdapter::open(folder.path()).unwrap();
        let plain = converted.config().downcast_ref::<LoraConfig>().unwrap();
        assert!(!plain.use_rslora() && plain.alpha_pattern().is_empty() && plain.init() == LoraInit::Default);
        fresh.load_adapter(folder.path(), "default").unwrap();
        model.merge_and_unload(&MergeOptions::active()).unwrap();
        fresh.merge_and_unload(&MergeOptions::active()).unwrap();
        assert_same(&fresh.base_state_dict(), &model.base_state_dict(), 1e-4);
    }
}

#[test]
fn a_folder_of_mlx_lm_holds_the_adapter_and_comes_back() {
    let ranks = [("layers.1.self_attn.q_proj", 5)];
    let patterns = lora().with_rslora(true).with_rank_pattern(ranks).with_alpha_pattern([("o_proj", 1.0)]);
    for config in [lora().with_targets(["embed_tokens", "q_proj"]), patterns] {
        let mut model = Model::random(DType::F32);
        let mut fresh = model.clone();
        let adapter = model.adapter(&config, "default");
        let (mlx, back) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        output_of(&["convert", text(adapter.path()), "--to", "mlx", "-o", text(mlx.path())]);
        assert_eq!(StoredAdapter::open(mlx.path()).unwrap().format(), "mlx");
        output_of(&["convert", text(mlx.path()), "--to", "peft", "-o", text(back.path())]);
        fresh.load_adapter(back.path(), "default").unwrap();
        model.merge_and_unload(&MergeOptions::active()).unwrap();
        fresh.merge_and_unload(&MergeOptions::active()).unwrap();
        assert_same(&fresh.base_state_dict(), &model.base_state_dict(), 1e-5);
    }
}

/// The tensors of a file by name, bit for bit.
fn stored(folder: &std::path::Path) -> BTreeMap<String, Vec<u32>> {
    let tensors = StoredAdapter::open(folder).unwrap().tensors(&Device::Cpu).unwrap();
    let bits = |tensor: Tensor| {
        let values = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        values.into_iter().map(f32::to_bits).collect()
    };
    tensors.into_iter().map(|(name, tensor)| (name, bits(tensor))).collect()
}

#[test]
fn an_adapter_of_one_rank_and_alpha_comes_back_from_other_formats_bit_for_bit() {
    let mut model = Model::random(DType::F32);
    let base = model.save();
    let adapter = model.adapter(&lora().with_targets(["q_proj", "k_proj", "o_proj"]), "default");
    for to in ["gguf", "mlx"] {
        let (folder, back) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let other = folder.path().join("other");
        output_of(&[
            "convert",
            text(adapter.path()),
            "--to",
            to,
            "-o",
            text(&other),
            "--base",
            text(base.path()),
        ]);
        output_of(&[
            "convert",
            text(&other),
            "--to",
            "peft",
            "-o",
            text(back.path()),
            "--base",
            text(base.path()),
        ]);
        assert_eq!(stored(back.path()), stored(adapter.path()), "{to}");
        let config = StoredAdapter::open(back.path()).unwrap();
        let config = config.config().downcast_ref::<LoraConfig>().unwrap();
        assert_eq!((config.rank(), config.alpha()), (2, 6.0), "{to}");
    }
}

#[test]
fn adapters_without_a_low_rank_update_are_refused() {
    let dora = Model::random(DType::F32).adapter(&lora().with_dora(true), "default");
    let ia3 = Ia3Config::new().with_targets(["q_proj"]).with_feedforward(Vec::<String>::new());
    let ia3 = Model::random(DType::F32).adapter(&ia3, "default");
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("plain");
    for adapter in [dora, ia3] {
        let error =
            error_of(&["convert", text(adapter.path()), "--to", "plain-lora", "-o", text(&output)], 1);
        assert!(error.contains("low-rank") && !output.exists(), "{error}");
    }
}

/// The update that a GGUF file has for a weight, as llama.cpp computes it: alpha / rank · B·A.
fn update(file: &mut File, content: &Content, name: &str) -> Tensor {
    let mut read = |end: &str| {
        let tensor = content.tensor(file, &format!("{name}.{end}"), &Device::Cpu).unwrap();
        tensor.dequantize(&Device::Cpu).unwrap()
    };
    let (a, b) = (read("lora_a"), read("lora_b"));
    let Some(Value::F32(alpha)) = content.metadata.get("adapter.lora.alpha") else { panic!("no alpha") };
    let rank = b.dim(1).unwrap() as f64;
    if name == "token_embd.weight" {
        // Rows of A are looked up: [vocabulary, rank].
        return (a.matmul(&b.t().unwrap()).unwrap() * (f64::from(*alpha) / rank)).unwrap();
    }
    (b.matmul(&a).unwrap() * (f64::from(*alpha) / rank)).unwrap()
}

/// Reorders rows from neighbouring pairs to halves: from llama.cpp's order to that of transformers.
fn in_halves(rows: &Tensor, heads: usize) -> Tensor {
    let (count, width) = rows.dims2().unwrap();
    let pairs = rows.reshape((heads, count / heads / 2, 2, width)).unwrap();
    pairs.transpose(1, 2).unwrap().contiguous().unwrap().reshape((count, width)).unwrap()
}

fn gguf_adapter() -> (Model, tempfile::TempDir, tempfile::TempDir) {
    let mut model = Model::random(DType::F32);
    let base = model.save();
    let config = lora()
        .with_targets(["q_proj", "k_proj", "o_proj", "embed_tokens"])
        .with_rslora(true)
        .with_rank_pattern([("layers.1.self_attn.q_proj", 5)])
        .with_alpha_pattern([("o_proj", 1.0)]);
    let adapter = model.adapter(&config, "default");
    (model, base, adapter)
}

#[test]
fn a_gguf_file_holds_the_update_with_its_scaling() {
    let (model, base, adapter) = gguf_adapter();
    let path = adapter.path().join("adapter.gguf");
    let arguments =
        ["convert", text(adapter.path()), "--to", "gguf", "-o", text(&path), "--base", text(base.path())];
    let printed = output_of(&arguments);
    assert!(printed.contains("14 tensors"), "{printed}");
    let mut file = File::open(&path).unwrap();
    let content = Content::read(&mut file).unwrap();
    let metadata = |key: &str| match content.metadata.get(key) {
        Some(Value::String(value)) => value.clone(),
        other => panic!("`{key}` is {other:?}"),
    };
    assert_eq!(metadata("general.type"), "adapter");
    assert_eq!(
        (metadata("adapter.type"), metadata("general.architecture")),
        ("lora".to_owned(), "llama".to_owned())
    );
    let (before, merged) = (model.base_state_dict(), model.merged(&["default"]));
    let expected = |name: &str| (&merged[name] - &before[name]).unwrap();
    for block in 0..2 {
        for (own, theirs, heads) in [("q", "q", HEADS), ("k", "k", 1), ("o", "output", 0)] {
            let found = update(&mut file, &content, &format!("blk.{block}.attn_{theirs}.weight"));
            let found = if heads == 0 { found } else { in_halves(&found, heads) };
            let name = format!("model.layers.{block}.self_attn.{own}_proj.weight");
            let error = distance(&found, &expected(&name));
            assert!(error < 1e-5, "{name} is off by {error}");
        }
    }
    let found = update(&mut file, &content, "token_embd.weight");
    assert!(distance(&found, &expected("model.embed_tokens.weight")) < 1e-5);
    let error = error_of(&arguments, 1);
    assert!(error.contains("--force"), "{error}");
    output_of(&[&arguments[..], &["--force", "--f16"]].concat());
}

/// Reads the file with the published package. `PEFT_PYTHON` names a Python that has `gguf` and `safetensors`.
#[test]
#[expect(clippy::print_stderr, reason = "a skipped test says so")]
fn the_python_package_gguf_reads_the_file() {
    let Some(python) = std::env::var_os("PEFT_PYTHON") else {
        eprintln!(
            "SKIPPED: `PEFT_PYTHON` does not name a Python with the packages of tests/python/requirements.txt"
        );
        return;
    };
    let (_, base, adapter) = gguf_adapter();
    let path = adapter.path().join("adapter.gguf");
    output_of(&[
        "convert",
        text(adapter.path()),
        "--to",
        "gguf",
        "-o",
        text(&path),
        "--base",
        text(base.path()),
    ]);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/python/gguf_check.py");
    let config = base.path().join("config.json");
    let check = Command::new(python)
        .args([script, text(&path), text(adapter.path()), text(&config)])
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&check.stdout);
    assert!(check.status.success(), "{printed}{}", String::from_utf8_lossy(&check.stderr));
    assert!(printed.contains("7 weights"), "{printed}");
}

#[test]
fn what_the_format_of_llama_cpp_cannot_hold_is_refused() {
    let mut model = Model::random(DType::F32);
    let base = model.save();
    let copies = model.adapter(&lora().with_modules_to_save(["lm_head"]), "default");
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("adapter.gguf");
    let arguments = ["convert", text(copies.path()), "--to", "gguf", "-o", text(&output)];
    let error = error_of(&arguments, 1);
    assert!(error.contains("config.json") && error.contains("--model-config"), "{error}");
    let error = error_of(&[&arguments[..], &["--base", text(base.path())]].concat(), 1);
    assert!(error.contains("lm_head") && error.contains("full copy"), "{error}");
    std::fs::write(base.path().join("config.json"), "{\"model_type\": \"mamba\"}").unwrap();
    let error = error_of(&[&arguments[..], &["--base", text(base.path())]].concat(), 1);
    assert!(error.contains("mamba") && error.contains("qwen3"), "{error}");
    // A file that is much too long is not read to its end.
    let config = File::create(base.path().join("config.json")).unwrap();
    config.set_len(1 << 30).unwrap();
    let error = error_of(&[&arguments[..], &["--base", text(base.path())]].concat(), 1);
    assert!(error.contains("config.json") && error.contains("more than"), "{error}");
    assert!(!output.exists());
}

#[test]
fn new_rows_and_adapters_of_tied_embeddings_are_not_dropped_by_the_format_of_llama_cpp() {
    let mut model = Model::random(DType::F32);
    let base = model.save();
    let own = model.adapter(&lora(), "default");
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("adapter.gguf");
    let convert = |adapter: &std::path::Path| {
        error_of(
            &["convert", text(adapter), "--to", "gguf", "-o", text(&output), "--base", text(base.path())],
            1,
        )
    };
    let stored = StoredAdapter::open(own.path()).unwrap();
    let mut tensors = stored.tensors(&Device::Cpu).unwrap();
    let rows = model.base_state_dict()["lm_head.weight"].dim(0).unwrap();
    let head = crate::fixture::random(&[rows + 4, model.base_state_dict()["lm_head.weight"].dim(1).unwrap()]);
    tensors.insert("base_model.model.lm_head.weight".to_owned(), head);
    let resized = folder.path().join("resized");
    StoredAdapter::new("resized", stored.config().clone(), tensors).unwrap().save(&resized).unwrap();
    let error = convert(&resized);
    assert!(error.contains(&format!("{} rows", rows + 4)) && error.contains("peft merge"), "{error}");
    let config = base.path().join("config.json");
    let text_of = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text_of.replacen('{', "{\"tie_word_embeddings\": true, ", 1)).unwrap();
    let mut model = Model::random(DType::F32);
    let tied = model.adapter(&lora().with_targets(["lm_head"]), "default");
    let error = convert(tied.path());
    assert!(error.contains("lm_head") && error.contains("one tensor for both"), "{error}");
    assert!(!output.exists());
}
