//! `peft merge` into GGUF files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use peft_runtime::StoredAdapter;
use peft_runtime::models::llama::LlamaModel;
use peft_runtime::prelude::*;

use crate::fixture::{error_of, json_of, output_of, random, text};

fn base() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/llama_gguf.gguf")
}

/// An adapter with factors of these sizes, `[out, in]`.
fn adapter(folder: &Path, layers: &[(&str, usize, usize)]) -> PathBuf {
    let factors = layers.iter().flat_map(|(path, outputs, inputs)| {
        let path = format!("base_model.model.{path}");
        [
            (format!("{path}.lora_A.weight"), random(&[2, *inputs])),
            (format!("{path}.lora_B.weight"), random(&[*outputs, 2])),
        ]
    });
    let factors: BTreeMap<String, Tensor> = factors.collect();
    let names: Vec<String> = layers.iter().map(|(path, ..)| (*path).to_owned()).collect();
    let place = folder.join("adapter");
    let config = LoraConfig::new(2, 1.0).with_targets(names);
    StoredAdapter::new("adapter", config, factors).unwrap().save(&place).unwrap();
    place
}

#[test]
fn a_gguf_file_is_merged_into_and_the_error_is_printed_for_each_module() {
    let folder = tempfile::tempdir().unwrap();
    let layers = [("model.layers.0.self_attn.q_proj", 32, 32), ("model.layers.1.mlp.up_proj", 64, 32)];
    let (own, base) = (adapter(folder.path(), &layers), base());
    let output = folder.path().join("merged.gguf");
    let arguments = ["merge", "--base", text(&base), "--adapter", text(&own), "-o", text(&output), "--check"];
    let printed = output_of(&arguments);
    for part in [
        "model.layers.0.self_attn.q_proj",
        "Q8_0",
        "model.layers.1.mlp.up_proj",
        "2 tensors changed",
        "verified",
    ] {
        assert!(printed.contains(part), "{part}: {printed}");
    }
    let error = error_of(&arguments, 1);
    assert!(error.contains("merged.gguf"), "{error}");
    let mut model = LlamaModel::from_gguf(&base, &Device::Cpu).unwrap();
    model.load_adapter(&own, "default").unwrap();
    let ids = Tensor::new(&[[3u32, 7, 1, 22, 5]], &Device::Cpu).unwrap();
    let expected = model.forward(&ids, None).unwrap();
    let found = LlamaModel::from_gguf(&output, &Device::Cpu).unwrap().forward(&ids, None).unwrap();
    let largest = |tensor: &Tensor| tensor.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    let apart = largest(&(&found - &expected).unwrap()) / largest(&expected);
    assert!(apart < 0.1, "off by {apart}");
    std::fs::remove_file(&output).unwrap();
    let report = json_of(&arguments);
    assert_eq!(report["changed"], 2);
    assert!(report["relative_error"].as_f64().unwrap() < 0.01, "{report}");
}

#[test]
fn a_failed_merge_into_a_gguf_file_leaves_no_file_behind() {
    let folder = tempfile::tempdir().unwrap();
    let (own, base) = (adapter(folder.path(), &[("lm_head", 40, 32)]), base());
    let output = folder.path().join("merged.gguf");
    let merge = |base: &Path| {
        error_of(&["merge", "--base", text(base), "--adapter", text(&own), "-o", text(&output)], 1)
    };
    let error = merge(&base);
    assert!(error.contains("output.weight"), "{error}");
    let damaged = folder.path().join("damaged.gguf");
    std::fs::write(&damaged, &std::fs::read(&base).unwrap()[..5000]).unwrap();
    let error = merge(&damaged);
    assert!(error.contains("damaged.gguf"), "{error}");
    let left = std::fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(left, 2);
}

/// The model is larger than the memory that the command may use.
#[cfg(target_os = "linux")]
#[test]
fn memory_does_not_grow_with_a_gguf_file() {
    const MEBIBYTE: usize = 1 << 20;
    const BLOCKS: usize = 32;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.gguf");
    let weight = QTensor::quantize(&random(&[1024, 1024]), GgmlDType::F32).unwrap();
    let names: Vec<String> = (0..BLOCKS).map(|block| format!("blk.{block}.ffn_up.weight")).collect();
    let tensors: Vec<(&str, &QTensor)> = names.iter().map(|name| (name.as_str(), &weight)).collect();
    let (architecture, heads) = (Value::String("llama".to_owned()), Value::U32(8));
    let metadata = [("general.architecture", &architecture), ("llama.attention.head_count", &heads)];
    gguf_file::write(&mut std::fs::File::create(&file).unwrap(), &metadata, &tensors).unwrap();
    let size = std::fs::metadata(&file).unwrap().len();
    let limit = 96 * MEBIBYTE;
    assert!(size > limit as u64, "the model has only {size} bytes");
    let paths: Vec<String> = (0..BLOCKS).map(|block| format!("model.layers.{block}.mlp.up_proj")).collect();
    let layers: Vec<(&str, usize, usize)> = paths.iter().map(|path| (path.as_str(), 1024, 1024)).collect();
    let own = adapter(folder.path(), &layers);
    let output = folder.path().join("merged.gguf");
    let merged = Command::new("sh")
        .args([
            "-c",
            "ulimit -d \"$0\" && exec \"$@\"",
            &(limit / 1024).to_string(),
            env!("CARGO_BIN_EXE_peft"),
        ])
        .args(["merge", "--base", text(&file), "--adapter", text(&own), "-o", text(&output)])
        .env("RAYON_NUM_THREADS", "2")
        .output()
        .unwrap();
    assert!(merged.status.success(), "{}", String::from_utf8_lossy(&merged.stderr));
    assert_eq!(std::fs::metadata(output).unwrap().len(), size);
}
