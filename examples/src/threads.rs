//! How many threads a program computes on, and what they do between tasks.

use std::env;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use candle_core::utils::with_threadpool;

/// The variable in which rayon and candle look for the number of threads.
const THREADS: &str = "RAYON_NUM_THREADS";

/// How many times a thread of candle's own pool looks for work before it sleeps; 25,000 by default.
///
/// That pool computes candle's elementwise operations, of which a backward pass has many. Its threads keep spinning
/// while rayon's compute a matrix product, and with as many threads as cores they take a core from rayon's.
const SPINS: &str = "CANDLE_BARRIER_POOL_SPIN_LIMIT";

/// Runs `program`, which is all of `main` except reading the arguments, on `count` threads if a number is given.
///
/// It runs on one of the compute threads, so it does not have to hand each operation over to them and sleep until the
/// result is there. Candle's own threads sleep while they have nothing to do, unless the environment says otherwise.
///
/// # Errors
/// The error of `program`; or if the number is 0, or the program cannot be restarted.
pub fn on_threads<T: Send>(count: Option<usize>, program: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    set_environment(count)?;
    with_threadpool(program)
}

/// The number of threads and of spins is read from the environment, which must not be changed once threads run: if it
/// is not right, the program replaces itself with one that has the right environment.
fn set_environment(count: Option<usize>) -> Result<()> {
    ensure!(count != Some(0), "`--threads` must be at least 1");
    let spins = env::var_os(SPINS).is_none().then(|| (SPINS, "1".to_owned()));
    let threads = count.map(|count| (THREADS, count.to_string()));
    let threads = threads.filter(|(name, count)| env::var(name).as_ref() != Ok(count));
    let changes: Vec<(&str, String)> = spins.into_iter().chain(threads).collect();
    if changes.is_empty() {
        return Ok(());
    }
    let mut again = Command::new(env::current_exe()?);
    again.args(env::args_os().skip(1)).envs(changes);
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
