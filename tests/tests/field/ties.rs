//! `ensure_weight_tying`: one adapter on an embedding and on the output layer with its weight.

use peft_runtime::prelude::*;

use crate::case::Case;

#[test]
fn a_copy_that_is_tied_loads_as_peft_loads_it() {
    let case = Case::open("tied_copy");
    case.check(&case.loaded(case.folder().path(), "chat").0, "loaded");
}

/// Training keeps the factors of both layers equal; a file in which they differ is not what it says.
#[test]
fn tied_factors_that_differ_are_refused() {
    for name in ["tied_embedding", "tied_head"] {
        let case = Case::open(name);
        let error = case.model().load_adapter(case.folder().path(), "chat").unwrap_err().chain();
        assert!(error.contains("lm_head.lora_") && error.contains("ensure_weight_tying"), "{error}");
    }
}
