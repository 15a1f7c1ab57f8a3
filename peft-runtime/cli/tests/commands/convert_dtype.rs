//! `peft convert --dtype`.

use candle_core::{DType, Device, Tensor};
use peft_runtime::StoredAdapter;

use crate::fixture::{Model, error_of, lora, output_of, text};

#[test]
fn numbers_are_rounded_to_the_type_that_is_asked_for() {
    let mut model = Model::random(DType::F32);
    let base = model.save();
    let adapter = model.adapter(&lora().with_targets(["q_proj"]), "default");
    let folder = tempfile::tempdir().unwrap();
    let convert = |to: &'static str, dtype: &'static str, output: &str| {
        let (adapter, base) = (text(adapter.path()).to_owned(), text(base.path()).to_owned());
        ["convert", &adapter, "--to", to, "--dtype", dtype, "--base", &base, "-o", output].map(str::to_owned)
    };
    let run = |arguments: &[String]| output_of(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    for (to, dtype, name) in [("peft", "bf16", "BF16"), ("plain-lora", "f16", "F16"), ("mlx", "bf16", "BF16")]
    {
        let output = folder.path().join(format!("{to}-{dtype}"));
        run(&convert(to, dtype, text(&output)));
        let written = StoredAdapter::open(&output).unwrap();
        assert!(written.shapes().iter().all(|tensor| tensor.dtype == name), "{to}");
        let wide = |tensor: &Tensor| {
            tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let ours = written.tensors(&Device::Cpu).unwrap();
        let before = StoredAdapter::open(adapter.path()).unwrap().tensors(&Device::Cpu).unwrap();
        for (key, tensor) in before {
            let rounded = tensor.to_dtype(ours[&key].dtype()).unwrap();
            assert_eq!(wide(&ours[&key]), wide(&rounded), "{to} {key}");
        }
    }
    let output = folder.path().join("adapter.gguf");
    let arguments = convert("gguf", "bf16", text(&output));
    let error = error_of(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), 1);
    assert!(error.contains("not in bf16") && error.contains("--dtype f16"), "{error}");
    assert!(!output.exists());
}
