//! Why several files are not the weights of one model.

use std::path::PathBuf;

use super::words;

/// Weight files, or the index that lists them, that do not fit together.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ShardsError {
    /// The index is not the JSON that was expected.
    #[error("not a valid index of shards")]
    Index(#[source] serde_json::Error),

    /// The index names a file outside of its folder.
    #[error("`weight_map` names `{}`, which is not a file in the folder of the index", words::shortened(.name))]
    OutsideFolder {
        /// The name as the index has it.
        name: String,
    },

    /// Two files hold a tensor with the same name.
    #[error("the tensor `{}` is in two files; the other one is `{}`", words::shortened(.tensor), .first.display())]
    DuplicateTensor {
        /// The tensor.
        tensor: String,
        /// The file that had it before.
        first: PathBuf,
    },

    /// A folder has the weights of a model several times.
    #[error("it has the weights several times: {}; open one of the files", words::quoted_list(.files))]
    Variants {
        /// The names of the files.
        files: Vec<String>,
    },

    /// A folder is that of a pipeline, which has several models.
    #[error("it is a pipeline with several models; open the folder of one of them: {}", words::quoted_list(.models))]
    Pipeline {
        /// The folders of the models.
        models: Vec<String>,
    },

    /// Two files from different folders have the same name, and would be written to one folder.
    #[error("`{}` has the same name, and both would be written to one folder; rename one of them", .first.display())]
    SameName {
        /// The file that had the name before.
        first: PathBuf,
    },
}
