//! Every method on layers of every kind and size.

use candle_core::{DType, Tensor};
use peft_runtime::prelude::*;
use peft_tests::float_types::{FLOAT_TYPES, FloatType};
use peft_tests::methods::{Method, every_pair};
use peft_tests::specimen::{Kind, Sizes, Specimen};
use peft_tests::tensors::{randomise, same_bits};
use proptest::sample::select;
use proptest::strategy::Strategy;

use crate::{assert_near, check_many};

/// A method on a layer.
#[derive(Clone, Debug)]
struct Case {
    kind: Kind,
    method: Method,
    float: FloatType,
    sizes: Sizes,
}

fn cases() -> impl Strategy<Value = Case> {
    let pairs = select(every_pair().collect::<Vec<_>>());
    // Even sizes, which a convolution in two groups needs.
    let sizes = (1..6usize, 1..6usize);
    (pairs, select(FLOAT_TYPES.to_vec()), sizes).prop_map(|((kind, method), float, (inputs, outputs))| Case {
        kind,
        method,
        float,
        sizes: Sizes { inputs: 2 * inputs, outputs: 2 * outputs },
    })
}

impl Case {
    fn base(&self) -> Specimen {
        Specimen::with_sizes(self.kind, self.float.dtype, self.sizes).unwrap()
    }

    fn input(&self) -> Tensor {
        Specimen::input_of(self.kind, self.float.dtype, self.sizes).unwrap()
    }

    /// A model with an acting adapter.
    fn adapted(&self, base: &Specimen) -> Specimen {
        let mut model = base.clone();
        model.inject_adapter(&*self.method.config(), "default").unwrap();
        randomise(&mut model, "default", 0.3).unwrap();
        model
    }

    fn dtype(&self) -> DType {
        self.float.dtype
    }
}

#[test]
fn merging_any_method_is_its_forward_pass_and_unmerging_restores_the_bits() {
    check_many(cases(), |case| {
        if !case.method.merges(case.kind) {
            return;
        }
        let (mut model, x) = (case.adapted(&case.base()), case.input());
        let (base, output) = (model.base_state_dict(), model.forward(&x).unwrap());
        model.merge_adapters(&MergeOptions::active().check_finite(true)).unwrap();
        assert_near(&model.forward(&x).unwrap(), &output, case.dtype(), &format!("{case:?}"));
        model.unmerge_adapters().unwrap();
        assert!(same_bits(&model.forward(&x).unwrap(), &output), "{case:?}");
        for (key, tensor) in model.merged_state_dict() {
            assert!(same_bits(&tensor, &base[&key]), "{case:?}: {key}");
        }
    });
}

#[test]
fn saving_and_loading_any_method_keeps_the_bits() {
    check_many(cases(), |case| {
        if !case.method.saves {
            return;
        }
        let (base, x) = (case.base(), case.input());
        let (model, mut other) = (case.adapted(&base), base);
        let folder = tempfile::tempdir().unwrap();
        model.save_pretrained(folder.path(), "default").unwrap();
        other.load_adapter(folder.path(), "default").unwrap();
        assert!(same_bits(&other.forward(&x).unwrap(), &model.forward(&x).unwrap()), "{case:?}");
    });
}
