//! Where a model is.

use std::path::PathBuf;

use anyhow::{Context, Result};

/// The folder or file itself, or the folder that the hub's files were downloaded to.
///
/// # Errors
/// If it is not one of them, or the download fails.
pub fn model_path(model: &str) -> Result<PathBuf> {
    let path = PathBuf::from(model);
    if path.exists() {
        return Ok(path);
    }
    #[cfg(feature = "hub")]
    {
        let hub = peft_runtime::hub::Hub::from_env()?;
        return hub
            .model(model, None)
            .with_context(|| format!("`{model}` is neither a file or folder nor a model on the hub"));
    }
    #[cfg(not(feature = "hub"))]
    Err(anyhow::anyhow!("`{model}` is not a file or folder; ids on the hub need `--features hub`"))
        .with_context(|| "looking for the model")
}
