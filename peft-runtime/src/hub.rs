//! Models and adapters by their ids on the HuggingFace hub (feature `hub`).

use std::path::PathBuf;

use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Repo, RepoType};

use crate::error::{Error, Result};

/// A client for the hub; what it downloads stays in the cache that the Python clients use.
pub struct Hub {
    api: Api,
}

/// The files a model needs, those it may have, and the list of its shards.
const MODEL_CONFIG: &str = "config.json";
const MODEL_OPTIONAL: [&str; 2] = ["tokenizer.json", "tokenizer_config.json"];
const MODEL_WEIGHTS: &str = "model.safetensors";
const MODEL_INDEX: &str = "model.safetensors.index.json";
/// The files of an adapter.
const ADAPTER_FILES: [&str; 2] = ["adapter_config.json", "adapter_model.safetensors"];

impl Hub {
    /// A client with the settings from the environment: `HF_ENDPOINT`, `HF_HOME`, the stored token.
    ///
    /// # Errors
    /// [`Error::Hub`] if the client cannot be built.
    pub fn from_env() -> Result<Self> {
        Self::build(ApiBuilder::from_env())
    }

    /// A client for another endpoint, with a cache folder of its own.
    ///
    /// # Errors
    /// [`Error::Hub`] if the client cannot be built.
    pub fn with_endpoint(endpoint: impl Into<String>, cache: impl Into<PathBuf>) -> Result<Self> {
        Self::build(ApiBuilder::new().with_endpoint(endpoint.into()).with_cache_dir(cache.into()))
    }

    fn build(builder: ApiBuilder) -> Result<Self> {
        let api = builder.with_progress(false).build();
        Ok(Self { api: api.map_err(|error| hub_error("", "", error))? })
    }

    /// Downloads a model's config and weights, and its tokenizer if it has one; returns their folder.
    ///
    /// # Errors
    /// [`Error::Hub`] if the config or the weights cannot be obtained.
    pub fn model(&self, id: &str, revision: Option<&str>) -> Result<PathBuf> {
        let repo = self.repo(id, revision);
        let config = get(&repo, id, MODEL_CONFIG)?;
        for file in MODEL_OPTIONAL {
            // A model without a tokenizer is still a model.
            let _ = repo.get(file);
        }
        if let Err(error) = repo.get(MODEL_WEIGHTS) {
            let Ok(index) = repo.get(MODEL_INDEX) else { return Err(hub_error(id, MODEL_WEIGHTS, error)) };
            for shard in crate::store::shard_names(&index)? {
                get(&repo, id, &shard)?;
            }
        }
        Ok(config.parent().map(PathBuf::from).unwrap_or_default())
    }

    /// Downloads an adapter's config and weights; returns their folder, for `load_adapter`.
    ///
    /// # Errors
    /// [`Error::Hub`] if one of the files cannot be obtained.
    pub fn adapter(&self, id: &str, revision: Option<&str>) -> Result<PathBuf> {
        let repo = self.repo(id, revision);
        let mut folder = PathBuf::new();
        for file in ADAPTER_FILES {
            folder = get(&repo, id, file)?.parent().map(PathBuf::from).unwrap_or_default();
        }
        Ok(folder)
    }

    fn repo(&self, id: &str, revision: Option<&str>) -> ApiRepo {
        let revision = revision.unwrap_or("main").to_owned();
        self.api.repo(Repo::with_revision(id.to_owned(), RepoType::Model, revision))
    }
}

fn get(repo: &ApiRepo, id: &str, file: &str) -> Result<PathBuf> {
    repo.get(file).map_err(|error| hub_error(id, file, error))
}

fn hub_error(id: &str, file: &str, source: ApiError) -> Error {
    Error::Hub { id: id.to_owned(), file: file.to_owned(), source: Box::new(source) }
}
