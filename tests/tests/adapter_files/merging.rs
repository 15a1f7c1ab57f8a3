//! Base models with adapters of any format merged in.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use peft_runtime::{BaseWeights, MergedWeights, ModelWeights, Result, StoredAdapter};

/// The weights of a base model.
pub fn base(folder: &Path) -> BaseWeights {
    BaseWeights::new(ModelWeights::open(folder).unwrap()).unwrap()
}

/// All weights of the base model in `folder` with the adapter at `path` merged in.
pub fn merged(path: &Path, folder: &Path) -> Result<BTreeMap<String, Tensor>> {
    let adapter = StoredAdapter::open_for(path, &base(folder))?;
    let weights = MergedWeights::new(ModelWeights::open(folder)?).add(adapter, 1.0)?;
    let builder = weights.var_builder(DType::F32, &Device::Cpu);
    let names: Vec<String> = ModelWeights::open(folder)?.names().map(str::to_owned).collect();
    let tensors = names.into_iter().map(|name| Ok((name.clone(), builder.get_unchecked(&name)?)));
    let tensors = tensors.collect::<Result<_>>()?;
    weights.finish()?;
    Ok(tensors)
}

/// Asserts that `merged` has the tensors of `expected`, and the base model's in `folder` for all others.
pub fn assert_merged(
    what: &str,
    merged: &BTreeMap<String, Tensor>,
    expected: &BTreeMap<String, Tensor>,
    folder: &Path,
) {
    let base = ModelWeights::open(folder).unwrap();
    for (name, found) in merged {
        let own = base.tensor(name, &Device::Cpu).unwrap();
        let expected = expected.get(name).unwrap_or(&own);
        let error = (found - expected).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(error < 2e-5, "{what}: `{name}` is off by {error}");
    }
    assert!(expected.keys().all(|name| merged.contains_key(name)), "{what}");
}
