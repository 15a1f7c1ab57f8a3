//! Words of errors in training.

use std::path::PathBuf;

/// From where training can go on.
pub(super) fn last_good(checkpoint: &Option<PathBuf>) -> String {
    match checkpoint {
        Some(path) => format!("the last good checkpoint is `{}`", path.display()),
        None => "there is no checkpoint to go back to".to_owned(),
    }
}
