//! `peft diff`.

use candle_core::DType;
use serde_json::json;

use crate::fixture::{Model, json_of, lora, output_of, text};

#[test]
fn two_adapters_are_compared_layer_by_layer() {
    let mut model = Model::random(DType::F32);
    let first = model.adapter(&lora(), "first");
    let second = model.adapter(&lora().with_targets(["q_proj", "k_proj"]), "second");
    let same = output_of(&["diff", text(first.path()), text(first.path())]);
    assert!(same.ends_with("are identical\n"), "{same}");
    let report = json_of(&["diff", text(first.path()), text(second.path())]);
    assert_eq!(report["identical"], json!(false));
    assert_eq!(report["only_in_a"].as_array().unwrap().len(), 2);
    assert_eq!(report["only_in_b"].as_array().unwrap().len(), 2);
    assert!(report["config"]["target_modules"].is_array(), "{report}");
    let layer = &report["layers"][0];
    let name = format!("{}.weight", layer["path"].as_str().unwrap());
    let (a, b) = (model.merged(&["first"]), model.merged(&["second"]));
    let apart =
        (&a[&name] - &b[&name]).unwrap().sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
    assert!((layer["distance"].as_f64().unwrap() - f64::from(apart)).abs() < 1e-4, "{layer}");
    let table = output_of(&["diff", text(first.path()), text(second.path())]);
    assert!(
        table.contains("only in a: model.layers.0.self_attn.o_proj") && table.contains("cosine"),
        "{table}"
    );
}
