//! The custom method in files and state dicts, on a model.

use peft_extension::ScaleConfig;
use peft_runtime::PeftConfig;
use peft_runtime::prelude::*;
use peft_tests::tensors::{random, same_bits};
use serde_json::{Value, json};

use crate::model::{Model, scale, starting_with};

#[test]
fn its_config_has_the_fields_of_every_config_and_its_own() {
    let config = starting_with(0.5).with_targets(["own"]).with_modules_to_save(["plain"]);
    let text = config.to_json().unwrap();
    let fields: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&fields["peft_type"], &fields["start"]), (&json!("SCALE"), &json!(0.5)));
    assert_eq!((&fields["target_modules"], &fields["modules_to_save"]), (&json!(["own"]), &json!(["plain"])));
    assert_eq!(fields.get("layers_to_transform"), None);
    assert_eq!(PeftConfig::from_json(&text).unwrap().downcast_ref::<ScaleConfig>(), Some(&config));
}

#[test]
fn what_is_saved_is_loaded_bit_for_bit() {
    let (base, x) = (Model::new(), random(&[3, 5]));
    let (model, folder) = base.with_adapter(&scale(), "mine");
    let mut other = base.clone();
    let report = other.load_adapter(folder.path(), "mine").unwrap();
    assert_eq!(report.injection.adapted.len(), 2);
    assert!(same_bits(&other.forward(&x), &model.forward(&x)));
    assert!(other.trainable_parameters().is_empty());
    let mut again = base.clone();
    again.load_adapter_with(folder.path(), "mine", LoadOptions::new().trainable(true)).unwrap();
    assert_eq!(again.trainable_parameters().len(), 2);
}

#[test]
fn an_adapter_is_swapped_for_one_of_the_custom_method() {
    let (base, x) = (Model::new(), random(&[3, 5]));
    let (expected, folder) = base.with_adapter(&scale(), "chat");
    let lora = LoraConfig::new(2, 4.0).with_targets(targets!(Model; "own"));
    for (mut model, _) in [base.with_adapter(&scale(), "chat"), base.with_adapter(&lora, "chat")] {
        assert!(!same_bits(&model.forward(&x), &expected.forward(&x)));
        model.hotswap_adapter(folder.path(), "chat").unwrap();
        assert!(same_bits(&model.forward(&x), &expected.forward(&x)));
        assert_eq!(model.model_status().unwrap().peft_types["chat"], "SCALE");
    }
}

#[test]
fn a_state_dict_is_enough_to_inject_it() {
    let (base, x) = (Model::new(), random(&[3, 5]));
    let (model, _) = base.with_adapter(&scale(), "mine");
    let state = model.adapter_state_dict("mine").unwrap();
    let mut other = base.clone();
    // The layers are those that the keys name.
    other.inject_adapter_from_state_dict(&state, &starting_with(1.0), "again").unwrap();
    assert!(same_bits(&other.forward(&x), &model.forward(&x)));
}
