//! LoRA adapters on layers of every kind and size.

use candle_core::DType;
use peft_runtime::prelude::*;
use peft_tests::tensors::bits;
use proptest::collection::vec;
use proptest::strategy::Strategy;

use super::layer_cases::{Case, Model, activate, cases, forward};
use crate::{assert_near, check};

#[test]
fn the_output_with_several_adapters_is_that_of_the_dense_sum() {
    check(cases(), |case| {
        let (_, model, x) = case.models();
        let all: Vec<usize> = (0..case.adapters.len()).collect();
        let output = forward(&model, &x);
        assert_eq!(output.dtype(), case.dtype);
        assert_near(&output, &case.by_hand(&model, &all, &x), case.dtype, "the output");
    });
}

#[test]
fn merging_is_the_forward_pass_and_unmerging_restores_the_bits() {
    check(cases(), |case| {
        let (base, mut model, x) = case.models();
        let output = forward(&model, &x);
        model.merge_adapters(&MergeOptions::active().check_finite(true)).unwrap();
        assert_near(&forward(&model, &x), &output, case.dtype, "the output when merged");
        model.unmerge_adapters().unwrap();
        assert_eq!(bits(&forward(&model, &x)).unwrap(), bits(&output).unwrap());
        for (key, tensor) in model.merged_state_dict() {
            assert_eq!(bits(&tensor).unwrap(), bits(&base.base_state_dict()[&key]).unwrap(), "{key}");
        }
    });
}

#[test]
fn saving_and_loading_keeps_the_bits() {
    check(cases(), |case| {
        let (base, model, x) = case.models();
        let folder = tempfile::tempdir().unwrap();
        let mut other = base;
        for name in case.names() {
            model.save_pretrained(folder.path(), &name).unwrap();
            other.load_adapter(folder.path(), &name).unwrap();
        }
        activate(&mut other, &case.names());
        assert_eq!(bits(&forward(&other, &x)).unwrap(), bits(&forward(&model, &x)).unwrap());
    });
}

#[test]
fn exact_combinations_are_the_weighted_sums_of_the_updates() {
    // Rank stabilisation of the first part is refused: its scaling would be taken over.
    let plain = cases().prop_map(|mut case| {
        case.adapters.iter_mut().for_each(|lora| lora.rslora = false);
        case
    });
    check(plain, |case| {
        let (_, mut model, _) = case.models();
        let names = case.names();
        let parts: Vec<(&str, f64)> =
            names.iter().map(String::as_str).zip(case.adapters.iter().map(|lora| lora.weight)).collect();
        let update = |model: &Model, name: &str, scaling| case.update(model, name, scaling).0;
        let terms = case.adapters.iter().zip(&names);
        let terms = terms.map(|(lora, name)| update(&model, name, lora.weight * Case::scaling(lora)));
        let expected = terms.reduce(|sum, term| (sum + term).unwrap()).unwrap();
        let matrix = [case.outputs, expected.elem_count() / case.outputs];
        let full = CombineOptions::new(CombinationType::Svd).with_svd_rank(matrix[0].min(matrix[1]));
        for options in [CombineOptions::new(CombinationType::Cat), full] {
            model.add_weighted_adapter(&parts, "sum", &options).unwrap();
            let sum = update(&model, "sum", 1.0);
            // The factors are in f32, but for layers in f64.
            let dtype = if case.dtype == DType::F64 { DType::F64 } else { DType::F32 };
            assert_near(&sum, &expected, dtype, &format!("{options:?}"));
            model.delete_adapter("sum").unwrap();
        }
    });
}

#[test]
fn each_row_of_a_mixed_batch_is_that_of_a_batch_with_one_adapter() {
    check((cases(), vec(0..5usize, 4)), |(case, choice)| {
        let (_, mut model, x) = case.models();
        // 0 is the base, and so is what is over the number of adapters.
        let picked = |row: usize| choice[row].checked_sub(1).filter(|index| *index < case.adapters.len());
        let rows: Vec<String> = (0..case.batch)
            .map(|row| picked(row).map_or_else(|| "__base__".to_owned(), Case::name))
            .collect();
        let mixed = model.with_adapter_rows(&rows, |model| forward(model, &x)).unwrap();
        for row in 0..case.batch {
            let active: Vec<usize> = picked(row).into_iter().collect();
            activate(&mut model, &active.iter().map(|index| Case::name(*index)).collect::<Vec<_>>());
            let alone = forward(&model, &x.narrow(0, row, 1).unwrap());
            let what = format!("row {row} of {rows:?}");
            assert_near(&mixed.narrow(0, row, 1).unwrap(), &alone, case.dtype, &what);
            let by_hand = case.by_hand(&model, &active, &x).narrow(0, row, 1).unwrap();
            assert_near(&alone, &by_hand, case.dtype, &what);
        }
    });
}
