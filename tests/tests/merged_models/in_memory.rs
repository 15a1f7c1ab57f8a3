//! Adapters merged into a model in memory, and written as the documentation says.

use peft_tests::close::{Tolerance, assert_close};
use serde_json::json;

use crate::fixture::{Case, Language, read_json, write};

const TOLERANCE: Tolerance = Tolerance::absolute(1e-4);

#[test]
fn a_merged_state_dict_has_head_and_embeddings_and_needs_a_config_that_says_so() {
    for name in
        ["llama_tied_saved_embedding", "llama_tied_head", "gpt2_embedding", "gpt2_head", "llama_tied_tokens"]
    {
        let case = Case::read(name);
        let mut model = Language::open(case.base.path());
        model.load_adapter(case.adapter.path());
        assert_close(&model.logits(&case.ids()), &case.logits(), TOLERANCE, name);
        let state = model.merged_state_dict();
        assert!(state.contains_key("lm_head.weight"), "{name}");
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "model.safetensors", &state);
        let mut config = read_json(&case.base.path().join("config.json"));
        config["tie_word_embeddings"] = json!(false);
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        let logits = Language::open(folder.path()).logits(&case.ids());
        assert_close(&logits, &case.logits(), TOLERANCE, name);
    }
}
