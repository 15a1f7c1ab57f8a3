//! `trainable_token_indices`: rows of an embedding train, and with them those of a tied head.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use candle_nn::{Embedding, Linear, Module};
use peft_runtime::Error;
use peft_runtime::prelude::*;
use peft_tests::close::{Tolerance, assert_close};
use peft_tests::tensors::{distance, random, randomise, same_bits};

use super::token_model::{FEATURES, Model, VOCABULARY, by_hand, ids, replaced, rows, with_rows};
use crate::{keys, refusal, texts};

#[test]
fn rows_start_as_the_tables_own_and_then_stand_in_for_them() {
    let mut model = Model::new(false);
    let before = model.forward(&ids());
    let report = model.inject_adapter(&with_rows(&[4, 1, 9]), "a").unwrap();
    let adapted = texts(&report.adapted);
    assert_eq!(adapted, ["embed", "lin"]);
    assert!(same_bits(&model.forward(&ids()), &before));
    assert_eq!(
        keys(&model, "a"),
        ["embed.token_adapter.trainable_tokens_delta", "lin.lora_A.weight", "lin.lora_B.weight"]
    );
    let index = Tensor::new(&[4u32, 1, 9], &Device::Cpu).unwrap();
    let own = model.base_state_dict()["embed.weight"].index_select(&index, 0).unwrap();
    assert!(same_bits(&rows(&model, "a", "embed"), &own), "in the order in which they are named");
    randomise(&mut model, "a", 0.5).unwrap();
    let hand = by_hand(&model, "a", &[4, 1, 9], false);
    assert_close(&model.forward(&ids()), &hand.forward(&ids()), Tolerance::absolute(1e-5), "the output");
    assert!(distance(&model.forward(&ids()), &before).unwrap() > 0.1);
    model.disable_adapters();
    assert!(same_bits(&model.forward(&ids()), &before));
}

#[test]
fn a_dictionary_names_the_embeddings() {
    let mut model = Model::new(false);
    let tokens = [("embed", vec![0u32]), ("place", vec![2u32, 1])];
    let config = LoraConfig::new(2, 4.0).with_targets(["lin"]).with_trainable_tokens(tokens);
    model.inject_adapter(&config, "a").unwrap();
    randomise(&mut model, "a", 0.5).unwrap();
    assert_eq!(rows(&model, "a", "embed").dims(), [1, FEATURES]);
    let mut hand = by_hand(&model, "a", &[0], false);
    let table = replaced(&model.base_state_dict()["place.weight"], &[2, 1], &rows(&model, "a", "place"));
    hand.place = Embedding::new(table, FEATURES).into();
    assert_close(&model.forward(&ids()), &hand.forward(&ids()), Tolerance::absolute(1e-5), "the output");
}

#[test]
fn a_tied_head_has_the_rows_of_the_embedding_and_stores_nothing() {
    let mut model = Model::new(true);
    model.inject_adapter(&with_rows(&[2, 4]), "a").unwrap();
    randomise(&mut model, "a", 0.5).unwrap();
    assert_eq!(keys(&model, "a").len(), 3);
    let hand = by_hand(&model, "a", &[2, 4], true);
    let output = model.forward(&ids());
    assert_close(&output, &hand.forward(&ids()), Tolerance::absolute(1e-5), "the output");
    model.merge_adapters(&MergeOptions::active()).unwrap();
    let merged = model.merged_state_dict();
    assert!(same_bits(&merged["embed.weight"], &merged["head.weight"]));
    assert_close(&model.forward(&ids()), &output, Tolerance::absolute(1e-5), "the output");
    // Gradients of both places come together in the rows.
    model.unmerge_adapters().unwrap();
    let parameters = model.trainable_parameters();
    let names: Vec<&str> = parameters.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        ["embed.token_adapter.trainable_tokens_delta.a", "lin.lora_A.a.weight", "lin.lora_B.a.weight"]
    );
}

#[test]
fn merged_rows_are_the_trained_ones_to_the_bit_and_the_others_stay() {
    for tied in [false, true] {
        let mut model = Model::new(tied);
        model.inject_adapter(&with_rows(&[9, 3]), "a").unwrap();
        randomise(&mut model, "a", 0.5).unwrap();
        let (base, output) = (model.base_state_dict(), model.forward(&ids()));
        let expected = replaced(&base["embed.weight"], &[9, 3], &rows(&model, "a", "embed"));
        model.merge_adapters(&MergeOptions::active().check_finite(true)).unwrap();
        assert!(same_bits(&model.merged_state_dict()["embed.weight"], &expected));
        model.unmerge_adapters().unwrap();
        assert!(base.iter().all(|(key, tensor)| same_bits(tensor, &model.merged_state_dict()[key])));
        assert!(same_bits(&model.forward(&ids()), &output));
        model.merge_and_unload(&MergeOptions::active()).unwrap();
        assert!(same_bits(&model.base_state_dict()["embed.weight"], &expected));
    }
}

#[test]
fn only_the_rows_of_the_tokens_have_gradients() {
    let mut model = Model::new(false);
    model.inject_adapter(&with_rows(&[4, 3]), "a").unwrap();
    let grads = model.forward(&ids()).sqr().unwrap().sum_all().unwrap().backward().unwrap();
    let (name, var) = model.trainable_parameters().remove(0);
    assert_eq!(name, "embed.token_adapter.trainable_tokens_delta.a");
    let grad = grads.get(&var).unwrap();
    assert_eq!(grad.dims(), [2, FEATURES]);
    let size =
        |row: usize| grad.get(row).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    assert!(size(0) > 0.0, "token 4 is in the batch");
    assert_eq!(size(1), 0.0, "token 3 is not");
    let table = [VOCABULARY, FEATURES];
    assert!(
        grads.get_ids().all(|id| grads.get_id(*id).unwrap().dims() != table),
        "nothing of the table's size"
    );
    // The slope along one element, by differences.
    let loss = || model.forward(&ids()).sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
    let start = var.copy().unwrap();
    let step = Tensor::new(&[[0f32, 1e-2, 0., 0.], [0.; 4]], &Device::Cpu).unwrap();
    var.set(&(&start + &step).unwrap()).unwrap();
    let above = loss();
    var.set(&(&start - &step).unwrap()).unwrap();
    let slope = (above - loss()) / 2e-2;
    let expected = grad.to_vec2::<f32>().unwrap()[0][1];
    assert!((slope - expected).abs() < 0.02 * expected.abs().max(1.0), "{slope} {expected}");
}

#[test]
fn rows_are_saved_and_loaded_and_read_off_a_state_dict() {
    for tied in [false, true] {
        let base = Model::new(tied);
        let mut model = base.clone();
        model.inject_adapter(&with_rows(&[2, 9]), "a").unwrap();
        randomise(&mut model, "a", 0.5).unwrap();
        let folder = tempfile::tempdir().unwrap();
        model.save_pretrained(folder.path(), "a").unwrap();
        let (mut loaded, mut injected) = (base.clone(), base);
        loaded.load_adapter(folder.path(), "a").unwrap();
        let state = model.adapter_state_dict("a").unwrap();
        let config = LoraConfig::new(2, 4.0).with_trainable_tokens([2u32, 9]);
        let report = injected.inject_adapter_from_state_dict(&state, &config, "a").unwrap();
        assert!(report.copied.is_empty(), "the rows are not a module that trains in full");
        for other in [loaded, injected] {
            assert!(same_bits(&other.forward(&ids()), &model.forward(&ids())), "tied: {tied}");
        }
    }
}

#[test]
fn rows_of_a_batch_have_the_tokens_of_their_adapters() {
    for tied in [false, true] {
        let mut model = Model::new(tied);
        for (name, tokens) in [("a", [1u32, 4]), ("b", [1, 9])] {
            model.inject_adapter(&with_rows(&tokens), name).unwrap();
            randomise(&mut model, name, 0.5).unwrap();
        }
        let names = ["b", "__base__", "a"];
        let mixed = model.with_adapter_rows(&names, |model| model.forward(&ids())).unwrap();
        for (row, name) in names.into_iter().enumerate() {
            let active: &[&str] = if name == "__base__" { &[] } else { &[name] };
            model.set_adapters(active).unwrap();
            let alone = model.forward(&ids()).get(row).unwrap();
            assert_close(
                &mixed.get(row).unwrap(),
                &alone,
                Tolerance::absolute(1e-5),
                format_args!("row {row}, tied: {tied}"),
            );
        }
    }
}

#[test]
fn two_adapters_with_rows_of_one_embedding_cannot_both_be_active() {
    let mut model = Model::new(false);
    model.inject_adapter(&with_rows(&[1]), "a").unwrap();
    model.inject_adapter(&with_rows(&[2]), "b").unwrap();
    let error = model.set_adapters(&["a", "b"]).unwrap_err();
    assert!(matches!(error, Error::CopiesCollide { .. }), "{error}");
    assert_eq!(model.active_adapters(), ["a"]);
    model.set_adapter("b").unwrap();
}

#[test]
fn an_adapter_with_rows_can_be_scaled_which_its_rows_are_not() {
    let mut model = Model::new(false);
    model.inject_adapter(&with_rows(&[1, 4]), "a").unwrap();
    randomise(&mut model, "a", 0.5).unwrap();
    let embedded = model.embed.forward(&ids()).unwrap();
    let x = random(&[3, FEATURES]);
    let part =
        |model: &Model| (model.lin.forward(&x).unwrap() - model.lin.base().forward(&x).unwrap()).unwrap();
    let before = part(&model);
    model.scale_adapter("a", 3.0).unwrap();
    assert_close(&part(&model), &(before * 3.0).unwrap(), Tolerance::absolute(1e-5), "what the adapter adds");
    assert!(same_bits(&model.embed.forward(&ids()).unwrap(), &embedded));
}

#[test]
fn a_sum_of_adapters_has_fresh_rows_as_in_peft() {
    let mut model = Model::new(false);
    for name in ["a", "b"] {
        model.inject_adapter(&with_rows(&[1, 4]), name).unwrap();
        randomise(&mut model, name, 0.5).unwrap();
    }
    for kind in [CombinationType::Linear, CombinationType::Cat, CombinationType::Svd] {
        let options = CombineOptions::new(kind);
        model.add_weighted_adapter(&[("a", 0.5), ("b", 0.5)], "sum", &options).unwrap();
        let index = Tensor::new(&[1u32, 4], &Device::Cpu).unwrap();
        let own = model.base_state_dict()["embed.weight"].index_select(&index, 0).unwrap();
        assert!(same_bits(&rows(&model, "sum", "embed"), &own), "{kind}");
        model.delete_adapter("sum").unwrap();
    }
    model.inject_adapter(&with_rows(&[2]), "c").unwrap();
    let options = CombineOptions::new(CombinationType::Cat);
    let error = model.add_weighted_adapter(&[("a", 0.5), ("c", 0.5)], "sum", &options).unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "other tokens: {error}");
}

#[test]
fn tokens_that_cannot_train_are_refused_and_say_why() {
    let on = |tokens: BTreeMap<String, Vec<u32>>, target: &str| {
        let tokens = peft_runtime::TokenIndices::ByName(tokens);
        LoraConfig::new(2, 4.0).with_targets([target]).with_trainable_tokens(tokens)
    };
    let named = |name: &str| BTreeMap::from([(name.to_owned(), vec![1u32])]);
    let saved = with_rows(&[1]).with_modules_to_save(["embed"]);
    let cases = [
        (with_rows(&[1, 11]), "cannot adapt `embed`: there is no token 11: the layer has 11 rows"),
        (with_rows(&[3, 1, 3]), "the token 3 is there twice"),
        (with_rows(&[]), "a list of tokens is empty"),
        (on(named("embed"), "embed"), "cannot adapt `embed`: it is a target"),
        (saved, "cannot adapt `embed`: it is a target or one of `modules_to_save` as well"),
        (on(named("embd"), "lin"), "`embd` matches no module; did you mean `embed`?"),
        (on(named("norm"), "lin"), "cannot adapt `norm`: a LayerNorm has no rows for tokens"),
        (on(named("plain"), "lin"), "declare the field as `Adapted<Embedding>`"),
    ];
    for (config, says) in cases {
        let text = refusal(&mut Model::new(false), &config);
        assert!(text.contains(says), "`{says}` is not in: {text}");
    }
}

#[test]
fn all_linear_layers_and_rows_are_saved_without_the_embedding_among_the_targets() {
    let base = Model::new(false);
    let mut model = base.clone();
    let config =
        LoraConfig::new(2, 4.0).with_targets(TargetModules::all_linear()).with_trainable_tokens([1u32, 4]);
    let report = model.inject_adapter(&config, "default").unwrap();
    assert_eq!(texts(&report.adapted), ["embed", "lin"]);
    randomise(&mut model, "default", 0.5).unwrap();
    let folder = tempfile::tempdir().unwrap();
    model.save_pretrained(folder.path(), "default").unwrap();
    let text = std::fs::read_to_string(folder.path().join("adapter_config.json")).unwrap();
    let saved = LoraConfig::from_json(&text).unwrap();
    assert_eq!(saved.targets(), Some(&["lin"].into()));
    let mut loaded = base;
    loaded.load_adapter(folder.path(), "default").unwrap();
    assert!(same_bits(&loaded.forward(&ids()), &model.forward(&ids())));
    let options = CombineOptions::new(CombinationType::Cat);
    let sum = loaded.add_weighted_adapter(&[("default", 0.5)], "sum", &options).unwrap();
    assert_eq!(texts(&sum.adapted), ["embed", "lin"]);
}

#[test]
fn the_row_of_the_padding_index_has_no_gradient() {
    #[derive(Clone, Injectable)]
    struct Padded {
        embed: Adapted<peft_runtime::nn::PaddedEmbedding>,
        lin: Adapted<Linear>,
    }
    let table = Embedding::new(random(&[VOCABULARY, FEATURES]), FEATURES);
    let mut model = Padded {
        embed: peft_runtime::nn::PaddedEmbedding::new(table, Some(4)).into(),
        lin: Linear::new(random(&[FEATURES, FEATURES]), None).into(),
    };
    let tokens = [("embed", vec![4u32, 1])];
    let config = LoraConfig::new(2, 4.0).with_targets(["lin"]).with_trainable_tokens(tokens);
    model.inject_adapter(&config, "a").unwrap();
    randomise(&mut model, "a", 0.5).unwrap();
    let output = model.lin.forward(&model.embed.forward(&ids()).unwrap()).unwrap();
    let grads = output.sqr().unwrap().sum_all().unwrap().backward().unwrap();
    let (_, rows) = model.trainable_parameters().remove(0);
    let sizes = grads.get(&rows).unwrap().abs().unwrap().sum(1).unwrap().to_vec1::<f32>().unwrap();
    assert!(sizes[0] == 0.0 && sizes[1] > 0.0, "{sizes:?}");
    // The row itself is the adapter's.
    let padding = model.embed.forward(&Tensor::new(&[4u32], &Device::Cpu).unwrap()).unwrap();
    let row = &model.adapter_state_dict("a").unwrap()["base_model.model.embed.token_adapter.trainable_tokens_delta"];
    assert!(same_bits(&padding, &row.narrow(0, 0, 1).unwrap()));
}
