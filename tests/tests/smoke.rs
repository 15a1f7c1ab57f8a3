//! smoke
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{Embedding, Linear, Module};
use peft_runtime::prelude::*;

#[derive(Injectable)]
#[peft(target = "linear")]
struct DummyModel {
    embedding: Adapted<Embedding>,
    linear: Adapted<Linear>,
    lm_head: Adapted<Linear>,
}

impl DummyModel {
    fn new() -> Self {
        let t = |a, b| Var::randn(0f32, 1., (a, b), &Device::Cpu).unwrap().into_inner();
        let b = |a| Some(Var::randn(0f32, 1., a, &Device::Cpu).unwrap().into_inner());
        Self {
            embedding: Embedding::new(t(10, 10), 10).into(),
            linear: Linear::new(t(10, 10), b(10)).into(),
            lm_head: Linear::new(t(10, 10), b(10)).into(),
        }
    }
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        self.lm_head.forward(&self.linear.forward(&self.embedding.forward(x)?)?)
    }
}

#[test]
fn smoke() {
    let mut model = DummyModel::new();
    let x = Tensor::new(&[[1u32, 2, 3]], &Device::Cpu).unwrap();
    let before = model.forward(&x).unwrap();
    let config = LoraConfig::new(64, 16.0).with_dropout(0.1).with_targets(targets!(DummyModel; "linear"));
    let report = model.inject_adapter(&config, "default").unwrap();
    println!("{report}\n{}\n{}", model.module_tree(), model.trainable_summary());
    let after = model.forward(&x).unwrap();
    assert_eq!(before.to_vec3::<f32>().unwrap(), after.to_vec3::<f32>().unwrap());
    for (n, v) in model.trainable_parameters() {
        println!("{n} {:?}", v.dims());
    }
    let g = after.sqr().unwrap().sum_all().unwrap().backward().unwrap();
    println!("{}", g.get_ids().count());
    let dir = tempfile::tempdir().unwrap();
    model.save_pretrained(dir.path(), "default").unwrap();
    println!("{}", std::fs::read_to_string(dir.path().join("adapter_config.json")).unwrap());
    let e = DummyModel::new()
        .inject_adapter(&LoraConfig::new(0, 1.0).with_targets(["liner"]), "a.b")
        .unwrap_err();
    println!("{e}");
    let _ = DType::F32;
}
