//! A model with two embeddings and a head, which may be tied, and what its rows should be.

use candle_core::{Device, Tensor};
use candle_nn::{Embedding, LayerNorm, Linear, Module};
use peft_runtime::prelude::*;
use peft_tests::tensors::random;

#[derive(Clone, Injectable)]
#[peft(input_embedding = "embed", output_embedding = "head")]
pub struct Model {
    pub embed: Adapted<Embedding>,
    pub place: Adapted<Embedding>,
    pub lin: Adapted<Linear>,
    pub head: Adapted<Linear>,
    pub norm: Adapted<LayerNorm>,
    pub plain: Embedding,
}

pub const VOCABULARY: usize = 11;
pub const FEATURES: usize = 4;

impl Model {
    pub fn new(tied: bool) -> Self {
        let table = random(&[VOCABULARY, FEATURES]);
        let head = if tied { table.clone() } else { random(&[VOCABULARY, FEATURES]) };
        let square = Linear::new(random(&[FEATURES, FEATURES]), Some(random(&[FEATURES])));
        Self {
            embed: Embedding::new(table, FEATURES).into(),
            place: Embedding::new(random(&[7, FEATURES]), FEATURES).into(),
            lin: square.into(),
            head: Linear::new(head, None).into(),
            norm: LayerNorm::new(random(&[FEATURES]), random(&[FEATURES]), 1e-5).into(),
            plain: Embedding::new(random(&[5, FEATURES]), FEATURES),
        }
    }

    /// Words and places, added, through the linear layer to the head.
    pub fn forward(&self, ids: &Tensor) -> Tensor {
        let places = Tensor::arange(0u32, ids.dim(1).unwrap() as u32, &Device::Cpu).unwrap();
        let words = self.embed.forward(ids).unwrap();
        let hidden = words.broadcast_add(&self.place.forward(&places).unwrap()).unwrap();
        self.head.forward(&self.lin.forward(&hidden).unwrap().tanh().unwrap()).unwrap()
    }
}

pub fn ids() -> Tensor {
    Tensor::new(&[[1u32, 4, 2], [9, 4, 0], [10, 1, 1]], &Device::Cpu).unwrap()
}

/// LoRA on the linear layer, with these rows of the input embedding.
pub fn with_rows(tokens: &[u32]) -> LoraConfig {
    LoraConfig::new(2, 4.0).with_targets(["lin"]).with_trainable_tokens(tokens.to_vec())
}

pub fn rows(model: &Model, name: &str, layer: &str) -> Tensor {
    let key = format!("base_model.model.{layer}.token_adapter.trainable_tokens_delta");
    model.adapter_state_dict(name).unwrap()[&key].clone()
}

/// The table with some of its rows replaced, row by row.
pub fn replaced(table: &Tensor, tokens: &[u32], rows: &Tensor) -> Tensor {
    let mut values = table.to_vec2::<f32>().unwrap();
    for (token, row) in tokens.iter().zip(rows.to_vec2::<f32>().unwrap()) {
        values[*token as usize] = row;
    }
    Tensor::new(values, &Device::Cpu).unwrap()
}

/// A model without adapters that has what an adapter on `lin` and these rows make of the base.
pub fn by_hand(model: &Model, name: &str, tokens: &[u32], tied: bool) -> Model {
    let (base, state) = (model.base_state_dict(), model.adapter_state_dict(name).unwrap());
    let factor = |factor: &str| &state[&format!("base_model.model.lin.lora_{factor}.weight")];
    let delta = (factor("B").matmul(factor("A")).unwrap() * 2.0).unwrap();
    let table = replaced(&base["embed.weight"], tokens, &rows(model, name, "embed"));
    let head = if tied { table.clone() } else { base["head.weight"].clone() };
    let lin = Linear::new((&base["lin.weight"] + delta).unwrap(), Some(base["lin.bias"].clone()));
    let mut hand = Model::new(tied);
    hand.embed = Embedding::new(table, FEATURES).into();
    hand.place = Embedding::new(base["place.weight"].clone(), FEATURES).into();
    (hand.lin, hand.head) = (lin.into(), Linear::new(head, None).into());
    hand
}
