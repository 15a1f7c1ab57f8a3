//! One module for each command.

mod check;
mod combine;
mod convert;
mod diff;
mod inspect;
mod merge;
mod merge_gguf;

use crate::arguments::Command;
use crate::failure::Failure;

/// Runs a command; whether its answer is yes, for the one that asks.
///
/// # Errors
/// If the command fails.
pub fn run(command: &Command) -> Result<bool, Failure> {
    match command {
        Command::Inspect(arguments) => inspect::run(arguments)?,
        Command::Merge(arguments) => merge::run(arguments)?,
        Command::Combine(arguments) => combine::run(arguments)?,
        Command::Diff(arguments) => diff::run(arguments)?,
        Command::Convert(arguments) => convert::run(arguments)?,
        Command::Check(arguments) => return check::run(arguments),
    }
    Ok(true)
}
