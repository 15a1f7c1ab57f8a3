//! Adapters of mlx-lm; `tests/python/mlx_adapters.py` had mlx-lm write them and fuse them.

use peft_runtime::prelude::*;
use peft_runtime::{StoredAdapter, StoredKind};
use serde_json::Value;

use crate::merging::{assert_merged, merged};
use crate::{fixture, folder, tensors};

#[test]
fn adapters_merge_as_mlx_lm_fuses_them() {
    let base = fixture("mlx/base");
    for name in ["lora", "ends", "dora"] {
        let adapter = fixture(&format!("mlx/{name}"));
        let expected = tensors(adapter.join("fused.safetensors"));
        assert_merged(name, &merged(&adapter, &base).unwrap(), &expected, &base);
    }
}

#[test]
fn the_format_is_found_by_content_and_the_scale_is_not_divided_by_the_rank() {
    // The names of the files do not matter.
    let renamed = folder(&[
        ("mlx/lora/adapters.safetensors", "weights"),
        ("mlx/lora/adapter_config.json", "adapter_config.json"),
    ]);
    for path in [
        fixture("mlx/lora"),
        fixture("mlx/lora/adapters.safetensors"),
        renamed.path().join("weights"),
        renamed.path().to_owned(),
    ] {
        let adapter = StoredAdapter::open(&path).unwrap();
        assert_eq!((adapter.format(), adapter.left_out()), ("mlx", &[][..]));
        let layers = adapter.layers().unwrap();
        let paths: Vec<&str> = layers.iter().map(|layer| layer.path.as_str()).collect();
        assert_eq!(
            paths,
            [
                "model.layers.1.mlp.down_proj",
                "model.layers.1.self_attn.q_proj",
                "model.layers.1.self_attn.v_proj"
            ]
        );
        assert!(layers.iter().all(|layer| layer.rank == Some(3) && layer.scaling == Some(1.7)));
        let config = adapter.config().downcast_ref::<LoraConfig>().unwrap();
        assert_eq!(config.common().base_model_name_or_path.as_deref(), Some("acme/tiny"));
    }
    let dora = StoredAdapter::open(fixture("mlx/dora")).unwrap().layers().unwrap();
    assert!(dora.iter().all(|layer| layer.kind == StoredKind::Adapter("DoRA")));
}

/// The error of the adapter `lora` with another config.
fn refused(change: impl Fn(&mut Value)) -> String {
    let folder = folder(&[("mlx/lora/adapters.safetensors", "adapters.safetensors")]);
    let text = std::fs::read_to_string(fixture("mlx/lora/adapter_config.json")).unwrap();
    let mut config = serde_json::from_str(&text).unwrap();
    change(&mut config);
    std::fs::write(folder.path().join("adapter_config.json"), config.to_string()).unwrap();
    StoredAdapter::open(folder.path()).unwrap_err().chain()
}

#[test]
fn without_a_scale_nothing_is_read() {
    let no_scale = refused(|config| {
        config["lora_parameters"].as_object_mut().unwrap().remove("scale");
        config["lora_parameters"]["alpha"] = 16.into();
    });
    assert!(
        no_scale.contains("`scale` is missing in `lora_parameters`") && no_scale.contains("`alpha` is not"),
        "{no_scale}"
    );
    let text = refused(|config| config["lora_parameters"]["scale"] = "big".into());
    assert!(text.contains("`scale` must be a finite number"), "{text}");
    let other = refused(|config| config["fine_tune_type"] = "prefix".into());
    assert!(other.contains("`fine_tune_type` is `prefix`"), "{other}");
    let alone = folder(&[("mlx/lora/adapters.safetensors", "adapters.safetensors")]);
    let alone = StoredAdapter::open(alone.path()).unwrap_err().chain();
    assert!(
        alone.contains("adapters.safetensors") && alone.contains("`lora_parameters` is needed for the scale"),
        "{alone}"
    );
}

#[test]
fn parameters_that_are_trained_themselves_are_refused() {
    let error = StoredAdapter::open(fixture("mlx/full")).unwrap_err().chain();
    assert!(error.contains("`fine_tune_type` is `full`") && error.contains("mlx_lm.fuse"), "{error}");
}

#[test]
fn the_number_of_layers_in_the_config_does_not_count_and_the_rank_is_that_of_the_factors() {
    let folder = folder(&[("mlx/lora/adapters.safetensors", "adapters.safetensors")]);
    let config = r#"{"lora_parameters": {"scale": 1.7}, "num_layers": 7}"#;
    std::fs::write(folder.path().join("adapter_config.json"), config).unwrap();
    let base = fixture("mlx/base");
    let expected = tensors(fixture("mlx/lora/fused.safetensors"));
    assert_merged("keys decide", &merged(folder.path(), &base).unwrap(), &expected, &base);
    let other = refused(|config| config["lora_parameters"]["rank"] = 8.into());
    assert!(other.contains("`rank` is 8") && other.contains("has the rank 3"), "{other}");
}
