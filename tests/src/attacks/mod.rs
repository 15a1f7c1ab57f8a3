//! Hostile files: each has a name and a line about what it tries, and is created when needed.
//!
//! `tests/attacks/README.md` lists them; `cargo run -p peft-tests --bin attacks -- FOLDER` writes them out.

mod adapters;
mod bases;
pub mod build;
mod configs;
mod ggufs;
mod runs;

use std::path::Path;

use candle_core::{DType, Device};
use peft_runtime::Result;
use peft_runtime::models::llama::LlamaModel;
use peft_runtime::prelude::*;

use crate::training::{Method, Mlp, trainer};
use crate::victim::Victim;

pub use runs::RunFiles;

/// Files with their names, which may contain a folder.
pub type Files = Vec<(String, Vec<u8>)>;

/// A set of hostile files.
pub struct Attack {
    /// Its name.
    pub name: &'static str,
    /// What it tries.
    pub tries: &'static str,
    /// The file that an error has to name.
    pub file: &'static str,
    /// A part of the error; `None` for files that are strange but harmless, and are accepted.
    pub says: Option<&'static str>,
    make: Make,
}

/// How the files are made from valid ones.
#[derive(Clone, Copy)]
enum Make {
    /// The config of an adapter, made from a valid one.
    Config(fn(&str) -> Vec<u8>),
    /// The weights of an adapter, made from valid ones.
    Weights(fn(&[u8]) -> Vec<u8>),
    /// A GGUF file.
    Gguf(fn() -> Vec<u8>),
    /// The folder of a base model.
    Base(fn() -> Files),
    /// The checkpoint of a run, made from a valid one.
    Run(Method, fn(&mut RunFiles) -> Result<()>),
}

/// All attacks, in the order of the list.
pub fn all() -> Vec<Attack> {
    [configs::attacks(), adapters::attacks(), ggufs::attacks(), bases::attacks(), runs::attacks()]
        .into_iter()
        .flatten()
        .collect()
}

impl Attack {
    /// What the files pretend to be.
    pub fn target(&self) -> &'static str {
        match self.make {
            Make::Config(_) => "config of an adapter",
            Make::Weights(_) => "weights of an adapter",
            Make::Gguf(_) => "GGUF file",
            Make::Base(_) => "base model",
            Make::Run(..) => "checkpoint of a run",
        }
    }

    /// The files.
    ///
    /// # Errors
    /// If the valid ones cannot be made.
    pub fn files(&self) -> Result<Files> {
        let adapter = |config: Vec<u8>, weights: Vec<u8>| {
            vec![(build::CONFIG.to_owned(), config), (build::WEIGHTS.to_owned(), weights)]
        };
        Ok(match self.make {
            Make::Config(make) => {
                let (config, weights) = build::sound_adapter()?;
                adapter(make(&config), weights)
            }
            Make::Weights(make) => {
                let (config, weights) = build::sound_adapter()?;
                adapter(config.into_bytes(), make(&weights))
            }
            Make::Gguf(make) => vec![(ggufs::FILE.to_owned(), make())],
            Make::Base(make) => make(),
            Make::Run(method, make) => {
                let mut files = RunFiles::of_run(method)?;
                make(&mut files)?;
                files.into_files()
            }
        })
    }

    /// Writes the files into `folder` and returns their size.
    ///
    /// # Errors
    /// If the valid ones cannot be made, or a file cannot be written.
    pub fn write(&self, folder: &Path) -> Result<usize> {
        let files = self.files()?;
        for (name, bytes) in &files {
            let path = folder.join(name);
            let write = || {
                path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
                std::fs::write(&path, bytes)
            };
            write().map_err(candle_core::Error::Io)?;
        }
        Ok(files.iter().map(|(_, bytes)| bytes.len()).sum())
    }

    /// Reads the files in `folder` as what they pretend to be.
    ///
    /// # Errors
    /// The error of the library.
    pub fn read(&self, folder: &Path) -> Result<()> {
        match self.make {
            Make::Config(_) | Make::Weights(_) => {
                let mut model = Victim::new()?;
                model.load_adapter(folder, "default")?;
            }
            Make::Gguf(_) => {
                let path = folder.join(ggufs::FILE);
                let dense = LlamaModel::from_gguf(&path, &Device::Cpu).map(drop);
                let quantized = LlamaModel::from_gguf_quantized(&path, &Device::Cpu).map(drop);
                dense.and(quantized)?;
            }
            Make::Base(_) => {
                LlamaModel::from_folder(folder, DType::F32, &Device::Cpu)?;
            }
            Make::Run(method, _) => {
                let model = Mlp::adapted(method)?;
                trainer(&model, method, folder, 1)?.resume(&model)?;
            }
        }
        Ok(())
    }
}
