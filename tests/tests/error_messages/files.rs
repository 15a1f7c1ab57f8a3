//! Files of the base model.

use super::*;

fn write(folder: &Path, name: &str, tensors: &[&str]) {
    let tensors: BTreeMap<String, Tensor> =
        tensors.iter().map(|name| ((*name).to_owned(), random(&[2, 2]))).collect();
    std::fs::write(folder.join(name), safetensors::serialize(tensors.iter(), None).unwrap()).unwrap();
}

/// The source of an error about a file.
fn inside(error: Error) -> Error {
    match error {
        Error::InFile { source, .. } => *source,
        other => panic!("{other}"),
    }
}

pub(super) fn files() -> Vec<Failure> {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write(folder, "one.safetensors", &["a", "b"]);
    write(folder, "two.safetensors", &["b"]);
    let index = |text: &str| {
        std::fs::write(folder.join("model.safetensors.index.json"), text).unwrap();
        inside(ModelWeights::open(folder).map(drop).unwrap_err())
    };
    let both = ModelWeights::open_files(&[folder.join("one.safetensors"), folder.join("two.safetensors")]);
    vec![
        failure!(
            "one tensor in two files",
            inside(both.map(drop).unwrap_err()),
            Error::Shards(ShardsError::DuplicateTensor { .. }),
            ["the tensor `b` is in two files", "one.safetensors"]
        ),
        failure!(
            "a shard outside the folder",
            index(&json!({"weight_map": {"a": "../one.safetensors"}}).to_string()),
            Error::Shards(ShardsError::OutsideFolder { .. }),
            ["`weight_map` names `../one.safetensors`"]
        ),
        failure!(
            "an index that is a list",
            index("[1]"),
            Error::Shards(ShardsError::Index(_)),
            ["not a valid index of shards", "invalid"]
        ),
    ]
}
