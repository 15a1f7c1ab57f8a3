//! Adapter files of other programs, and PEFT's own that torch saved: what the original tools wrote, and what is refused.

mod experts;
mod gguf;
mod merging;
mod mlx;
mod names;
mod pickles;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};

/// A file or folder of `tests/fixtures`.
fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(path)
}

/// The tensors of a safetensors file.
fn tensors(path: impl AsRef<Path>) -> BTreeMap<String, Tensor> {
    candle_core::safetensors::load(path, &Device::Cpu).unwrap().into_iter().collect()
}

/// A folder with these files of `tests/fixtures` under these names.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (from, to) in files {
        std::fs::copy(fixture(from), folder.path().join(to)).unwrap();
    }
    folder
}
