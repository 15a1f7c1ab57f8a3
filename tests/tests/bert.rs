//! BERT with made-up weights: half precision, padding without effect, and dropout.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use peft_runtime::models::bert::{BertConfig, BertModel};
use peft_runtime::prelude::*;
use peft_runtime::train::{AdamW, Schedule, Trainer};
use peft_tests::close::{Tolerance, assert_close};
use peft_tests::tensors::{RandomWeights, bits, distance, random_with, randomise};
use peft_tests::training::files;

/// The config of a tiny model with these settings added.
fn config(settings: &[(&str, f64)]) -> BertConfig {
    let mut config = serde_json::json!({
        "vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12,
        "max_position_embeddings": 7, "type_vocab_size": 2
    });
    for (key, value) in settings {
        config[*key] = (*value).into();
    }
    serde_json::from_value(config).unwrap()
}

fn build(config: &BertConfig) -> candle_core::Result<BertModel> {
    BertModel::new(config, RandomWeights::var_builder(DType::F32))
}

/// The same model in several precisions.
fn models() -> [BertModel; 3] {
    let config = config(&[]);
    let mut state = build(&config).unwrap().base_state_dict();
    for (name, tensor) in state.iter_mut().filter(|(name, _)| !name.contains("LayerNorm")) {
        *tensor = random_with(tensor.shape(), if name.contains("embeddings") { 1.0 } else { 0.2 });
    }
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
            // Normalised values around 1, rounded to 8 or 11 bits in each of two layers. A NaN is never within tolerance.
            assert_close(&hidden, &expected, Tolerance::absolute(0.1), format_args!("{dtype:?}"));
        }
    }
    assert!(distance(&full, &models[0].forward(&ids(), None, None).unwrap()).unwrap() > 1e-3, "masks act");
}

#[test]
fn without_padding_tokens_have_the_same_vectors_and_the_same_gradients() {
    let mut model = models()[0].clone();
    model
        .inject_adapter(&LoraConfig::new(2, 4.0).with_targets(["query", "value", "dense"]), "default")
        .unwrap();
    randomise(&mut model, "default", 0.3).unwrap();
    let padding = (mask().unsqueeze(2).unwrap() * 1.0).unwrap();
    let padded = model.forward(&ids(), None, Some(&mask())).unwrap().broadcast_mul(&padding).unwrap();
    let hidden = model.forward_unpadded(&ids(), None, &mask()).unwrap();
    assert_close(&hidden, &padded, Tolerance::absolute(1e-5), "the hidden states");

    let gradients = |hidden: Tensor| hidden.sqr().unwrap().sum_all().unwrap().backward().unwrap();
    let (with, without) = (gradients(padded), gradients(hidden));
    for (name, var) in model.trainable_parameters() {
        assert_close(with.get(&var).unwrap(), without.get(&var).unwrap(), Tolerance::absolute(1e-4), &name);
    }
}

#[test]
fn what_is_masked_changes_nothing() {
    for model in models() {
        let short = ids().narrow(0, 1, 1).unwrap().narrow(1, 0, 3).unwrap().contiguous().unwrap();
        let alone = model.forward(&short, None, None).unwrap();
        let padded = model.forward(&ids(), None, Some(&mask())).unwrap();
        let padded = padded.narrow(0, 1, 1).unwrap().narrow(1, 0, 3).unwrap();
        assert_close(&padded, &alone, Tolerance::absolute(0.05), "the hidden states");
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

#[test]
fn the_tree_has_dropout_where_transformers_has_it() {
    let rates = config(&[("hidden_dropout_prob", 0.2), ("attention_probs_dropout_prob", 0.0)]);
    let expected = "\
BertModel(
  (embeddings): Embeddings(
    (word_embeddings): Embedding(11, 8, padding_idx=0)
    (position_embeddings): Embedding(7, 8)
    (token_type_embeddings): Embedding(2, 8)
    (LayerNorm): LayerNorm((8,), eps=1e-12, elementwise_affine=True, bias=True)
    (dropout): Dropout(p=0.2, inplace=False)
  )
  (encoder): Encoder(
    (layer): ModuleList(
      (0-1): 2 x BertLayer(
        (attention): Attention(
          (self): SelfAttention(
            (query): Linear(in_features=8, out_features=8, bias=True)
            (key): Linear(in_features=8, out_features=8, bias=True)
            (value): Linear(in_features=8, out_features=8, bias=True)
            (dropout): Dropout(p=0.0, inplace=False)
          )
          (output): Output(
            (dense): Linear(in_features=8, out_features=8, bias=True)
            (LayerNorm): LayerNorm((8,), eps=1e-12, elementwise_affine=True, bias=True)
            (dropout): Dropout(p=0.2, inplace=False)
          )
        )
        (intermediate): Intermediate(
          (dense): Linear(in_features=8, out_features=12, bias=True)
        )
        (output): Output(
          (dense): Linear(in_features=12, out_features=8, bias=True)
          (LayerNorm): LayerNorm((8,), eps=1e-12, elementwise_affine=True, bias=True)
          (dropout): Dropout(p=0.2, inplace=False)
        )
      )
    )
  )
)";
    assert_eq!(build(&rates).unwrap().module_tree(), expected);
    let default = build(&config(&[])).unwrap().module_tree();
    assert_eq!(default.matches("Dropout(p=0.1, inplace=False)").count(), 4);
}

#[test]
fn an_invalid_dropout_probability_is_named() {
    for key in ["hidden_dropout_prob", "attention_probs_dropout_prob"] {
        for value in [-0.1, 1.0, 7.0] {
            let error = build(&config(&[(key, value)])).unwrap_err().to_string();
            assert!(error.contains(&format!("`{key}` is {value}; ")), "{error}");
        }
    }
}

fn output(model: &BertModel) -> Vec<u64> {
    bits(&model.forward(&ids(), None, Some(&mask())).unwrap()).unwrap()
}

#[test]
fn each_kind_of_dropout_acts_only_in_training_mode() {
    for (hidden, attention) in [(0.5, 0.0), (0.0, 0.5), (0.0, 0.0)] {
        let rates = config(&[("hidden_dropout_prob", hidden), ("attention_probs_dropout_prob", attention)]);
        let mut model = build(&rates).unwrap();
        let start = output(&model);
        assert_eq!(output(&model), start, "a fresh model is in evaluation mode");
        model.train();
        let (first, second) = (output(&model), output(&model));
        let drops = hidden + attention > 0.0;
        let other = [first != start, second != start, first != second];
        assert_eq!(other, [drops; 3], "{hidden} and {attention}");
        model.eval();
        assert_eq!(output(&model), start);
    }
}

#[test]
fn dropout_in_half_precision_is_near_that_in_full_precision() {
    let mut models = models();
    models.iter_mut().for_each(PeftModel::train);
    let run = |model: &BertModel| model.forward(&ids(), None, Some(&mask())).unwrap();
    // The masks depend on positions, not on the precision.
    let [full, others @ ..] = models.each_ref().map(run);
    for hidden in others {
        assert_close(&hidden, &full, Tolerance::absolute(0.3), format_args!("{:?}", hidden.dtype()));
    }
}

/// Resumes the run in `folder`, or starts it, until it has taken `steps` steps.
fn run(base: &BertModel, folder: &Path, steps: u64) -> peft_runtime::Result<()> {
    let mut model = base.clone();
    model.inject_adapter(&LoraConfig::new(2, 4.0).with_seed(7), "default")?;
    model.train();
    let trainer = Trainer::new(&model, AdamW::for_model(&model, 0.05)?, Schedule::constant())?;
    let mut trainer = trainer.with_checkpoints(folder, 1);
    trainer.resume(&model)?;
    while trainer.steps() < steps {
        let hidden = model.forward(&ids(), None, Some(&mask()))?;
        trainer.step(&model, &hidden.narrow(2, 0, 3)?.sqr()?.mean_all()?)?;
    }
    Ok(())
}

#[test]
fn a_resumed_run_drops_what_it_would_have_dropped() {
    let base = build(&config(&[])).unwrap();
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    run(&base, whole.path(), 4).unwrap();
    for steps in [1, 4] {
        run(&base, parts.path(), steps).unwrap();
    }
    let [whole, parts] = [whole, parts].map(|folder| files(&folder.path().join("step-4")).unwrap());
    assert!(whole == parts, "the same bytes");
    let (_, state) = whole.iter().find(|(name, _)| name == "training.json").unwrap();
    let state: serde_json::Value = serde_json::from_slice(state).unwrap();
    for path in ["embeddings", "encoder.layer.1.attention.self", "encoder.layer.0.attention.output"] {
        assert_eq!(state["dropout"][format!("/{path}.dropout")], 4, "{path}");
    }
}
