//! Adapters of the custom method without a model: read, combined, saved, merged into weights.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use peft_runtime::prelude::*;
use peft_runtime::{Error, MergedWeights, ModelWeights, StoredAdapter, StoredKind};
use peft_tests::tensors::same_bits;

use crate::model::{Model, factor, scale};

/// The weights with the adapter merged on the model.
fn merged_in_memory(model: &Model, name: &str) -> BTreeMap<String, Tensor> {
    let mut model = model.clone();
    model.merge_adapters(&MergeOptions::adapters([name])).unwrap();
    model.merged_state_dict()
}

#[test]
fn its_layers_are_read_under_its_name() {
    let (model, folder) = Model::new().with_adapter(&scale(), "chat");
    let adapter = StoredAdapter::open(folder.path().join("chat")).unwrap();
    assert_eq!(adapter.config().method().name(), "Scale");
    let layers = adapter.layers().unwrap();
    for (layer, path) in layers.iter().zip(["own", "theirs"]) {
        assert_eq!((layer.path.as_str(), layer.kind), (path, StoredKind::Adapter("Scale")));
        assert_eq!((layer.rank, layer.scaling, layer.elements()), (None, None, 1));
        assert_eq!(layer.update_norm().unwrap(), None);
        let value = layer.tensor("scale_factor").unwrap().to_vec1::<f32>().unwrap()[0];
        assert_eq!(f64::from(value), factor(&model, "chat", path));
    }
    assert_eq!(layers.len(), 2);
}

#[test]
fn a_combination_is_that_of_the_model_and_can_be_saved() {
    let base = Model::new();
    let (mut model, chat) = base.with_adapter(&scale(), "chat");
    let only_own = scale().with_targets(targets!(Model; "own"));
    let (other, code) = base.with_adapter(&only_own, "code");
    model.load_adapter(code.path(), "code").unwrap();
    assert_eq!(factor(&model, "code", "own"), factor(&other, "code", "own"));
    let options = CombineOptions::default();
    model.add_weighted_adapter(&[("chat", 0.25), ("code", 2.0)], "combined", &options).unwrap();

    let open =
        |folder: &tempfile::TempDir, name: &str| StoredAdapter::open(folder.path().join(name)).unwrap();
    let (chat, code) = (open(&chat, "chat"), open(&code, "code"));
    let sum = StoredAdapter::combine(&[(&chat, 0.25), (&code, 2.0)], &options, None).unwrap();
    let folder = tempfile::tempdir().unwrap();
    sum.save(folder.path()).unwrap();
    let mut loaded = base.clone();
    loaded.load_adapter(folder.path(), "combined").unwrap();
    for layer in ["own", "theirs"] {
        assert_eq!(factor(&loaded, "combined", layer), factor(&model, "combined", layer));
    }
}

#[test]
fn merged_weights_are_those_of_the_model_bit_for_bit() {
    let base = Model::new();
    let (model, folder) = base.with_adapter(&scale(), "chat");
    let expected = merged_in_memory(&model, "chat");
    let adapter = StoredAdapter::open(folder.path().join("chat")).unwrap();
    let weights = base.save();
    let merged = MergedWeights::new(ModelWeights::open(weights.path()).unwrap()).add(adapter, 1.0).unwrap();
    let builder = merged.var_builder(DType::F32, &Device::Cpu);
    for (name, tensor) in &expected {
        let found = builder.get(tensor.shape().clone(), name).unwrap();
        assert!(same_bits(&found, tensor), "{name}");
    }
    merged.finish().unwrap();
    assert!(!same_bits(&expected["own.bias"], &base.base_state_dict()["own.bias"]), "the bias is scaled");
}

#[test]
fn without_a_scaling_it_accepts_no_weight_other_than_one() {
    let base = Model::new();
    let (_, folder) = base.with_adapter(&scale(), "chat");
    let adapter = StoredAdapter::open(folder.path().join("chat")).unwrap();
    let weights = base.save();
    let error =
        MergedWeights::new(ModelWeights::open(weights.path()).unwrap()).add(adapter, 0.5).unwrap_err();
    assert!(matches!(error, Error::Unsupported { operation: "merge", .. }), "{error}");
    assert!(error.to_string().contains("Scale has no scaling that could take the weight 0.5"), "{error}");
}
