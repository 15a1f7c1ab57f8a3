//! Progress on standard error.

use indicatif::{ProgressBar, ProgressStyle};

/// A bar over `steps` steps that shows a message, the rate and the time left.
pub fn bar(steps: usize, what: &str) -> ProgressBar {
    let bar = ProgressBar::new(steps as u64).with_prefix(what.to_owned());
    let style = ProgressStyle::with_template("{prefix:<12} {wide_bar} {pos}/{len} {per_sec} {eta} {msg}");
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// Prints a line for people, on standard error; standard output is left to results.
#[expect(clippy::print_stderr, reason = "an example talks to the person who runs it")]
pub fn say(line: impl AsRef<str>) {
    eprintln!("{}", line.as_ref());
}

/// Prints a line of results, on standard output.
#[expect(clippy::print_stdout, reason = "results go to standard output")]
pub fn result(line: impl AsRef<str>) {
    println!("{}", line.as_ref());
}
