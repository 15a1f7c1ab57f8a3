//! `peft merge`.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use candle_core::{DType, Device, Tensor};
use peft_runtime::prelude::*;
use peft_runtime::{ModelWeights, StoredAdapter};
use serde_json::{Value, json};

use crate::fixture::{Model, assert_same, error_of, json_of, lora, output_of, random, text};

/// All tensors of a folder.
fn tensors(folder: &Path) -> BTreeMap<String, Tensor> {
    let checkpoint = ModelWeights::open(folder).unwrap();
    let read = |name: &str| (name.to_owned(), checkpoint.tensor(name, &Device::Cpu).unwrap());
    checkpoint.names().map(read).collect()
}

#[test]
fn merged_files_hold_the_merged_weights_in_the_layout_of_the_base_model() {
    for dtype in [DType::F32, DType::BF16] {
        let mut model = Model::random(dtype);
        let base = model.save();
        let first = model.adapter(&lora().with_rslora(true), "first");
        let second =
            model.adapter(&LoraConfig::new(3, 2.0).with_targets(["embed_tokens", "q_proj"]), "second");
        model.scale_adapter("second", -0.5).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("deep/merged");
        let report = json_of(&[
            "merge",
            "--base",
            text(base.path()),
            "--adapter",
            text(first.path()),
            text(second.path()),
            "--weights",
            "1",
            "-0.5",
            "--check",
            "-o",
            text(&output),
        ]);
        assert_eq!((&report["checked"], &report["changed"]), (&json!(true), &json!(5)), "{report}");
        let mut found = tensors(&output);
        let untouched = found.remove("positions").unwrap();
        assert_eq!(untouched.to_vec1::<i64>().unwrap(), [3, 1, 2]);
        assert!(found.values().all(|tensor| tensor.dtype() == dtype));
        assert_same(&found, &model.merged(&["first", "second"]), 0.0);
        assert_eq!(header(&base.path().join(SHARD)), header(&output.join(SHARD)));
        let index: Value = serde_json::from_str(
            &std::fs::read_to_string(output.join("model.safetensors.index.json")).unwrap(),
        )
        .unwrap();
        assert_eq!(
            (&index["metadata"]["total_size"], &index["metadata"]["kept"]),
            (&report["bytes"], &json!(1))
        );
        assert!(output.join("config.json").is_file());
    }
}

const SHARD: &str = "model-00001-of-00002.safetensors";

/// The entries of a file's header in the order of their bytes, and its metadata.
fn header(path: &Path) -> (Vec<String>, BTreeMap<String, String>) {
    let bytes = std::fs::read(path).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    (header.offset_keys(), header.metadata().clone().unwrap().into_iter().collect())
}

#[test]
fn the_base_model_may_be_one_file_with_other_names() {
    let mut model = Model::random(DType::F32);
    let adapter = model.adapter(&lora(), "default");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("weights.safetensors");
    let renamed = model
        .base_state_dict()
        .into_iter()
        .map(|(name, tensor)| (name.replace("model.", "decoder."), tensor));
    std::fs::write(&file, safetensors::serialize(renamed.collect::<Vec<_>>(), None).unwrap()).unwrap();
    let output = folder.path().join("merged");
    let printed = output_of(&[
        "merge",
        "--base",
        text(&file),
        "--adapter",
        text(adapter.path()),
        "-o",
        text(&output),
        "--rename",
        "model=decoder",
        "--check",
    ]);
    assert!(printed.contains("verified"), "{printed}");
    let written = ModelWeights::open(output.join("weights.safetensors")).unwrap();
    for (name, expected) in model.merged(&["default"]) {
        let found = written.tensor(&name.replace("model.", "decoder."), &Device::Cpu).unwrap();
        assert_same(&[("".to_owned(), found)].into(), &[("".to_owned(), expected)].into(), 0.0);
    }
}

#[test]
fn a_failed_merge_leaves_no_files_behind() {
    let mut model = Model::random(DType::F32);
    let base = model.save();
    let adapter = model.adapter(&lora(), "default");
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("merged");
    let merge = |more: &[&'static str], adapter: &Path, status: i32| {
        let arguments =
            ["merge", "--base", text(base.path()), "--adapter", text(adapter), "-o", text(&output)];
        error_of(&[&arguments[..], more].concat(), status)
    };
    // Names that do not fit.
    let error = merge(&["--rename", "model=other"], adapter.path(), 1);
    assert!(
        error.starts_with("error: ") && error.contains("\nhelp: ") && error.contains("--rename"),
        "{error}"
    );
    // A number of weights that differs from the number of adapters.
    let error = merge(&["--weights", "1", "2"], adapter.path(), 2);
    assert!(error.contains("1 adapters and 2 weights"), "{error}");
    // Values that are NaN.
    let stored = StoredAdapter::open(adapter.path()).unwrap();
    let mut tensors = stored.tensors(&Device::Cpu).unwrap();
    let broken = tensors.values_mut().next().unwrap();
    *broken = (&*broken * f64::NAN).unwrap();
    let bad = folder.path().join("bad");
    StoredAdapter::new("bad", stored.config().clone(), tensors).unwrap().save(&bad).unwrap();
    let error = merge(&[], &bad, 1);
    assert!(error.contains("NaN") && error.contains("peft inspect"), "{error}");
    assert!(!output.exists());
    let left: Vec<_> =
        std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["bad"]);
    // A folder with files in it.
    std::fs::create_dir(&output).unwrap();
    std::fs::write(output.join("notes.txt"), "mine").unwrap();
    let error = merge(&[], adapter.path(), 1);
    assert!(error.contains("there are files in it"), "{error}");
    assert_eq!(std::fs::read_to_string(output.join("notes.txt")).unwrap(), "mine");
}

#[test]
fn modules_without_tensors_are_a_warning() {
    let mut model = Model::random(DType::F32);
    let base = model.save();
    let adapter = model.adapter(&lora(), "default");
    let stored = StoredAdapter::open(adapter.path()).unwrap();
    let mut tensors = stored.tensors(&Device::Cpu).unwrap();
    tensors.retain(|key, _| !key.contains("layers.1.self_attn.o_proj"));
    let folder = tempfile::tempdir().unwrap();
    let (short, output) = (folder.path().join("short"), folder.path().join("merged"));
    StoredAdapter::new("short", stored.config().clone(), tensors).unwrap().save(&short).unwrap();
    let arguments = ["merge", "--base", text(base.path()), "--adapter", text(&short), "-o", text(&output)];
    let report = json_of(&arguments);
    assert_eq!(report["unadapted"], json!(["model.layers.1.self_attn.o_proj"]));
}

/// The model is larger than the memory that the command may use.
#[cfg(target_os = "linux")]
#[test]
fn memory_does_not_grow_with_the_model() {
    const MEBIBYTE: usize = 1 << 20;
    const TENSORS: usize = 32;
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join("model.safetensors");
    let weight = random(&[1024, 1024]);
    let all = (0..TENSORS).map(|layer| (format!("layers.{layer}.proj.weight"), weight.clone()));
    safetensors::tensor::serialize_to_file(all, None, &base).unwrap();
    let size = usize::try_from(std::fs::metadata(&base).unwrap().len()).unwrap();
    let limit = 96 * MEBIBYTE;
    assert!(size > limit, "the model has only {size} bytes");
    let factors = (0..TENSORS).flat_map(|layer| {
        let path = format!("base_model.model.layers.{layer}.proj");
        [
            (format!("{path}.lora_A.weight"), random(&[2, 1024])),
            (format!("{path}.lora_B.weight"), random(&[1024, 2])),
        ]
    });
    let adapter = folder.path().join("adapter");
    let config = LoraConfig::new(2, 4.0).with_targets(["proj"]);
    StoredAdapter::new("adapter", config, factors.collect()).unwrap().save(&adapter).unwrap();
    let output = folder.path().join("merged");
    let status = Command::new("sh")
        .args([
            "-c",
            "ulimit -d \"$0\" && exec \"$@\"",
            &(limit / 1024).to_string(),
            env!("CARGO_BIN_EXE_peft"),
        ])
        .args(["merge", "--base", text(&base), "--adapter", text(&adapter), "-o", text(&output)])
        .env("RAYON_NUM_THREADS", "2")
        .output()
        .unwrap();
    assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stderr));
    assert_eq!(std::fs::metadata(output.join("model.safetensors")).unwrap().len() as usize, size);
}
