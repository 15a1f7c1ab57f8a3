//! How many threads a program computes on.

use std::env;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// The variables in which rayon and candle look for the number of threads.
const THREADS: [&str; 2] = ["RAYON_NUM_THREADS", "CANDLE_NUM_THREADS"];

/// Runs `program`, which is all of `main` except reading the arguments, on `count` threads if a number is given.
///
/// # Errors
/// The error of `program`; or if the number is 0, or the program cannot be restarted.
pub fn on_threads<T>(count: Option<usize>, program: impl FnOnce() -> Result<T>) -> Result<T> {
    set_environment(count)?;
    program()
}

/// The number of threads is read from the environment, which must not be changed once threads run: if it is not right, the
/// program replaces itself with one that has the right environment.
fn set_environment(count: Option<usize>) -> Result<()> {
    ensure!(count != Some(0), "`--threads` must be at least 1");
    let is_set = |count: &String| THREADS.iter().all(|name| env::var(name).as_ref() == Ok(count));
    let count = count.map(|count| count.to_string()).filter(|count| !is_set(count));
    let Some(count) = count else { return Ok(()) };
    let mut again = Command::new(env::current_exe()?);
    again.args(env::args_os().skip(1)).envs(THREADS.map(|name| (name, &count)));
    restart(again).context("restarting the program with another environment")
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
