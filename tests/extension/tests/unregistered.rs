//! A method before and after its registration, which applies to the whole process: this test has a process of its own.

use peft_runtime::error::ConfigError;
use std::sync::Arc;

use candle_nn::Linear;
use peft_extension::{ScaleConfig, ScaleSettings};
use peft_runtime::adapter::{Built, Geometry, LayerSettings, LayerShapes, Site, TensorSource};
use peft_runtime::error::Fault;
use peft_runtime::method::{AdapterConfig, Method, register, registered};
use peft_runtime::prelude::*;
use peft_runtime::schema::LayerKind;
use peft_runtime::{Error, ModulePath, PeftConfig, Result, StoredAdapter};
use peft_tests::tensors::random;
use serde::{Deserialize, Serialize};

#[derive(Clone, Injectable)]
#[peft(target = "linear")]
struct Model {
    linear: Adapted<Linear>,
}

/// A different method with the name of Scale.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Impostor {}

impl Method for Impostor {
    const PEFT_TYPE: &'static str = "SCALE";
    const NAME: &'static str = "Impostor";
    const KEY_PREFIX: &'static str = "impostor_";

    fn plan_layer(
        _: &AdapterConfig<Self>,
        path: &ModulePath,
        kind: LayerKind,
        _: &Geometry,
    ) -> Result<LayerSettings, Fault> {
        Err(Fault::unsupported_layer(path, kind, Self::NAME, "it adapts nothing"))
    }

    fn build(
        _: &AdapterConfig<Self>,
        site: &Site<'_>,
        _: &LayerSettings,
        source: &mut dyn TensorSource,
    ) -> Result<Built> {
        ScaleSettings::build(
            &ScaleConfig::of(ScaleSettings { start: 1.0 }),
            site,
            &LayerSettings::new(),
            source,
        )
    }

    fn geometry(_: &AdapterConfig<Self>, _: &LayerShapes, _: Option<&[usize]>, _: bool) -> Option<Geometry> {
        None
    }
}

#[test]
fn a_method_is_known_once_registered_and_its_name_is_taken() {
    let config = ScaleConfig::of(ScaleSettings { start: 2.0 });
    let base = Model { linear: Linear::new(random(&[3, 2]), None).into() };
    let mut model = base.clone();
    model.inject_adapter(&config, "default").unwrap();
    let folder = tempfile::tempdir().unwrap();
    model.save_pretrained(folder.path(), "default").unwrap();

    let unknown = [
        base.clone().load_adapter(folder.path(), "default").unwrap_err(),
        model.hotswap_adapter(folder.path(), "default").unwrap_err(),
        StoredAdapter::open(folder.path()).unwrap_err(),
        PeftConfig::from_json(&config.to_json().unwrap()).unwrap_err(),
    ];
    for error in unknown {
        let message = error.chain();
        assert!(message.contains(r#"`peft_type` "SCALE" is not supported; supported are"#), "{message}");
    }
    assert!(!registered().contains(&"SCALE"));

    for _ in 0..2 {
        register::<ScaleSettings>().unwrap();
    }
    assert_eq!(registered().iter().filter(|known| **known == "SCALE").count(), 1);
    base.clone().load_adapter(folder.path(), "default").unwrap();
    model.hotswap_adapter(folder.path(), "default").unwrap();
    let method = StoredAdapter::open(folder.path()).unwrap().config().clone().into_method();
    assert_eq!(Arc::clone(&method).name(), "Scale");

    let error = register::<Impostor>().unwrap_err();
    assert!(
        matches!(&error, Error::Config(ConfigError::RegisteredMethod { peft_type }) if peft_type == "SCALE"),
        "{error}"
    );
    assert_eq!(PeftConfig::from_json(&config.to_json().unwrap()).unwrap().method().name(), "Scale");
}
