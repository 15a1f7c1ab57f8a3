//! The command `peft`, run as a process.

mod check;
mod combine;
mod convert;
mod convert_dtype;
mod diff;
mod fixture;
mod formats;
mod inspect;
mod merge;
mod merge_gguf;
mod usage;
