//! The command `peft`, run as a process.

mod check;
mod combine;
mod convert;
mod diff;
mod fixture;
mod inspect;
mod merge;
mod usage;
