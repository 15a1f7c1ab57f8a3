//! Keys of every sort, without a model and with one.

use super::{CanonicalKeys, KeyReader};
use crate::adapter::AdapterMethod;
use crate::config::Bias;
use crate::error::Result;
use crate::method::{AdaLoraConfig, Ia3Config, LohaConfig, LokrConfig, LoraConfig};

/// The keys as they are read without a model.
fn all(method: &dyn AdapterMethod, keys: &[&str]) -> Result<CanonicalKeys> {
    KeyReader { method, is_layer: None }.read_all(keys.iter().copied())
}

fn one(method: &dyn AdapterMethod, key: &str) -> String {
    let read = all(method, &[key]).unwrap();
    assert!(read.superseded.is_empty(), "{key}");
    read.found.into_keys().next().unwrap()
}

/// The key as it is read for a model with these layers.
fn with_layers(key: &str, layers: &[&str]) -> String {
    let is_layer = |path: &str| layers.contains(&path);
    let reader = KeyReader { method: &LoraConfig::default(), is_layer: Some(&is_layer) };
    reader.read_all([key]).unwrap().found.into_keys().next().unwrap()
}

#[test]
fn the_name_of_an_adapter_is_left_out_of_the_keys_of_every_method() {
    let lora = LoraConfig::default();
    let cases: [(&dyn AdapterMethod, &str, &str); 15] = [
        (&lora, "a.q.lora_A.default.weight", "a.q.lora_A.weight"),
        (&lora, "a.q.lora_B.sql-expert.weight", "a.q.lora_B.weight"),
        (&lora, "a.q.lora_B.default.bias", "a.q.lora_B.bias"),
        (&lora, "e.lora_embedding_A.default", "e.lora_embedding_A"),
        (&lora, "a.q.lora_magnitude_vector", "a.q.lora_magnitude_vector"),
        (&lora, "a.q.lora_magnitude_vector.weight", "a.q.lora_magnitude_vector"),
        (&lora, "a.q.lora_magnitude_vector.default", "a.q.lora_magnitude_vector"),
        (&lora, "a.q.lora_magnitude_vector.default.weight", "a.q.lora_magnitude_vector"),
        (&lora, "e.token_adapter.trainable_tokens_delta.default", "e.token_adapter.trainable_tokens_delta"),
        (&lora, "head.modules_to_save.default.weight", "head.weight"),
        (&lora, "head.modules_to_save.default.dense.weight", "head.dense.weight"),
        (&AdaLoraConfig::new(4, 2, 10), "a.q.lora_E.default", "a.q.lora_E"),
        (&Ia3Config::new(), "a.q.ia3_l.default", "a.q.ia3_l"),
        (&LohaConfig::default(), "a.q.hada_w1_a.default", "a.q.hada_w1_a"),
        (&LokrConfig::default(), "a.q.lokr_w1.default", "a.q.lokr_w1"),
    ];
    for (method, key, expected) in cases {
        assert_eq!(one(method, key), expected, "{key}");
    }
}

#[test]
fn wrappers_of_a_model_are_no_part_of_a_path() {
    let lora = LoraConfig::default();
    for key in [
        "base_model.model.a.q.lora_A.weight",
        "_orig_mod.base_model.model.a.q.lora_A.weight",
        "base_model.model._orig_mod.a.q.lora_A.weight",
        "base_model.model.a._orig_mod.q.lora_A.default.weight",
        "module.base_model.model.a.q.lora_A.weight",
        "module.module.base_model.model.a.q.lora_A.weight",
        "base_model.model.base_model.model.a.q.lora_A.weight",
        "base_model.model.module.base_model.model.a.q.lora_A.weight",
        "pretrained_model.base_model.model.a.q.lora_A.weight",
        "_fsdp_wrapped_module.base_model.model.a.q.lora_A.weight",
    ] {
        assert_eq!(one(&lora, key), "a.q.lora_A.weight", "{key}");
    }
    // A module may be called so; only a model can tell.
    assert_eq!(one(&lora, "base_model.model.module.q.lora_A.weight"), "module.q.lora_A.weight");
    assert_eq!(with_layers("base_model.model.module.q.lora_A.weight", &["q"]), "q.lora_A.weight");
    assert_eq!(with_layers("module.q.lora_A.default.weight", &["module.q"]), "module.q.lora_A.weight");
    let nested = "base_model.model.base_model.model.q.lora_A.weight";
    assert_eq!(with_layers(nested, &["base_model.model.q"]), "base_model.model.q.lora_A.weight");
    assert_eq!(with_layers(nested, &["q"]), "q.lora_A.weight");
}

#[test]
fn a_module_may_be_called_like_an_adapter_or_a_part_of_one() {
    let lora = LoraConfig::default();
    for key in [
        "default.lora_A.weight",
        "net.default.lora_A.weight",
        "net.lora_A.lora_B.weight",
        "net.lora_head.weight",
        "net.lora_A.default.lora_A.weight",
    ] {
        assert_eq!(one(&lora, key), key);
    }
    assert_eq!(one(&lora, "net.default.lora_A.default.weight"), "net.default.lora_A.weight");
    assert_eq!(
        with_layers("net.lora_A.default.weight", &["net.lora_A.default"]),
        "net.lora_A.default.weight"
    );
    assert_eq!(with_layers("net.lora_A.lora_A.weight", &["net.lora_A"]), "net.lora_A.lora_A.weight");
    assert_eq!(with_layers("net.lora_A.lora_A.weight", &["net"]), "net.lora_A.weight");
    assert_eq!(
        with_layers("a.modules_to_save.b.weight", &["a.modules_to_save.b"]),
        "a.modules_to_save.b.weight"
    );
}

#[test]
fn of_a_full_copy_under_several_names_the_modules_own_counts_then_the_copy() {
    let keys = ["head.weight", "head.modules_to_save.weight", "head.original_module.weight"];
    let read = all(&LoraConfig::default(), &keys).unwrap();
    assert_eq!(read.found, [("head.weight".to_owned(), "head.weight".to_owned())].into());
    assert_eq!(read.superseded, ["head.modules_to_save.weight", "head.original_module.weight"]);
    let read = all(&LoraConfig::default(), &keys[1..]).unwrap();
    assert_eq!(read.found, [("head.weight".to_owned(), keys[1].to_owned())].into());
    assert_eq!(read.superseded, keys[2..]);
    // Without a copy, it is not known what the original is for.
    assert_eq!(one(&LoraConfig::default(), keys[2]), keys[2]);
}

#[test]
fn the_bias_of_a_base_module_that_trains_along_stays() {
    let keys = ["head.dense.bias", "head.modules_to_save.a.dense.bias", "head.original_module.dense.bias"];
    let all_biases = LoraConfig::default().with_bias(Bias::All);
    let found: Vec<String> = all(&all_biases, &keys).unwrap().found.into_keys().collect();
    assert_eq!(found, ["head.dense.bias", "head.original_module.dense.bias"]);
    assert_eq!(all(&LoraConfig::default(), &keys).unwrap().found.len(), 1);
}

#[test]
fn one_tensor_twice_or_two_adapters_are_refused_with_both_keys() {
    let lora = LoraConfig::default();
    for keys in [
        ["a.lora_A.weight", "base_model.model.a.lora_A.weight"],
        ["a.lora_A.default.weight", "a.lora_A.weight"],
        ["h.modules_to_save.default.weight", "h.modules_to_save.weight"],
    ] {
        let error = all(&lora, &keys).unwrap_err().to_string();
        assert!(error.contains(&format!("`{}` and `{}` are one tensor", keys[0], keys[1])), "{error}");
    }
    let error = all(&lora, &["a.lora_A.one.weight", "b.lora_A.two.weight"]).unwrap_err().to_string();
    for part in ["`a.lora_A.one.weight`", "`b.lora_A.two.weight`", "`one`", "`two`"] {
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[test]
fn buffers_that_say_nothing_are_left_out() {
    let key = "e.token_adapter.trainable_tokens_original";
    let read = all(&LoraConfig::default(), &[key]).unwrap();
    assert!(read.found.is_empty() && read.superseded == [key]);
    let read = all(&AdaLoraConfig::new(4, 2, 10), &["a.q.ranknum.default"]).unwrap();
    assert!(read.found.is_empty());
}
