//! What holds for every adapter method on every layer kind.

use candle_core::{DType, Tensor};
use peft_runtime::Error;
use peft_runtime::prelude::*;
use peft_tests::methods::{Method, every_pair};
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

#[test]
fn a_fresh_adapter_leaves_the_output_unchanged() {
    for dtype in DTYPES {
        for (kind, method) in every_pair() {
            let mut model = Specimen::new(kind, dtype).unwrap();
            let x = Specimen::input(kind, dtype).unwrap();
            let before = bits(&model.forward(&x).unwrap()).unwrap();
            model.inject_adapter(&*method.config, NAME).unwrap();
            let after = bits(&model.forward(&x).unwrap()).unwrap();
            assert!(before == after, "{} on {kind:?} in {dtype:?}", method.name);
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
        for (kind, method) in every_pair().into_iter().filter(|(kind, _)| kind.merges()) {
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
                assert!(bits(&tensor).unwrap() == bits(&base[&key]).unwrap(), "{what}: {key}");
            }
            assert!(bits(&model.forward(&x).unwrap()).unwrap() == bits(&forward).unwrap(), "{what}");
            model.merge_and_unload(&MergeOptions::active()).unwrap();
            assert!(model.adapter_names().is_empty());
            assert!(bits(&model.forward(&x).unwrap()).unwrap() == bits(&merged).unwrap(), "{what}");
        }
    }
}

#[test]
fn saving_and_loading_keeps_every_bit() {
    for dtype in [DType::F32, DType::F64, DType::BF16] {
        for (kind, method) in every_pair() {
            let what = format!("{} on {kind:?} in {dtype:?}", method.name);
            let (model, x) = acting(kind, &method, dtype);
            let folder = tempfile::tempdir().unwrap();
            model.save_pretrained(folder.path(), NAME).unwrap();
            let mut other = model.clone();
            other.delete_adapter(NAME).unwrap();
            let report = other.load_adapter(folder.path(), NAME).unwrap();
            assert_eq!(report.injection.adapted.len(), 1, "{what}");
            assert!(
                bits(&other.forward(&x).unwrap()).unwrap() == bits(&model.forward(&x).unwrap()).unwrap(),
                "{what}"
            );
            let (saved, loaded) =
                (model.adapter_state_dict(NAME).unwrap(), other.adapter_state_dict(NAME).unwrap());
            assert!(saved.keys().eq(loaded.keys()), "{what}");
            for (key, tensor) in &saved {
                assert!(bits(tensor).unwrap() == bits(&loaded[key]).unwrap(), "{what}: {key}");
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
fn gradients_are_the_difference_quotient() {
    for (kind, method) in every_pair() {
        let what = format!("{} on {kind:?}", method.name);
        let (model, x) = acting(kind, &method, DType::F64);
        let loss = || model.forward(&x).unwrap().sqr().unwrap().sum_all().unwrap();
        let grads = loss().backward().unwrap();
        for (name, var) in model.trainable_parameters() {
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
    for kind in Kind::ALL.into_iter().filter(|kind| !kind.is_embedding()) {
        let method =
            every_pair().into_iter().find(|(k, method)| *k == kind && method.name == "lora with dropout");
        let (mut model, x) = acting(kind, &method.unwrap().1, DType::F32);
        let output = |model: &Specimen| bits(&model.forward(&x).unwrap()).unwrap();
        assert!(output(&model) == output(&model), "a model starts in evaluation mode");
        model.train();
        assert!(output(&model) != output(&model), "{kind:?}: every call draws a new mask");
        model.eval();
        assert!(output(&model) == output(&model), "{kind:?}");
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

#[test]
fn several_adapters_add_up_and_a_clone_shares_their_values() {
    for (kind, method) in every_pair() {
        let what = format!("{} on {kind:?}", method.name);
        let (mut model, x) = acting(kind, &method, DType::F64);
        model.inject_adapter(&*method.config, "other").unwrap();
        randomise(&mut model, "other", 0.3).unwrap();
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
