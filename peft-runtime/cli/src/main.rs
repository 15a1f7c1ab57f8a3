//! `peft`: the commands of [`peft_cli`], for the methods that `peft-runtime` has.

use std::process::ExitCode;

fn main() -> ExitCode {
    peft_cli::run(std::env::args_os())
}
