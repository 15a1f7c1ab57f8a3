//! Adapters written for other programs: what is read again has every bit.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use peft_runtime::{ImageProgram, PipelineModel, StoredAdapter};

use crate::fixtures::{Bases, cases, file};

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
