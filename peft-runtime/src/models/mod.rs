//! Ready models, with the module names of transformers and every projection [`Adapted`](crate::Adapted).

pub mod bert;
mod folder;
