//! Adapters merged into quantized weights, in GGUF files and in memory.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Content;
use candle_core::{DType, Device, Tensor};
use peft_runtime::models::llama::{LlamaModel, MergedGguf};
use peft_runtime::nn::{AnyLinear, QuantizedLinear};
use peft_runtime::prelude::*;
use peft_runtime::{RequantizeReport, StoredAdapter};
use peft_tests::close::{Tolerance, assert_close};
use peft_tests::tensors::{random_with, randomise};

use crate::fixture::{adapter, tensors};

const FILES: [(&str, &str); 3] =
    [("gguf_llama", "llama_gguf.gguf"), ("gguf_qwen2", "qwen2_gguf.gguf"), ("gguf_qwen3", "qwen3_gguf.gguf")];

fn path(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(file)
}

/// The dense weights of a model under transformers' names.
fn weights(path: &std::path::Path) -> BTreeMap<String, Tensor> {
    LlamaModel::from_gguf(path, &Device::Cpu).unwrap().base_state_dict()
}

fn merge(case: &str, file: &str) -> (tempfile::TempDir, PathBuf, RequantizeReport) {
    let (own, folder) = (adapter(case), tempfile::tempdir().unwrap());
    let output = folder.path().join("merged.gguf");
    let merged = MergedGguf::open(path(file)).unwrap();
    let merged = merged.add(StoredAdapter::open(own.path()).unwrap(), 1.0).unwrap();
    let report = merged.write(&output, &mut |_| {}).unwrap();
    merged.verify(&output, &mut |_| {}).unwrap();
    let error = merged.write(&output, &mut |_| {}).unwrap_err().to_string();
    assert!(error.contains("merged.gguf"), "{error}");
    (folder, output, report)
}

fn norm(tensor: &Tensor) -> f64 {
    f64::from(tensor.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap()).sqrt()
}

#[test]
fn a_merged_file_has_what_the_package_gguf_makes_of_the_merged_weights() {
    for (case, file) in FILES {
        let (_folder, output, report) = merge(case, file);
        let (found, before) = (weights(&output), weights(&path(file)));
        let exact = tensors(&format!("{case}/exact/"));
        assert_eq!(report.layers.len(), exact.len());
        for (name, again) in tensors(&format!("{case}/requantized/")) {
            // Another value of a half of a block's scale, at most.
            assert_close(&found[&name], &again, Tolerance::of_largest(2e-3, &again), &name);
            let error = norm(&(&found[&name] - &exact[&name]).unwrap()) / norm(&exact[&name]);
            let module = name.strip_suffix(".weight").unwrap();
            let layer = report.layers.iter().find(|layer| layer.path.as_str() == module).unwrap();
            assert!(
                (layer.relative_error - error).abs() < 1e-3 * error.max(1e-3),
                "{name}: {layer:?}, {error}"
            );
        }
        for (name, tensor) in before.iter().filter(|(name, _)| !exact.contains_key(*name)) {
            assert_close(&found[name], tensor, Tolerance::absolute(0.0), name);
        }
        let all = report.relative_error();
        let largest = report.layers.iter().map(|layer| layer.relative_error).fold(0.0, f64::max);
        assert!(all > 0.0 && all <= largest, "{report}");
        assert!(report.to_string().contains("4 weights quantized again"), "{report}");
    }
}

#[test]
fn all_bytes_but_those_of_merged_tensors_are_the_base_models() {
    for (case, file) in FILES {
        let (_folder, output, report) = merge(case, file);
        let (old, new) = (std::fs::read(path(file)).unwrap(), std::fs::read(&output).unwrap());
        assert_eq!(old.len(), new.len());
        let content = Content::read(&mut File::open(&output).unwrap()).unwrap();
        let start = usize::try_from(content.tensor_data_offset).unwrap();
        assert_eq!(old[..start], new[..start], "{file}");
        let changed = old.iter().zip(&new).filter(|(old, new)| old != new).count();
        let merged: usize = report.layers.len();
        let bytes: usize = content
            .tensor_infos
            .iter()
            .filter(|(name, _)| name.starts_with("blk.1.") && name.ends_with(".weight"))
            .filter(|(name, _)| {
                ["attn_q.", "attn_k.", "attn_v.", "ffn_down."].iter().any(|own| name.contains(own))
            })
            .map(|(_, info)| {
                info.shape.elem_count() / info.ggml_dtype.block_size() * info.ggml_dtype.type_size()
            })
            .sum();
        assert!(changed > 0 && changed <= bytes, "{file}: {changed} of {bytes} in {merged}");
    }
}

#[test]
fn what_a_gguf_file_has_no_place_for_is_refused() {
    let refused = |file: &str, case: &str| {
        let own = adapter(case);
        let merged = MergedGguf::open(path(file)).unwrap();
        merged.add(StoredAdapter::open(own.path()).unwrap(), 1.0).unwrap_err().chain()
    };
    let error = refused("llama_gguf.gguf", "llama_tied_head");
    assert!(error.contains("output.weight"), "{error}");
    let error = refused("llama_gguf.gguf", "llama_tied_saved_embedding");
    assert!(error.contains("output.weight"), "{error}");
    let error = refused("llama_gguf.gguf", "gpt2_tokens");
    assert!(error.contains("transformer"), "{error}");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("iq4.gguf");
    let mut bytes = std::fs::read(path("llama_gguf.gguf")).unwrap();
    // The type of the second tensor, after its name and two dimensions.
    let name = b"token_embd.weight";
    let at = bytes.windows(name.len()).position(|window| window == name).unwrap() + name.len() + 4 + 16;
    bytes[at] = 23;
    std::fs::write(&file, bytes).unwrap();
    let error = MergedGguf::open(&file).unwrap_err().chain();
    assert!(
        error.contains("token_embd.weight") && error.contains("IQ4_XS") && error.contains("Q4_K"),
        "{error}"
    );
}

#[derive(Clone, Injectable)]
struct Layers {
    first: Adapted<AnyLinear>,
    second: Adapted<AnyLinear>,
}

#[test]
fn quantized_layers_of_a_model_are_merged_and_keep_their_types() {
    for dtype in [GgmlDType::Q8_0, GgmlDType::Q5_1, GgmlDType::Q4K, GgmlDType::Q6K, GgmlDType::F16] {
        let dense = candle_nn::Linear::new(random_with(&[8, 256], 0.1), Some(random_with(&[8], 0.1)));
        let quantized = QuantizedLinear::from_linear(&dense, dtype).unwrap();
        let plain = candle_nn::Linear::new(random_with(&[8, 256], 0.1), None);
        let mut model =
            Layers { first: AnyLinear::from(quantized).into(), second: AnyLinear::from(plain).into() };
        model.inject_adapter(&LoraConfig::new(2, 4.0).with_targets(["first", "second"]), "default").unwrap();
        randomise(&mut model, "default", 0.1).unwrap();
        let mut exact = model.clone();
        exact.first.dequantize().unwrap();
        exact.merge_and_unload(&MergeOptions::active()).unwrap();
        assert!(model.clone().merge_and_unload(&MergeOptions::active()).is_err());
        let report = model.merge_and_requantize(&MergeOptions::active()).unwrap();
        let [layer] = report.layers.as_slice() else { panic!("{report}") };
        assert_eq!((layer.path.as_str(), layer.dtype), ("first", dtype));
        let AnyLinear::Quantized(first) = model.first.base() else { panic!("dense") };
        assert_eq!(first.weight().dtype(), dtype);
        let found = first.dequantize().unwrap().weight().clone();
        let expected = exact.base_state_dict()["first.weight"].clone();
        let error = norm(&(&found - &expected).unwrap()) / norm(&expected);
        assert!((layer.relative_error - error).abs() < 1e-6 && error < 0.2, "{dtype:?}: {error} {report}");
        assert!(matches!(model.first, Adapted::Base(_)) && matches!(model.second, Adapted::Base(_)));
        let second = exact.base_state_dict()["second.weight"].clone();
        assert_close(&model.base_state_dict()["second.weight"], &second, Tolerance::absolute(0.0), "second");
        assert_eq!(found.dtype(), DType::F32);
    }
}
