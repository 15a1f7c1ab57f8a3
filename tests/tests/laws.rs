//! What holds for every adapter method on every layer kind.

use candle_core::{DType, Tensor, Var};
use peft_runtime::Error;
use peft_runtime::prelude::*;
use peft_tests::methods::{Method, Start, Weight, every_pair};
use peft_tests::specimen::{Kind, Specimen, bits, distance, randomise};

const NAME: &str = "default";

/// A specimen with a fresh adapter, and an input for it.
fn injected(kind: Kind, method: &Method, dtype: DType) -> (Specimen, Tensor) {
    let mut model = Specimen::new(kind, dtype).unwrap();
    model.inject_adapter(&*method.config, NAME).unwrap();
    (model, Specimen::input(kind, dtype).unwrap())
}

/// The same with random values in the adapter, so that it acts.
fn acting(kind: Kind, method: &Method, dtype: DType) -> (Specimen, Tensor) {
    let (mut model, x) = injected(kind, method, dtype);
    randomise(&mut model, NAME, 0.3).unwrap();
    (model, x)
}

/// How far two ways to the same output of a [`Specimen`] may be apart.
fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => 1e-6,
        DType::F32 => 1e-4,
        // A rounding of values around 10 to 8 (bf16) or 11 (f16) bits, a few times over.
        DType::BF16 => 0.3,
        _ => 0.04,
    }
}

const DTYPES: [DType; 4] = [DType::F32, DType::F64, DType::BF16, DType::F16];

fn same(a: &Tensor, b: &Tensor) -> bool {
    bits(a).unwrap() == bits(b).unwrap()
}

#[test]
fn a_fresh_adapter_leaves_the_output_unchanged() {
    for dtype in DTYPES {
        for (kind, method) in every_pair() {
            let what = format!("{} on {kind:?} in {dtype:?}", method.name);
            let mut model = Specimen::new(kind, dtype).unwrap();
            let x = Specimen::input(kind, dtype).unwrap();
            let before = model.forward(&x).unwrap();
            model.inject_adapter(&*method.config, NAME).unwrap();
            let after = model.forward(&x).unwrap();
            match (method.start, method.trains_biases) {
                // A bias that trains is added after the product and not before it, which may round the other way.
                (Start::Exact, false) => assert!(same(&before, &after), "{what}"),
                _ => assert!(distance(&before, &after).unwrap() < tolerance(dtype), "{what}"),
            }
        }
    }
}

#[test]
fn an_acting_adapter_changes_the_output_and_keeps_shape_and_dtype() {
    for dtype in DTYPES {
        for (kind, method) in every_pair() {
            let (mut model, x) = acting(kind, &method, dtype);
            let with = model.forward(&x).unwrap();
            model.disable_adapters();
            let without = model.forward(&x).unwrap();
            assert_eq!((with.dims(), with.dtype()), (without.dims(), dtype));
            assert!(distance(&with, &without).unwrap() > 0.01, "{} on {kind:?} in {dtype:?}", method.name);
        }
    }
}

#[test]
fn merge_is_forward_and_unmerge_restores_the_original_bits() {
    for dtype in DTYPES {
        for (kind, method) in every_pair().into_iter().filter(|(_, method)| method.merges) {
            let what = format!("{} on {kind:?} in {dtype:?}", method.name);
            let (mut model, x) = acting(kind, &method, dtype);
            let base = model.base_state_dict();
            let forward = model.forward(&x).unwrap();
            model.merge_adapters(&MergeOptions::active().check_finite(true)).unwrap();
            let merged = model.forward(&x).unwrap();
            assert!(distance(&forward, &merged).unwrap() < tolerance(dtype), "{what}");
            assert!(
                distance(&model.merged_state_dict()["layer.weight"], &base["layer.weight"]).unwrap() > 0.0
            );
            model.unmerge_adapters().unwrap();
            for (key, tensor) in model.merged_state_dict() {
                assert!(same(&tensor, &base[&key]), "{what}: {key}");
            }
            assert!(same(&model.forward(&x).unwrap(), &forward), "{what}");
            model.merge_and_unload(&MergeOptions::active()).unwrap();
            assert!(model.adapter_names().is_empty());
            let unloaded = model.forward(&x).unwrap();
            if method.trains_biases {
                // Constant again, biases go into the product, which may round the other way.
                assert!(distance(&unloaded, &merged).unwrap() < tolerance(dtype), "{what}");
            } else {
                assert!(same(&unloaded, &merged), "{what}");
            }
        }
    }
}

#[test]
fn what_has_no_merged_form_is_refused_and_says_so() {
    let refused: Vec<_> = every_pair().into_iter().filter(|(_, method)| !method.merges).collect();
    assert!(!refused.is_empty());
    for (kind, method) in refused {
        let (mut model, x) = acting(kind, &method, DType::F32);
        let before = model.forward(&x).unwrap();
        let error = model.merge_adapters(&MergeOptions::active()).unwrap_err();
        assert!(matches!(error, Error::CannotMerge { .. }), "{} on {kind:?}: {error}", method.name);
        assert!(same(&before, &model.forward(&x).unwrap()), "{} on {kind:?}", method.name);
    }
}

#[test]
fn saving_and_loading_keeps_every_bit() {
    for dtype in [DType::F32, DType::F64, DType::BF16] {
        for (kind, method) in every_pair() {
            let what = format!("{} on {kind:?} in {dtype:?}", method.name);
            let base = Specimen::new(kind, dtype).unwrap();
            let x = Specimen::input(kind, dtype).unwrap();
            let mut model = base.clone();
            model.inject_adapter(&*method.config, NAME).unwrap();
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
            if method.weight == Weight::Kept {
                let mut cleared = model.clone();
                cleared.delete_adapter(NAME).unwrap();
                others.push(cleared);
            }
            for mut other in others {
                let report = other.load_adapter(folder.path(), NAME).unwrap();
                assert_eq!(report.injection.adapted.len(), 1, "{what}");
                assert!(same(&other.forward(&x).unwrap(), &model.forward(&x).unwrap()), "{what}");
                let (saved, loaded) =
                    (model.adapter_state_dict(NAME).unwrap(), other.adapter_state_dict(NAME).unwrap());
                assert!(saved.keys().eq(loaded.keys()), "{what}");
                for (key, tensor) in &saved {
                    assert!(same(tensor, &loaded[key]), "{what}: {key}");
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
    for dtype in [DType::F32, DType::F64, DType::BF16] {
        for (kind, method) in every_pair() {
            let what = format!("{} on {kind:?} in {dtype:?}", method.name);
            let mut model = Specimen::new(kind, dtype).unwrap();
            let original = model.base_state_dict()["layer.weight"].clone();
            model.inject_adapter(&*method.config, NAME).unwrap();
            let changed = model.base_state_dict()["layer.weight"].clone();
            assert_eq!(same(&original, &changed), method.weight == Weight::Kept, "{what}");
            randomise(&mut model, NAME, 0.3).unwrap();
            model.delete_adapter(NAME).unwrap();
            let left = model.base_state_dict()["layer.weight"].clone();
            match method.weight {
                Weight::Kept => assert!(same(&left, &original), "{what}"),
                Weight::Quantised => assert!(same(&left, &changed), "{what}"),
                // Taken out and put back, with a rounding each time.
                Weight::TakenFrom => {
                    assert!(distance(&left, &original).unwrap() < tolerance(dtype) / 10.0, "{what}");
                }
            }
            assert!(!model.module_tree().contains("base_layer"), "{what}");
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_another_seed_others() {
    for kind in Kind::ALL {
        let base = Specimen::new(kind, DType::F32).unwrap();
        let state = |seed: u64, name: &str| {
            let mut model = base.clone();
            let config =
                LoraConfig::new(4, 4.0).with_init(LoraInit::Random).with_targets(["layer"]).with_seed(seed);
            model.inject_adapter(&config, name).unwrap();
            let state = model.adapter_state_dict(name).unwrap();
            state.values().flat_map(|tensor| bits(tensor).unwrap()).collect::<Vec<u64>>()
        };
        assert_eq!(state(7, "a"), state(7, "a"), "{kind:?}");
        assert_ne!(state(7, "a"), state(8, "a"), "{kind:?}");
        assert_ne!(state(7, "a"), state(7, "b"), "{kind:?}");
    }
}

#[test]
fn gradients_reach_every_trainable_tensor_and_nothing_else() {
    for (kind, method) in every_pair() {
        let what = format!("{} on {kind:?}", method.name);
        let (mut model, x) = acting(kind, &method, DType::F32);
        model.train();
        let loss = model.forward(&x).unwrap().sqr().unwrap().sum_all().unwrap();
        let grads = loss.backward().unwrap();
        let parameters = model.trainable_parameters();
        assert!(!parameters.is_empty(), "{what}");
        for (name, var) in &parameters {
            let grad = grads.get(var).unwrap_or_else(|| panic!("{what}: `{name}` has no gradient"));
            assert_eq!(grad.dims(), var.dims(), "{what}: {name}");
            assert!(
                distance(grad, &grad.zeros_like().unwrap()).unwrap() > 0.0,
                "{what}: `{name}` has a zero gradient"
            );
        }
        assert_eq!(grads.get_ids().count(), parameters.len(), "{what}: something else has a gradient");
    }
}

#[test]
fn the_input_gets_its_gradient_and_no_constant_keeps_one() {
    for (kind, method) in every_pair().into_iter().filter(|(kind, _)| !kind.is_embedding()) {
        let what = format!("{} on {kind:?}", method.name);
        let (mut model, x) = acting(kind, &method, DType::F32);
        model.train();
        let x = Var::from_tensor(&x).unwrap();
        let loss = model.forward(&x).unwrap().sqr().unwrap().sum_all().unwrap();
        let grads = loss.backward().unwrap();
        let grad = grads.get(&x).unwrap_or_else(|| panic!("{what}: the input has no gradient"));
        assert!(distance(grad, &grad.zeros_like().unwrap()).unwrap() > 0.0, "{what}");
        let wanted = model.trainable_parameters().len() + 1;
        assert_eq!(grads.get_ids().count(), wanted, "{what}: something else has a gradient");
    }
}

#[test]
fn gradients_are_the_difference_quotient() {
    for (kind, method) in every_pair() {
        let what = format!("{} on {kind:?}", method.name);
        let (model, x) = acting(kind, &method, DType::F64);
        let loss = || model.forward(&x).unwrap().sqr().unwrap().sum_all().unwrap();
        let grads = loss().backward().unwrap();
        let is_exact = |name: &str| !method.constant_norm || name.contains("magnitude");
        let parameters = model.trainable_parameters();
        assert!(parameters.iter().any(|(name, _)| is_exact(name)), "{what}");
        for (name, var) in parameters.into_iter().filter(|(name, _)| is_exact(name)) {
            let start = var.copy().unwrap();
            let direction = Tensor::randn(0f64, 1., var.shape(), var.device()).unwrap();
            let direction = if kind.is_embedding() && name.contains("embedding_A") {
                // The row for padding has no gradient although it acts.
                let keeps: Vec<f64> = (0..11).map(|row| if row == 3 { 0.0 } else { 1.0 }).collect();
                direction.broadcast_mul(&Tensor::new(keeps, var.device()).unwrap()).unwrap()
            } else {
                direction
            };
            let at = |step: f64| {
                var.set(&(&start + (&direction * step).unwrap()).unwrap()).unwrap();
                loss().to_scalar::<f64>().unwrap()
            };
            let quotient = (at(1e-5) - at(-1e-5)) / 2e-5;
            var.set(&start).unwrap();
            let predicted = (grads.get(&var).unwrap() * &direction).unwrap().sum_all().unwrap();
            let predicted = predicted.to_scalar::<f64>().unwrap();
            assert!(
                (quotient - predicted).abs() < 1e-4 * predicted.abs().max(1.0),
                "{what}: {name}: {quotient} {predicted}"
            );
        }
    }
}

#[test]
fn dropout_acts_in_training_mode_alone() {
    for (kind, method) in every_pair() {
        let what = format!("{} on {kind:?}", method.name);
        let (mut model, x) = acting(kind, &method, DType::F32);
        let output = |model: &Specimen| model.forward(&x).unwrap();
        let start = output(&model);
        assert!(same(&start, &output(&model)), "{what}: a model starts in evaluation mode");
        model.train();
        let (first, second) = (output(&model), output(&model));
        assert_eq!(same(&first, &second), !method.drops, "{what}: every call draws a new mask");
        assert_eq!(same(&first, &start), !method.drops, "{what}");
        model.eval();
        assert!(same(&output(&model), &start), "{what}");
    }
}

#[test]
fn a_second_injection_of_a_name_is_refused_and_changes_nothing() {
    for (kind, method) in every_pair() {
        let (mut model, x) = acting(kind, &method, DType::F32);
        let (tree, output) = (model.module_tree(), bits(&model.forward(&x).unwrap()).unwrap());
        let error = model.inject_adapter(&*method.config, NAME).unwrap_err();
        assert!(
            matches!(error, Error::Plan { .. })
                && error.to_string().contains("already has an adapter named `default`")
        );
        assert_eq!(model.module_tree(), tree);
        assert!(bits(&model.forward(&x).unwrap()).unwrap() == output);
    }
}

/// A specimen with two acting adapters of a method, for those that allow it.
fn pairs(dtype: DType) -> impl Iterator<Item = (Method, String, Specimen, Tensor)> {
    every_pair().into_iter().filter(|(_, method)| method.pairs).map(move |(kind, method)| {
        let what = format!("{} on {kind:?} in {dtype:?}", method.name);
        let (mut model, x) = acting(kind, &method, dtype);
        model.inject_adapter(&*method.config, "other").unwrap();
        randomise(&mut model, "other", 0.3).unwrap();
        (method, what, model, x)
    })
}

#[test]
fn several_adapters_add_up_and_a_clone_shares_their_values() {
    for (_, what, mut model, x) in pairs(DType::F64).filter(|(method, ..)| method.additive) {
        let mut output = |names: &[&str]| {
            model.set_adapters(names).unwrap();
            model.forward(&x).unwrap()
        };
        let (first, second, both) = (output(&[NAME]), output(&["other"]), output(&[NAME, "other"]));
        let none = output(&[]);
        let sum = ((first + second).unwrap() - none).unwrap();
        assert!(distance(&sum, &both).unwrap() < 1e-6, "{what}");
        let copy = model.clone();
        model.set_adapter("other").unwrap();
        assert_eq!(
            copy.active_adapters(),
            Vec::<String>::new(),
            "{what}: a clone has its own active adapters"
        );
    }
}

#[test]
fn several_adapters_merge_to_what_they_compute_one_after_the_other() {
    for (_, what, mut model, x) in pairs(DType::F64).filter(|(method, ..)| method.merges) {
        for order in [[NAME, "other"], ["other", NAME]] {
            model.set_adapters(&order).unwrap();
            let forward = model.forward(&x).unwrap();
            model.merge_adapters(&MergeOptions::active()).unwrap();
            let merged = model.forward(&x).unwrap();
            assert!(distance(&forward, &merged).unwrap() < 1e-6, "{what}: {order:?}");
            model.unmerge_adapters().unwrap();
        }
    }
}
