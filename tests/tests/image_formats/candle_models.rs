//! candle's own UNet and FLUX, which know nothing of adapters, with adapters that diffusers wrote: they compute what diffusers does.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::flux::WithForward;
use candle_transformers::models::flux::model::{Config, Flux};
use candle_transformers::models::stable_diffusion::unet_2d::{
    BlockConfig, UNet2DConditionModel, UNet2DConditionModelConfig,
};
use peft_runtime::{MergedWeights, StoredAdapter};
use peft_tests::close::{Tolerance, assert_close};
use peft_tests::tensors::distance;

use crate::fixtures::{Bases, file, values};

const TOLERANCE: Tolerance = Tolerance::absolute(2e-4);
/// candle's UNet has the approximation of GELU by tanh where diffusers has GELU itself.
const TOLERANCE_OF_GELU: Tolerance = Tolerance::absolute(1e-3);

fn input(name: &str, shape: &[usize]) -> Tensor {
    let values = values(&format!("input {name}"), shape.iter().product());
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap().to_dtype(DType::F32).unwrap()
}

fn outputs() -> BTreeMap<String, Tensor> {
    candle_core::safetensors::load(file("outputs.safetensors"), &Device::Cpu).unwrap().into_iter().collect()
}

/// What a model computes without an adapter, and with the one in `adapter`.
fn both(base: &str, adapter: &str, run: impl Fn(VarBuilder<'static>) -> Tensor) -> [Tensor; 2] {
    let bases = Bases::read();
    let without = run(bases.weights(base).var_builder(DType::F32, &Device::Cpu));
    let adapter = StoredAdapter::open_for(file(adapter), &bases.base(base)).unwrap();
    let merged = MergedWeights::new(bases.weights(base)).add(adapter, 1.0).unwrap();
    let with = run(merged.var_builder(DType::F32, &Device::Cpu));
    merged.finish().unwrap();
    [without, with]
}

#[test]
fn candles_unet_computes_what_diffusers_does_with_its_adapter() {
    let block =
        |out_channels, use_cross_attn| BlockConfig { out_channels, use_cross_attn, attention_head_dim: 2 };
    let config = || UNet2DConditionModelConfig {
        blocks: vec![block(32, Some(1)), block(32, None)],
        layers_per_block: 1,
        norm_num_groups: 32,
        cross_attention_dim: 6,
        ..UNet2DConditionModelConfig::default()
    };
    let [without, with] = both("sd15_wide", "outputs_unet.safetensors", |vb| {
        let model = UNet2DConditionModel::new(vb, 4, 4, false, config()).unwrap();
        model.forward(&input("sample", &[1, 4, 8, 8]), 7.0, &input("states", &[1, 3, 6])).unwrap()
    });
    let expected = outputs();
    assert_close(&without, &expected["unet_without"], TOLERANCE_OF_GELU, "without");
    assert_close(&with, &expected["unet"], TOLERANCE_OF_GELU, "with");
    assert!(distance(&with, &without).unwrap() > 0.1, "the adapter changes next to nothing");
}

#[test]
fn candles_flux_computes_what_diffusers_does_with_its_adapter() {
    let config = Config {
        in_channels: 4,
        vec_in_dim: 8,
        context_in_dim: 6,
        hidden_size: 8,
        mlp_ratio: 4.0,
        num_heads: 1,
        depth: 1,
        depth_single_blocks: 2,
        axes_dim: vec![2, 2, 4],
        theta: 10_000,
        qkv_bias: true,
        guidance_embed: true,
    };
    let ids: Vec<f32> = (0..4).flat_map(|at| [0.0, (at / 2) as f32, (at % 2) as f32]).collect();
    let ids = Tensor::from_vec(ids, (1, 4, 3), &Device::Cpu).unwrap();
    let text_ids = Tensor::zeros((1, 3, 3), DType::F32, &Device::Cpu).unwrap();
    let number = |value: f32| Tensor::new(&[value], &Device::Cpu).unwrap();
    let [without, with] = both("flux_fused", "outputs_flux.safetensors", |vb| {
        let model = Flux::new(&config, vb).unwrap();
        let (img, txt, vec) = (input("img", &[1, 4, 4]), input("txt", &[1, 3, 6]), input("vec", &[1, 8]));
        let guidance = number(3.5);
        model.forward(&img, &ids, &txt, &text_ids, &number(0.5), &vec, Some(&guidance)).unwrap()
    });
    let expected = outputs();
    assert_close(&without, &expected["flux_without"], TOLERANCE, "without");
    assert_close(&with, &expected["flux"], TOLERANCE, "with");
}
