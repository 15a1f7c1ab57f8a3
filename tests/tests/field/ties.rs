//! `ensure_weight_tying`: one adapter on an embedding and on the output layer with its weight.

use crate::case::Case;

#[test]
fn adapters_that_are_tied_load_as_peft_loads_them() {
    for name in ["tied_copy", "tied_embedding", "tied_head"] {
        let case = Case::open(name);
        case.check(&case.loaded(case.folder().path(), "chat").0, "loaded");
    }
}
