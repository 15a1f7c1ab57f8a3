//! How many threads a program computes on.

use std::env;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// The variable in which rayon and candle look.
const VARIABLE: &str = "RAYON_NUM_THREADS";

/// Makes the program compute on `count` threads, if a number is given. It belongs at the beginning of `main`.
///
/// The number is in the environment, and may not be changed there once threads run: where the environment says something
/// else, the program takes its own place with the right one.
///
/// # Errors
/// If the number is 0, or the program cannot be started again.
pub fn use_threads(count: Option<usize>) -> Result<()> {
    let Some(count) = count else { return Ok(()) };
    ensure!(count > 0, "`--threads` has to be at least 1");
    let count = count.to_string();
    if env::var(VARIABLE).is_ok_and(|value| value == count) {
        return Ok(());
    }
    let mut again = Command::new(env::current_exe()?);
    again.args(env::args_os().skip(1)).env(VARIABLE, count);
    restart(again).context("starting the program again with another number of threads")
}

#[cfg(unix)]
fn restart(mut again: Command) -> Result<()> {
    Err(std::os::unix::process::CommandExt::exec(&mut again).into())
}

#[cfg(not(unix))]
fn restart(mut again: Command) -> Result<()> {
    let status = again.status()?;
    std::process::exit(status.code().unwrap_or(1))
}
