//! Ready-made models, with the module names of transformers and every projection [`Adapted`](crate::Adapted).

mod activation;
pub mod bert;
mod cache;
mod causal;
mod compare;
mod folder;
pub mod generate;
pub mod gpt2;
pub mod llama;

pub use compare::{Closeness, Comparison, compare_merged};
