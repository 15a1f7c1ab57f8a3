//! Where EVA puts the ranks, and what comes of a layer that gets none.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use candle_nn::{Embedding, Linear, Module};
use peft_runtime::ModulePath;
use peft_runtime::prelude::*;
use peft_tests::tensors::{random, randomise, same_bits};

use crate::{
    Model, NARROW, WIDTH, assert_near, batch, eva, factor, injected, linear, lopsided, model, ranks, rows,
    unit_rows,
};

#[test]
fn ranks_go_where_they_explain_most_within_the_budget() {
    let mut model = injected(&eva(2, 2.0));
    model.initialise(&[lopsided()]);
    // One direction is nearly all that q and k see; of the six ranks, four are of more use elsewhere, which is ρ·r.
    let expected = [("q", 1), ("k", 1), ("other", 4)].map(|(name, rank)| (name.to_owned(), rank));
    assert_eq!(ranks(&model), BTreeMap::from(expected));
    assert_near(&factor(&model, "other", "A"), &unit_rows::<NARROW>(&[2, 3, 0, 1]), "A of `other`");
    // A smaller ρ leaves the other layer less.
    let mut model = injected(&eva(2, 1.5));
    model.initialise(&[lopsided()]);
    let ranks = ranks(&model);
    assert_eq!(ranks["other"], 3);
    assert!(ranks.values().all(|rank| *rank <= 3) && ranks.values().sum::<usize>() <= 6, "{ranks:?}");
}

/// The factor between what an adapter adds and B·A, by the output of one layer.
fn scaling(model: &Model, layer: &Adapted<Linear>, name: &str, x: &Tensor) -> f64 {
    let added = (layer.forward(x).unwrap() - layer.base().forward(x).unwrap()).unwrap();
    let (a, b) = (factor(model, name, "A"), factor(model, name, "B"));
    let product = x.matmul(&a.t().unwrap()).unwrap().matmul(&b.t().unwrap()).unwrap();
    let sum = |tensor: Tensor| f64::from(tensor.sum_all().unwrap().to_scalar::<f32>().unwrap());
    sum((&added * &product).unwrap()) / sum(product.sqr().unwrap())
}

#[test]
fn the_scaling_stays_unless_alpha_is_to_stay() {
    for (adjust, expected) in [(true, [2.0, 2.0]), (false, [4.0, 1.0])] {
        let settings = EvaConfig { adjust_scaling_factors: adjust, ..EvaConfig::default() };
        let mut model = injected(&eva(2, 2.0).with_eva(settings));
        model.initialise(&[lopsided()]);
        randomise(&mut model, "default", 0.5).unwrap();
        let found = [
            scaling(&model, &model.q, "q", &random(&[5, WIDTH])),
            scaling(&model, &model.other, "other", &random(&[5, NARROW])),
        ];
        let expected_scalings =
            found.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-3);
        assert!(expected_scalings, "adjusted: {adjust}: {found:?}");
    }
}

#[test]
fn a_layer_that_gets_no_rank_loses_the_adapter_and_the_rest_can_be_saved() {
    let mut model = injected(&eva(1, 2.0).with_targets(["q", "other"]));
    // Along the first two axes each half of the variance, against a quarter along each of the others'.
    let (a, b) = (rows([5.0, 5.0, 0.0, 0.0, 0.0, 0.0]), rows([2.0; NARROW]));
    let report = model.initialise(&[(a.clone(), b.clone())]);
    let adapted: Vec<&str> = report.adapted.iter().map(ModulePath::as_str).collect();
    assert_eq!(adapted, ["q"]);
    assert!(report.active);
    assert_eq!(ranks(&model), BTreeMap::from([("q".to_owned(), 2)]));
    assert!(model.module_tree().contains("(other): Linear(in_features=4, out_features=5, bias=True)"));
    assert_eq!(model.trainable_parameters().len(), 2, "it trains as before");
    randomise(&mut model, "default", 0.5).unwrap();
    let folder = tempfile::tempdir().unwrap();
    model.save_pretrained(folder.path(), "default").unwrap();
    let mut other = model.clone();
    other.delete_adapter("default").unwrap();
    other.load_adapter(folder.path(), "default").unwrap();
    assert!(same_bits(&other.forward(&a, &b).unwrap(), &model.forward(&a, &b).unwrap()));
}

#[test]
fn saved_ranks_and_alphas_are_loaded() {
    let mut model = injected(&eva(2, 2.0));
    let (a, b) = lopsided();
    model.initialise(&[(a.clone(), b.clone())]);
    randomise(&mut model, "default", 0.5).unwrap();
    let folder = tempfile::tempdir().unwrap();
    model.save_pretrained(folder.path(), "default").unwrap();
    let mut other = model.clone();
    other.delete_adapter("default").unwrap();
    other.load_adapter(folder.path(), "default").unwrap();
    assert_eq!(ranks(&other), ranks(&model));
    assert!(same_bits(&other.forward(&a, &b).unwrap(), &model.forward(&a, &b).unwrap()));
}

#[test]
fn no_adapter_acts_while_inputs_are_watched() {
    let base = model();
    let on_head = eva(2, 1.0).with_targets(["head"]);
    let directions = |others: bool| {
        let mut model = base.clone();
        if others {
            model.inject_adapter(&LoraConfig::new(2, 8.0).with_targets(["q", "other"]), "acting").unwrap();
            randomise(&mut model, "acting", 1.0).unwrap();
        }
        model.inject_adapter(&on_head, "default").unwrap();
        model.initialise(&[batch()]);
        factor(&model, "head", "A")
    };
    assert!(same_bits(&directions(true), &directions(false)));
}

#[test]
fn embeddings_keep_what_they_were_drawn() {
    #[derive(Clone, Injectable)]
    struct Words {
        embed: Adapted<Embedding>,
        lin: Adapted<Linear>,
    }
    let mut model = Words { embed: Embedding::new(random(&[9, 4]), 4).into(), lin: linear(4, 3) };
    let config = eva(2, 1.0).with_targets(["embed", "lin"]);
    model.inject_adapter(&config, "default").unwrap();
    let before = model.adapter_state_dict("default").unwrap();
    let ids = Tensor::arange(0u32, 9, &Device::Cpu).unwrap();
    model
        .initialise_eva("default", [&ids], |model, ids| model.lin.forward(&model.embed.forward(ids)?))
        .unwrap();
    let after = model.adapter_state_dict("default").unwrap();
    assert!(before.keys().eq(after.keys()));
    for (key, tensor) in before {
        assert_eq!(same_bits(&tensor, &after[&key]), !key.ends_with("lin.lora_A.weight"), "{key}");
    }
}

#[test]
fn a_layer_keeps_its_adapter_when_the_one_whose_path_ends_in_its_name_loses_it() {
    #[derive(Clone, Injectable)]
    struct Nested {
        lin: Adapted<Linear>,
        block: Block,
    }
    #[derive(Clone, Injectable)]
    struct Block {
        lin: Adapted<Linear>,
    }
    let mut model = Nested { lin: linear(2, 3), block: Block { lin: linear(NARROW, 3) } };
    let config = eva(1, 2.0).with_targets(["lin"]);
    model.inject_adapter(&config, "default").unwrap();
    let batches = [(rows([5.0, 5.0]), rows([2.0; NARROW]))];
    let report = model.initialise_eva("default", batches, |model, (a, b)| {
        model.lin.forward(&a)?;
        model.block.lin.forward(&b)
    });
    let adapted: Vec<String> = report.unwrap().adapted.iter().map(ToString::to_string).collect();
    assert_eq!(adapted, ["lin"]);
}

#[test]
fn too_few_rows_are_an_error_that_says_how_many_there_are() {
    let mut model = injected(&eva(2, 2.0));
    let few = (random(&[3, WIDTH]), random(&[3, NARROW]));
    let error = model.initialise_eva("default", [few], |model, (a, b)| model.forward(&a, &b)).unwrap_err();
    assert!(error.chain().contains("3 rows are too few to find 4 directions in"), "{}", error.chain());
    let none: [(Tensor, Tensor); 0] = [];
    let error = model.initialise_eva("default", none, |model, (a, b)| model.forward(&a, &b)).unwrap_err();
    assert!(error.to_string().contains("no batch reached"), "{error}");
    assert_eq!(ranks(&model).into_values().collect::<Vec<_>>(), [2, 2, 2], "it is as it was");
}
