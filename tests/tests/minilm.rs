//! BERT on real weights, compared with transformers.
//!
//! The weights are not part of the repository: `scripts/fetch-assets.sh DIR` downloads them, and `PEFT_ASSETS=DIR` says where
//! they are. Without that variable the test says that it was skipped.

use std::path::PathBuf;

use candle_core::{DType, Device};
use peft_runtime::ModelWeights;
use peft_runtime::models::bert::BertModel;
use peft_tests::close::{Tolerance, assert_close};

/// The folder with the assets, if the environment names it.
#[expect(clippy::print_stderr, reason = "a skipped test says so")]
fn assets() -> Option<PathBuf> {
    let folder = std::env::var_os("PEFT_ASSETS").map(PathBuf::from);
    if folder.is_none() {
        eprintln!("SKIPPED: `PEFT_ASSETS` does not name the folder that `scripts/fetch-assets.sh` filled");
    }
    folder
}

#[test]
fn bert_computes_what_transformers_computes_on_minilm() {
    let Some(assets) = assets() else { return };
    let fixture = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/minilm.safetensors");
    let fixture = ModelWeights::open(fixture).unwrap();
    let tensor = |name: &str| fixture.tensor(name, &Device::Cpu).unwrap();
    let model = BertModel::from_folder(assets.join("minilm"), DType::F32, &Device::Cpu).unwrap();
    let hidden = model.forward(&tensor("input_ids"), None, Some(&tensor("attention_mask"))).unwrap();
    assert_close(&hidden, &tensor("last_hidden_state"), Tolerance::absolute(1e-4), "the hidden states");
}
