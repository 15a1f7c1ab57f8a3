//! The command line.

use std::str::FromStr;

use anyhow::{Result, bail};
use lexopt::prelude::*;

/// What `--help` prints.
pub const HELP: &str = "\
Fine-tunes a small digit classifier with LoRA on digits that are turned and inverted.

Options:
      --rank <N>         The rank of the adapter [default: 8]
      --base-epochs <N>  Epochs on the upright digits, which train the base [default: 12]
      --epochs <N>       Epochs on the turned digits, which train the adapter [default: 12]
      --seed <N>         The seed of the split and of the adapter [default: 0]
  -h, --help             Print help
";

/// What the program is asked to do.
pub struct Arguments {
    /// The rank of the adapter.
    pub rank: usize,
    /// Epochs that train the base.
    pub base_epochs: usize,
    /// Epochs that train the adapter.
    pub epochs: usize,
    /// The seed of the split and of the adapter.
    pub seed: u64,
}

impl Arguments {
    /// Reads the arguments; `None` if the user asked for help.
    ///
    /// # Errors
    /// If an option is unknown, or its value is not a number.
    pub fn from_command_line() -> Result<Option<Self>> {
        let mut arguments = Self { rank: 8, base_epochs: 12, epochs: 12, seed: 0 };
        let mut parser = lexopt::Parser::from_env();
        while let Some(argument) = parser.next()? {
            match argument {
                Long("rank") => arguments.rank = number("rank", &mut parser)?,
                Long("base-epochs") => arguments.base_epochs = number("base-epochs", &mut parser)?,
                Long("epochs") => arguments.epochs = number("epochs", &mut parser)?,
                Long("seed") => arguments.seed = number("seed", &mut parser)?,
                Short('h') | Long("help") => return Ok(None),
                other => return Err(other.unexpected().into()),
            }
        }
        Ok(Some(arguments))
    }
}

/// The value of an option.
fn number<T: FromStr>(option: &str, parser: &mut lexopt::Parser) -> Result<T> {
    let value = parser.value()?;
    match value.to_str().map(str::parse) {
        Some(Ok(number)) => Ok(number),
        _ => bail!("`--{option}` needs a whole number, not {value:?}"),
    }
}
