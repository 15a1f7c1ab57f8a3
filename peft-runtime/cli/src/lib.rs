//! The command `peft`: inspects, merges, combines, compares and converts adapters in Python PEFT's format.
//!
//! A crate with an adapter method of its own can offer the same commands for it: with a program that registers the
//! method and calls [`run`]:
//!
//! ```no_run
//! use std::process::ExitCode;
//!
//! use peft_runtime::method::register;
//! # type OwnSettings = peft_runtime::method::LoraSettings;
//!
//! fn main() -> peft_runtime::Result<ExitCode> {
//!     register::<OwnSettings>()?;
//!     Ok(peft_cli::run(std::env::args_os()))
//! }
//! ```
//!
//! The registry is part of `peft-runtime`, so such a program must depend on the same version of it as this crate.
//! [`Method`](peft_runtime::method::Method) says what a method is.

#![deny(unsafe_code)]

mod arguments;
mod check;
mod commands;
mod failure;
mod files;
mod float_type;
mod heat_map;
mod mlx_adapter;
mod table;
mod terminal;
mod written_format;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;

use arguments::Arguments;

/// The exit status for an invalid command line, the same as clap's.
const USAGE: u8 = 2;

/// Runs the command with these arguments, the first of which is the name of the program.
///
/// Results go to standard output, errors and warnings to standard error. The status is 0 on success, 1 on an error or where
/// `peft check` says no, and 2 if the arguments are invalid.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let parsed = Arguments::try_parse_from(arguments).and_then(|arguments| {
        arguments.check()?;
        Ok(arguments)
    });
    let arguments = match parsed {
        Ok(arguments) => arguments,
        Err(error) => {
            // A failure here could only be reported in the same way.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    match commands::run(&arguments.command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => {
            failure.report();
            ExitCode::FAILURE
        }
    }
}
