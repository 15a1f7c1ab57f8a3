//! Files that torch saved, sound and hostile; `tests/python/pickles.py` wrote them.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use peft_runtime::StoredAdapter;

use crate::{fixture, folder, tensors};

const CONFIG: &str = r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["layer"]}"#;

/// The tensors of a file under PEFT's name for it.
fn read(file: &str) -> peft_runtime::Result<BTreeMap<String, Tensor>> {
    let folder = folder(&[(&format!("pickles/{file}"), "adapter_model.bin")]);
    std::fs::write(folder.path().join("adapter_config.json"), CONFIG).unwrap();
    StoredAdapter::open(folder.path())?.tensors(&Device::Cpu)
}

#[test]
fn all_forms_of_torchs_files_have_the_values_that_it_saved() {
    let expected = tensors(fixture("pickles/expected.safetensors"));
    for file in ["today.bin", "legacy.bin", "protocol4.bin"] {
        let found = read(file).unwrap();
        assert_eq!(found.len(), expected.len(), "{file}");
        for (name, expected) in &expected {
            let found = &found[&format!("base_model.model.{name}")];
            assert_eq!((found.dtype(), found.dims()), (expected.dtype(), expected.dims()), "{file}: {name}");
            let bytes = |tensor: &Tensor| safetensors::View::data(&tensor.contiguous().unwrap()).into_owned();
            assert_eq!(bytes(found), bytes(expected), "{file}: {name}");
        }
    }
}

/// Every hostile file, and a part of what is said of it.
const HOSTILE: [(&str, &str); 28] = [
    ("only_a_call.bin", "posix.system"),
    ("call_next_to_tensors.bin", "posix.system"),
    ("call_in_hooks.bin", "posix.system"),
    ("eval_in_legacy.bin", "eval"),
    ("a_class_of_its_own.bin", "PurePosixPath"),
    ("instruction.bin", "instruction"),
    ("compressed.bin", "is compressed"),
    ("nested.bin", "a list of 2, and not a dictionary"),
    ("deep.bin", "a list of 1, and not a dictionary"),
    ("memo.bin", "refers to a value that it does not have"),
    ("stride_of_zero.bin", "`a` repeats elements"),
    ("expanded.bin", "`a` repeats elements"),
    ("too_large.bin", "does not lie in its storage"),
    ("overflow.bin", "does not lie in its storage"),
    ("outside.bin", "does not lie in its storage"),
    ("negative.bin", "a storage and numbers"),
    ("short_storage.bin", "too short"),
    ("no_storage.bin", "is not in the file"),
    ("big_endian.bin", "highest byte first"),
    ("cut_off.bin", "damaged or cut off"),
    ("legacy_cut_off.bin", "cut off"),
    ("legacy_pickle_cut_off.bin", "cut off"),
    ("plain_pickle.bin", "`torch.save` did not write"),
    ("trainer.bin", "`epoch` (a number), `model` (a dictionary of 2), `loss` (a number), `name` (text)"),
    ("a_list.bin", "a list of 1, and not a dictionary"),
    ("one_tensor.bin", "a tensor [2], and not a dictionary"),
    ("complex.bin", "not supported"),
    ("numpy.bin", "NumPy"),
];

#[test]
fn what_is_more_than_tensors_or_does_not_lie_in_the_file_is_refused_by_name() {
    for (file, says) in HOSTILE {
        let error = StoredAdapter::open(fixture(&format!("pickles/{file}"))).unwrap_err().chain();
        assert!(error.contains(file) && error.contains(says), "{file}: {error}");
        let error = read(file).unwrap_err().chain();
        assert!(error.contains("adapter_model.bin") && error.contains(says), "{file}: {error}");
    }
}

#[test]
fn every_beginning_of_a_file_is_refused_or_read_without_a_panic() {
    for file in ["today.bin", "legacy.bin"] {
        let bytes = std::fs::read(fixture(&format!("pickles/{file}"))).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("adapter.bin");
        for length in (0..bytes.len()).step_by(7) {
            std::fs::write(&path, &bytes[..length]).unwrap();
            assert!(StoredAdapter::open(&path).is_err(), "{file} {length}");
        }
        // Any byte may be another one.
        for place in 0..bytes.len() {
            let mut other = bytes.clone();
            other[place] ^= 0x5a;
            std::fs::write(&path, &other).unwrap();
            let _ = StoredAdapter::open(&path);
        }
    }
}

#[test]
fn the_name_of_the_file_does_not_matter() {
    let expected = tensors(fixture("pickles/expected.safetensors")).len();
    for name in ["adapter_model.safetensors", "weights.pt", "weights"] {
        let folder = folder(&[("pickles/today.bin", name)]);
        std::fs::write(folder.path().join("adapter_config.json"), CONFIG).unwrap();
        for path in [folder.path().to_owned(), folder.path().join(name)] {
            let found = StoredAdapter::open(&path).unwrap();
            assert_eq!((found.format(), found.shapes().len()), ("peft", expected), "{name}");
        }
    }
}
