//! State dicts and files, with the same keys and bytes as PEFT's.

mod adapter_files;
mod base_model;
mod card;
mod embeddings;
mod file;
#[expect(dead_code, reason = "the formats come one by one")]
mod formats;
mod header;
mod keys;
mod layout;
mod load;
mod merged;
mod model_weights;
mod name_map;
mod new_folder;
mod original_base;
mod prefix_search;
mod save;
mod standalone;
mod state_dict;
mod stored_contents;

pub(crate) use base_model::{base_state_dict, load_base_state_dict, merged_state_dict};
pub use embeddings::SaveEmbeddings;
pub(crate) use file::{PendingFile, read_text, sync_folder, to_bytes};
pub(crate) use header::parse as parse_safetensors;
pub use load::{LoadOptions, LoadReport};
pub(crate) use load::{hotswap_adapter, load_adapter};
pub use merged::{MergedWeights, Unadapted, WriteProgress, WriteReport};
pub use model_weights::ModelWeights;
#[cfg(feature = "hub")]
pub(crate) use model_weights::shard_names;
pub use name_map::NameMap;
pub use save::SaveOptions;
pub(crate) use save::save_pretrained;
pub use standalone::{BaseWeights, StoredAdapter, StoredKind, StoredLayer};
pub(crate) use state_dict::{adapter_state_dict, inject_adapter_from_state_dict, load_adapter_state_dict};
pub use stored_contents::StoredShape;
