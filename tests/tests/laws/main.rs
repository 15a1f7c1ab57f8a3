//! What holds for every adapter method on every layer kind.

mod gradients;
mod several;
mod strides;

use std::collections::BTreeSet;

use candle_core::{DType, Tensor};
use peft_runtime::Error;
use peft_runtime::prelude::*;
use peft_tests::close::{Tolerance, assert_close};
use peft_tests::float_types::{Holding, every_holding};
use peft_tests::methods::{Draws, METHODS, Method, Start, Target, WeightChange, every_pair};
use peft_tests::specimen::{Kind, Specimen};
use peft_tests::tensors::{bits, distance, randomise, same_bits};

const NAME: &str = "default";

/// Puts a fresh adapter on a model.
fn inject(model: &mut Specimen, method: &Method, name: &str, holding: Holding) {
    let options = InjectOptions::new().autocast_adapter_dtype(holding.autocasts);
    model.inject_adapter_with(&*method.config(), name, options).unwrap();
}

/// A specimen with an adapter of random values, so that it acts, and an input for it.
fn acting(kind: Kind, method: &Method, holding: Holding) -> (Specimen, Tensor) {
    let mut model = Specimen::new(kind, holding.dtype()).unwrap();
    inject(&mut model, method, NAME, holding);
    randomise(&mut model, NAME, 0.3).unwrap();
    (model, Specimen::input(kind, holding.dtype()).unwrap())
}

/// A method on a layer kind in a precision, for messages.
fn named(kind: Kind, method: &Method, holding: Holding) -> String {
    format!("{} in {:?} on {kind:?} in {:?}", method.name, holding.adapter_dtype(), holding.dtype())
}

#[test]
fn a_fresh_adapter_leaves_the_output_unchanged_unless_its_values_are_drawn() {
    for holding in every_holding() {
        for (kind, method) in every_pair() {
            let what = named(kind, &method, holding);
            let mut model = Specimen::new(kind, holding.dtype()).unwrap();
            let x = Specimen::input(kind, holding.dtype()).unwrap();
            let before = model.forward(&x).unwrap();
            inject(&mut model, &method, NAME, holding);
            let after = model.forward(&x).unwrap();
            match method.start {
                Start::Random => assert!(!same_bits(&before, &after), "{what}"),
                Start::Exact => assert!(same_bits(&before, &after), "{what}"),
                Start::Close => assert_close(&before, &after, holding.float.specimen, &what),
            }
        }
    }
}

#[test]
fn an_acting_adapter_changes_the_output_and_keeps_shape_and_dtype() {
    for holding in every_holding() {
        for (kind, method) in every_pair() {
            let (mut model, x) = acting(kind, &method, holding);
            let with = model.forward(&x).unwrap();
            model.disable_adapters();
            let without = model.forward(&x).unwrap();
            assert_eq!((with.dims(), with.dtype()), (without.dims(), holding.dtype()));
            assert!(distance(&with, &without).unwrap() > 0.01, "{}", named(kind, &method, holding));
        }
    }
}

#[test]
fn merge_is_forward_and_unmerge_restores_the_original_bits() {
    for holding in every_holding() {
        let tolerance = holding.float.specimen;
        for (kind, method) in every_pair().filter(|(kind, method)| method.merges(*kind)) {
            let what = named(kind, &method, holding);
            let (mut model, x) = acting(kind, &method, holding);
            let base = model.base_state_dict();
            let forward = model.forward(&x).unwrap();
            model.merge_adapters(&MergeOptions::active().check_finite(true)).unwrap();
            let merged = model.forward(&x).unwrap();
            assert_close(&forward, &merged, tolerance, &what);
            assert!(
                distance(&model.merged_state_dict()["layer.weight"], &base["layer.weight"]).unwrap() > 0.0
            );
            model.unmerge_adapters().unwrap();
            for (key, tensor) in model.merged_state_dict() {
                assert!(same_bits(&tensor, &base[&key]), "{what}: {key}");
            }
            assert!(same_bits(&model.forward(&x).unwrap(), &forward), "{what}");
            model.merge_and_unload(&MergeOptions::active()).unwrap();
            assert!(model.adapter_names().is_empty());
            let unloaded = model.forward(&x).unwrap();
            assert!(same_bits(&unloaded, &merged), "{what}");
        }
    }
}

#[test]
fn what_has_no_merged_form_is_refused_and_says_so() {
    let refused: Vec<_> = every_pair().filter(|(kind, method)| !method.merges(*kind)).collect();
    assert!(!refused.is_empty());
    for (kind, method) in refused {
        let (mut model, x) = acting(kind, &method, Holding::of(DType::F32));
        let before = model.forward(&x).unwrap();
        let error = model.merge_adapters(&MergeOptions::active()).unwrap_err();
        assert!(matches!(error, Error::CannotMerge { .. }), "{} on {kind:?}: {error}", method.name);
        assert!(same_bits(&before, &model.forward(&x).unwrap()), "{} on {kind:?}", method.name);
    }
}

#[test]
fn saving_and_loading_keeps_every_bit() {
    for holding in every_holding() {
        for (kind, method) in every_pair() {
            let what = named(kind, &method, holding);
            let base = Specimen::new(kind, holding.dtype()).unwrap();
            let x = Specimen::input(kind, holding.dtype()).unwrap();
            let mut model = base.clone();
            inject(&mut model, &method, NAME, holding);
            randomise(&mut model, NAME, 0.3).unwrap();
            let folder = tempfile::tempdir().unwrap();
            let saved = model.save_pretrained(folder.path(), NAME);
            if !method.saves {
                assert!(matches!(saved, Err(Error::Unsupported { .. })), "{what}: {saved:?}");
                assert!(
                    std::fs::read_dir(folder.path()).unwrap().next().is_none(),
                    "{what}: a file is there"
                );
                continue;
            }
            saved.unwrap();
            // On the base model, and on the same model where another adapter was.
            let mut others = vec![base];
            if method.weight == WeightChange::Kept {
                let mut cleared = model.clone();
                cleared.delete_adapter(NAME).unwrap();
                others.push(cleared);
            }
            for mut other in others {
                let options = LoadOptions::new().autocast_adapter_dtype(holding.autocasts);
                let report = other.load_adapter_with(folder.path(), NAME, options).unwrap();
                assert_eq!(report.injection.adapted.len(), 1, "{what}");
                assert!(same_bits(&other.forward(&x).unwrap(), &model.forward(&x).unwrap()), "{what}");
                let (saved, loaded) =
                    (model.adapter_state_dict(NAME).unwrap(), other.adapter_state_dict(NAME).unwrap());
                assert!(saved.keys().eq(loaded.keys()), "{what}");
                for (key, tensor) in &saved {
                    assert!(same_bits(tensor, &loaded[key]), "{what}: {key}");
                }
                let again = tempfile::tempdir().unwrap();
                other.save_pretrained(again.path(), NAME).unwrap();
                for file in ["adapter_config.json", "adapter_model.safetensors"] {
                    let bytes = |folder: &tempfile::TempDir| std::fs::read(folder.path().join(file)).unwrap();
                    assert!(bytes(&folder) == bytes(&again), "{what}: {file}");
                }
            }
        }
    }
}

#[test]
fn deleting_an_adapter_gives_the_weight_back() {
    for holding in every_holding() {
        let tolerance = holding.float.specimen;
        for (kind, method) in every_pair() {
            let what = named(kind, &method, holding);
            let mut model = Specimen::new(kind, holding.dtype()).unwrap();
            let original = model.base_state_dict()["layer.weight"].clone();
            inject(&mut model, &method, NAME, holding);
            let changed = model.base_state_dict()["layer.weight"].clone();
            assert_eq!(same_bits(&original, &changed), method.weight == WeightChange::Kept, "{what}");
            randomise(&mut model, NAME, 0.3).unwrap();
            model.delete_adapter(NAME).unwrap();
            let left = model.base_state_dict()["layer.weight"].clone();
            match method.weight {
                WeightChange::Kept => assert!(same_bits(&left, &original), "{what}"),
                WeightChange::Quantised => assert!(same_bits(&left, &changed), "{what}"),
                // Taken out and put back, with a rounding each time.
                WeightChange::TakenFrom => {
                    assert_close(&left, &original, Tolerance::absolute(tolerance.atol / 10.0), &what);
                }
            }
            assert!(!model.module_tree().contains("base_layer"), "{what}");
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_another_seed_others_where_values_are_drawn() {
    for (kind, method) in every_pair() {
        let what = format!("{} on {kind:?}", method.name);
        let base = Specimen::new(kind, DType::F32).unwrap();
        let state = |seed: u64, name: &str| {
            let mut model = base.clone();
            let config = method.config_for(Target { layers: &["layer"], seed });
            model.inject_adapter(&*config, name).unwrap();
            let state = model.adapter_state_dict(name).unwrap();
            state.values().flat_map(|tensor| bits(tensor).unwrap()).collect::<Vec<u64>>()
        };
        let first = state(7, "a");
        assert!(first == state(7, "a"), "{what}: the same seed");
        assert_eq!(first != state(8, "a"), method.draws != Draws::Nothing, "{what}: another seed");
        assert_eq!(first != state(7, "b"), method.draws == Draws::BySeedAndName, "{what}: another name");
    }
}

#[test]
fn every_method_is_under_the_laws_by_a_name_of_its_own() {
    let names: BTreeSet<&str> = METHODS.iter().map(|method| method.name).collect();
    assert_eq!(names.len(), METHODS.len());
    assert!(METHODS.iter().all(|method| !method.kinds.is_empty()));
}

#[test]
fn dropout_acts_only_in_training_mode() {
    for (kind, method) in every_pair() {
        let what = format!("{} on {kind:?}", method.name);
        let (mut model, x) = acting(kind, &method, Holding::of(DType::F32));
        let output = |model: &Specimen| model.forward(&x).unwrap();
        let start = output(&model);
        assert!(same_bits(&start, &output(&model)), "{what}: a model starts in evaluation mode");
        model.train();
        let (first, second) = (output(&model), output(&model));
        assert_eq!(same_bits(&first, &second), !method.drops(kind), "{what}: every call draws a new mask");
        assert_eq!(same_bits(&first, &start), !method.drops(kind), "{what}");
        model.eval();
        assert!(same_bits(&output(&model), &start), "{what}");
    }
}

#[test]
fn a_second_injection_of_a_name_is_refused_and_changes_nothing() {
    for (kind, method) in every_pair() {
        let (mut model, x) = acting(kind, &method, Holding::of(DType::F32));
        let (tree, output) = (model.module_tree(), bits(&model.forward(&x).unwrap()).unwrap());
        let error = model.inject_adapter(&*method.config(), NAME).unwrap_err();
        assert!(
            matches!(error, Error::Plan { .. })
                && error.to_string().contains("already has an adapter named `default`")
        );
        assert_eq!(model.module_tree(), tree);
        assert!(bits(&model.forward(&x).unwrap()).unwrap() == output);
    }
}
