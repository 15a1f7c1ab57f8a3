//! `peft-with-scale`: the commands of `peft` with support for Scale.

use std::process::ExitCode;

use peft_extension::ScaleSettings;
use peft_runtime::method::register;

fn main() -> peft_runtime::Result<ExitCode> {
    register::<ScaleSettings>()?;
    Ok(peft_cli::run(std::env::args_os()))
}
