//! Adapters on a base model in half precision.

use candle_core::{DType, Tensor};
use peft_runtime::prelude::*;
use peft_tests::close::{Tolerance, assert_close};
use peft_tests::specimen::{Kind, Specimen};
use peft_tests::tensors::{randomise, same_bits};

const HALVES: [DType; 2] = [DType::BF16, DType::F16];

fn lora() -> LoraConfig {
    LoraConfig::new(4, 6.0).with_targets(["layer"])
}

/// A linear specimen with acting adapters, each with whether it is held in f32.
fn model(dtype: DType, adapters: &[(&str, bool)]) -> Specimen {
    let mut model = Specimen::new(Kind::Linear, dtype).unwrap();
    for (name, autocasts) in adapters {
        let options = InjectOptions::new().autocast_adapter_dtype(*autocasts);
        model.inject_adapter_with(&lora(), name, options).unwrap();
        randomise(&mut model, name, 0.3).unwrap();
    }
    model
}

/// The dtypes of an adapter's tensors, which are all the same.
fn held(model: &Specimen, name: &str) -> DType {
    let dtypes: Vec<DType> = model.adapter_state_dict(name).unwrap().values().map(Tensor::dtype).collect();
    assert!(dtypes.iter().all(|dtype| *dtype == dtypes[0]), "{dtypes:?}");
    dtypes[0]
}

#[test]
fn an_adapter_is_held_as_asked_whatever_its_file_has() {
    for dtype in HALVES {
        let folder = tempfile::tempdir().unwrap();
        for written in [true, false] {
            let source = model(dtype, &[("default", written)]);
            source.save_pretrained(folder.path(), "default").unwrap();
            let in_file = if written { DType::F32 } else { dtype };
            assert_eq!(held(&source, "default"), in_file);
            for (autocasts, expected) in [(true, DType::F32), (false, dtype)] {
                let mut other = Specimen::new(Kind::Linear, dtype).unwrap();
                let options = LoadOptions::new().autocast_adapter_dtype(autocasts);
                other.load_adapter_with(folder.path(), "default", options).unwrap();
                assert_eq!(held(&other, "default"), expected);
                let rounded = other.adapter_state_dict("default").unwrap();
                for (key, tensor) in source.adapter_state_dict("default").unwrap() {
                    assert!(same_bits(&rounded[&key], &tensor.to_dtype(expected).unwrap()), "{key}");
                }
            }
        }
    }
}

#[test]
fn on_full_precision_the_option_changes_nothing() {
    for dtype in [DType::F32, DType::F64] {
        assert_eq!(held(&model(dtype, &[("default", false)]), "default"), dtype);
    }
}

#[test]
fn a_swapped_in_adapter_is_held_as_the_one_before() {
    for dtype in HALVES {
        let folder = tempfile::tempdir().unwrap();
        model(dtype, &[("default", true)]).save_pretrained(folder.path(), "default").unwrap();
        for (autocasts, expected) in [(true, DType::F32), (false, dtype)] {
            let mut model = model(dtype, &[("default", autocasts)]);
            model.hotswap_adapter(folder.path(), "default").unwrap();
            assert_eq!(held(&model, "default"), expected);
        }
    }
}

#[test]
fn a_sum_is_held_in_f32_and_trains() {
    for dtype in HALVES {
        for (first, second) in [(true, true), (true, false), (false, false)] {
            for combination in [CombinationType::Linear, CombinationType::Cat] {
                let mut model = model(dtype, &[("first", first), ("second", second)]);
                let options = CombineOptions::new(combination);
                model.add_weighted_adapter(&[("first", 0.7), ("second", 0.4)], "sum", &options).unwrap();
                assert_eq!(held(&model, "sum"), DType::F32);
                model.set_adapter("sum").unwrap();
                model.set_trainable("sum", true).unwrap();
                let x = Specimen::input(Kind::Linear, dtype).unwrap();
                let loss = model.forward(&x).unwrap().to_dtype(DType::F32).unwrap().sum_all().unwrap();
                let grads = loss.backward().unwrap();
                assert!(model.trainable_parameters().iter().all(|(_, var)| grads.get(var).is_some()));
            }
        }
    }
}

#[test]
fn several_merged_adapters_are_rounded_once() {
    for dtype in HALVES {
        let mut model = model(dtype, &[("first", true), ("second", false)]);
        let weight = model.base_state_dict()["layer.weight"].to_dtype(DType::F32).unwrap();
        let update = |name: &str| {
            let state = model.adapter_state_dict(name).unwrap();
            let part = |end: &str| {
                let key = format!("base_model.model.layer.{end}.weight");
                state[&key].to_dtype(DType::F32).unwrap()
            };
            (part("lora_B").matmul(&part("lora_A")).unwrap() * 1.5).unwrap()
        };
        let sum = ((weight + update("first")).unwrap() + update("second")).unwrap();
        model.set_adapters(&["first", "second"]).unwrap();
        model.merge_adapters(&MergeOptions::active()).unwrap();
        let merged = &model.merged_state_dict()["layer.weight"];
        assert_eq!(merged.dtype(), dtype);
        let rounded = sum.to_dtype(dtype).unwrap();
        let same = merged.eq(&rounded).unwrap().to_dtype(DType::F32).unwrap().mean_all().unwrap();
        // Products of f32 in another order may end on the other side of the middle between two numbers.
        assert!(same.to_scalar::<f32>().unwrap() > 0.9);
        let ulp = if dtype == DType::BF16 { 2f64.powi(-7) } else { 2f64.powi(-10) };
        assert_close(merged, &rounded, Tolerance { atol: 1e-6, rtol: ulp }, format!("{dtype:?}"));
    }
}

#[test]
fn activations_in_f32_run_on_a_base_model_in_half_precision() {
    for dtype in HALVES {
        for kind in [Kind::Linear, Kind::Transposed, Kind::Conv1d, Kind::Conv2d, Kind::GroupedConv2d] {
            let mut narrow = Specimen::new(kind, dtype).unwrap();
            let mut wide = Specimen::new(kind, DType::F32).unwrap();
            wide.load_base_state_dict(&narrow.base_state_dict()).unwrap();
            for model in [&mut narrow, &mut wide] {
                model.inject_adapter(&lora(), "default").unwrap();
            }
            randomise(&mut narrow, "default", 0.3).unwrap();
            let state = narrow.adapter_state_dict("default").unwrap();
            wide.load_adapter_state_dict(&state, "default").unwrap();
            let x = Specimen::input(kind, DType::F32).unwrap();
            let (found, expected) = (narrow.forward(&x).unwrap(), wide.forward(&x).unwrap());
            assert_eq!(found.dtype(), DType::F32);
            assert_close(&found, &expected, Tolerance::absolute(1e-4), format!("{kind:?} in {dtype:?}"));
        }
    }
}
