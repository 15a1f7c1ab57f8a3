//! State dicts and files, with the same keys and bytes as PEFT's.

mod adapter_files;
mod bare_parameters;
mod base_model;
mod base_weights;
mod canonical;
mod card;
mod embeddings;
mod file;
mod folders;
mod formats;
mod gguf_check;
mod header;
mod keys;
mod layout;
mod load;
mod merged;
mod model_facts;
mod model_files;
mod model_weights;
mod name_map;
mod new_folder;
mod orientation;
mod original_base;
mod other_file;
mod prefix_search;
mod rotary_rows;
mod save;
mod standalone;
mod state_dict;
mod stored_contents;
mod tied;

pub(crate) use base_model::{base_state_dict, load_base_state_dict, merged_state_dict};
pub use base_weights::BaseWeights;
pub use embeddings::SaveEmbeddings;
pub(crate) use file::{PendingFile, read_text, sync_folder, to_bytes};
#[cfg(feature = "models")]
pub(crate) use gguf_check::read_content as read_gguf_content;
pub(crate) use header::parse as parse_safetensors;
pub use load::{LoadOptions, LoadReport};
pub(crate) use load::{hotswap_adapter, load_adapter};
pub use merged::{MergedWeights, Unadapted, WriteProgress, WriteReport};
#[cfg(feature = "hub")]
pub(crate) use model_files::shard_names;
pub use model_weights::ModelWeights;
pub use name_map::NameMap;
#[cfg(feature = "models")]
pub(crate) use rotary_rows::{in_halves, in_pairs};
pub use save::SaveOptions;
pub(crate) use save::save_pretrained;
#[cfg(feature = "models")]
pub(crate) use standalone::load_stored_adapter;
pub use standalone::{ImageProgram, PipelineModel, StoredAdapter, StoredKind, StoredLayer};
pub(crate) use state_dict::{adapter_state_dict, inject_adapter_from_state_dict, load_adapter_state_dict};
pub use stored_contents::StoredShape;
