//! The command line, run as a process of its own.

mod convert;
mod fixture;
mod merge;
mod reports;
