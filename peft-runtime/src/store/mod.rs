//! State dicts and files, with the keys and bytes of PEFT.

mod adapter_files;
mod base_model;
mod card;
mod checkpoint;
mod embeddings;
mod file;
mod header;
mod keys;
mod layout;
mod load;
mod merged;
mod new_folder;
mod plain_lora;
mod save;
mod standalone;
mod state_dict;

pub(crate) use base_model::{base_state_dict, load_base_state_dict, merged_state_dict};
pub use checkpoint::Checkpoint;
#[cfg(feature = "hub")]
pub(crate) use checkpoint::shard_names;
pub use embeddings::SaveEmbeddings;
pub use file::read_text;
pub(crate) use file::{PendingFile, sync_folder, to_bytes};
pub(crate) use header::parse as parse_safetensors;
pub use load::{LoadOptions, LoadReport};
pub(crate) use load::{hotswap_adapter, load_adapter, load_adapter_as};
pub use merged::{MergedWeights, NameMap, Unadapted, WriteProgress, WriteReport};
pub use save::SaveOptions;
pub(crate) use save::save_pretrained;
pub use standalone::{BaseWeights, StoredAdapter, StoredKind, StoredLayer, StoredShape};
pub(crate) use state_dict::{adapter_state_dict, inject_adapter_from_state_dict, load_adapter_state_dict};
