//! BERT with made-up weights: half precision, and padding that nothing sees.

use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use peft_runtime::models::bert::{BertConfig, BertModel};
use peft_runtime::prelude::*;
use peft_tests::specimen::{distance, randomise};

/// The same model in several precisions.
fn models() -> [BertModel; 3] {
    let config: BertConfig = serde_json::from_value(serde_json::json!({
        "vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12,
        "max_position_embeddings": 7, "type_vocab_size": 2
    }))
    .unwrap();
    let varmap = VarMap::new();
    let full = BertModel::new(&config, VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu)).unwrap();
    let state = full.base_state_dict();
    [DType::F32, DType::BF16, DType::F16].map(|dtype| {
        let vb = VarBuilder::from_tensors(state.clone().into_iter().collect(), dtype, &Device::Cpu);
        BertModel::new(&config, vb).unwrap()
    })
}

fn ids() -> Tensor {
    Tensor::new(&[[1u32, 2, 3, 4, 5], [6, 7, 8, 0, 0]], &Device::Cpu).unwrap()
}

fn mask() -> Tensor {
    Tensor::new(&[[1f32, 1., 1., 1., 1.], [1., 1., 1., 0., 0.]], &Device::Cpu).unwrap()
}

#[test]
fn half_precision_computes_what_full_precision_does_also_with_a_mask() {
    let models = models();
    let full = models[0].forward(&ids(), None, Some(&mask())).unwrap();
    for (model, dtype) in models[1..].iter().zip([DType::BF16, DType::F16]) {
        for mask in [Some(mask()), None] {
            let expected = models[0].forward(&ids(), None, mask.as_ref()).unwrap();
            let hidden = model.forward(&ids(), None, mask.as_ref()).unwrap();
            assert_eq!(hidden.dtype(), dtype);
            // Normed values around 1, rounded to 8 or 11 bits in each of two layers. A NaN is near to nothing.
            let far = distance(&hidden, &expected).unwrap();
            assert!(far < 0.1, "{dtype:?}: off by {far}");
        }
    }
    assert!(distance(&full, &models[0].forward(&ids(), None, None).unwrap()).unwrap() > 1e-3, "masks act");
}

#[test]
fn what_is_masked_changes_nothing() {
    for model in models() {
        let short = ids().narrow(0, 1, 1).unwrap().narrow(1, 0, 3).unwrap().contiguous().unwrap();
        let alone = model.forward(&short, None, None).unwrap();
        let padded = model.forward(&ids(), None, Some(&mask())).unwrap();
        let padded = padded.narrow(0, 1, 1).unwrap().narrow(1, 0, 3).unwrap();
        assert!(distance(&padded, &alone).unwrap() < 0.05);
    }
}

#[test]
fn adapters_act_in_half_precision() {
    for mut model in models() {
        let before = model.forward(&ids(), None, Some(&mask())).unwrap();
        model.inject_adapter(&LoraConfig::new(2, 4.0), "a").unwrap();
        randomise(&mut model, "a", 0.5).unwrap();
        let with = model.forward(&ids(), None, Some(&mask())).unwrap();
        assert_eq!(with.dtype(), before.dtype());
        assert!(distance(&with, &before).unwrap() > 0.01);
    }
}
