//! For each block of a language model, training keeps what the backward pass reads, and nothing else.

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use peft_runtime::models::llama::{LlamaConfig, LlamaModel};
use peft_runtime::prelude::*;
use peft_tests::memory::{self, CountingAllocator};
use serde_json::json;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const BLOCKS: usize = 4;
const HIDDEN: usize = 64;
const WIDE: usize = 192;
const HEADS: usize = 4;
const KEY_VALUE_HEADS: usize = 2;
const RANK: usize = 2;
const TOKENS: usize = 512;

/// A model of zeros with LoRA on every linear layer of its blocks.
fn model() -> LlamaModel {
    let config = json!({
        "model_type": "llama",
        "vocab_size": 32,
        "hidden_size": HIDDEN,
        "intermediate_size": WIDE,
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KEY_VALUE_HEADS,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100_000.0,
        "tie_word_embeddings": true,
    });
    let config: LlamaConfig = serde_json::from_value(config).unwrap();
    let mut model = LlamaModel::new(&config, VarBuilder::zeros(DType::F32, &Device::Cpu)).unwrap();
    let targets = targets!(
        LlamaModel;
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
    );
    model.inject_adapter(&LoraConfig::new(RANK, 4.0).with_targets(targets), "default").unwrap();
    model
}

#[test]
fn a_block_keeps_what_its_backward_pass_reads() {
    let model = model();
    let ids = Tensor::zeros((1, TOKENS), DType::U32, &Device::Cpu).unwrap();
    // What the first pass allocates permanently is not counted.
    drop(model.hidden_states(&ids, None).unwrap());
    let before = memory::start();
    let hidden = model.hidden_states(&ids, None).unwrap();
    let kept = memory::start() - before;
    assert!(hidden.track_op());

    let head = HIDDEN / HEADS;
    // Both norms, queries, attention's output, and the residual sums after attention and after the feed-forward layer.
    let of_hidden_size = 6 * HIDDEN;
    let keys_and_values = 2 * KEY_VALUE_HEADS * head;
    let gate_and_up = 2 * WIDE;
    // Seven products with A, and the sum of each row of attention.
    let small = 7 * RANK + HEADS;
    let block = of_hidden_size + keys_and_values + gate_and_up + small;
    // The embedding, the last norm, cosines and sines.
    let others = 2 * HIDDEN + head;
    let expected = (BLOCKS * block + others) * TOKENS * size_of::<f32>();
    // The graph itself takes a little. One more tensor of hidden size in each block would add seven percent.
    assert!(kept <= expected + expected / 50, "{kept} bytes are kept, {expected} are read");
}
