//! Adapters of image models, as kohya's sd-scripts, ComfyUI, XLabs, diffusers and LyCORIS write them.

mod base_folders;
mod candle_models;
mod fixtures;
mod refusals;
mod written;

use candle_core::{DType, Device};
use peft_runtime::{MergedWeights, StoredAdapter};

use fixtures::{Bases, Case, cases, file, probes};

/// Merges the adapter of a case, and says what is not as expected.
fn check(case: &Case, bases: &Bases) -> Result<(), String> {
    let say = |error: peft_runtime::Error| format!("{}: {error:?}", case.name);
    let base = bases.base(&case.base);
    let adapter = StoredAdapter::open_for(file(&case.file), &base).map_err(say)?;
    if (adapter.format(), adapter.left_out().len()) != (case.format.as_str(), case.left_out) {
        return Err(format!("{}: {}, {:?} left out", case.name, adapter.format(), adapter.left_out()));
    }
    let own = bases.tensors(&case.base);
    let merged = MergedWeights::new(bases.weights(&case.base)).add(adapter, 1.0).map_err(say)?;
    let vb = merged.var_builder(DType::F32, &Device::Cpu);
    for (name, own) in &own {
        let tensor = vb.get(own.shape(), name).map_err(|error| format!("{}: {error}", case.name))?;
        let changed = probes(&tensor);
        match case.changed.get(name) {
            Some(expected) => {
                let bound = 1e-5 * (own.elem_count() as f64).sqrt();
                if changed.iter().zip(expected).any(|(own, expected)| (own - expected).abs() > bound) {
                    return Err(format!("{}: `{name}` has {changed:?}, not {expected:?}", case.name));
                }
            }
            None if changed != probes(own) => return Err(format!("{}: `{name}` changed", case.name)),
            None => {}
        }
    }
    merged.finish().map_err(say)
}

#[test]
fn adapters_of_other_programs_change_weights_as_their_files_say() {
    let bases = Bases::read();
    let wrong: Vec<String> = cases().iter().filter_map(|case| check(case, &bases).err()).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn an_adapter_saved_in_pefts_form_still_does_the_same() {
    let bases = Bases::read();
    let folder = tempfile::tempdir().unwrap();
    for case in cases() {
        let adapter = StoredAdapter::open_for(file(&case.file), &bases.base(&case.base)).unwrap();
        let saved = folder.path().join(&case.name);
        adapter.save(&saved).unwrap();
        let read = StoredAdapter::open(&saved).unwrap();
        assert_eq!(read.config().to_json().unwrap(), adapter.config().to_json().unwrap());
        let merged = MergedWeights::new(bases.weights(&case.base)).add(read, 1.0).unwrap();
        let vb = merged.var_builder(DType::F32, &Device::Cpu);
        let own = bases.tensors(&case.base);
        for (name, expected) in &case.changed {
            let tensor = vb.get(own[name].shape(), name).unwrap();
            let close =
                probes(&tensor).iter().zip(expected).all(|(own, expected)| (own - expected).abs() < 1e-3);
            assert!(close, "{}: {name}", case.name);
        }
    }
}
