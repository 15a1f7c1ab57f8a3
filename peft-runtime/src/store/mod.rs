//! State dicts and files, with the keys and bytes of PEFT.

mod card;
mod checkpoint;
mod file;
mod keys;
mod load;
mod save;
mod state_dict;

pub use checkpoint::Checkpoint;
#[cfg(feature = "hub")]
pub(crate) use checkpoint::shard_names;
pub(crate) use load::load_adapter;
pub use load::{LoadOptions, LoadReport};
pub(crate) use save::save_pretrained;
pub(crate) use state_dict::{
    adapter_state_dict, base_state_dict, load_adapter_state_dict, merged_state_dict,
};
