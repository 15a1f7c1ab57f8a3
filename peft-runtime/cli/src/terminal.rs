//! What commands print: results on standard output, warnings and progress on standard error.

use std::io::{ErrorKind, Write};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::failure::Failure;

/// Prints text on standard output. A pipe that its reader has closed is not an error.
///
/// # Errors
/// If standard output cannot be written to.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut output = std::io::stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::new(format!("cannot print: {error}"), "check where the output is sent"))
        }
        _ => Ok(()),
    }
}

/// Prints a value as JSON.
///
/// # Errors
/// If standard output cannot be written to.
pub fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(peft_runtime::Error::from)?;
    print(&format!("{text}\n"))
}

/// Prints a warning on standard error.
pub fn warn(text: &str) {
    // A warning that cannot be written must not stop the command.
    let _ = writeln!(std::io::stderr(), "warning: {text}");
}

/// A progress bar over bytes, shown on standard error; hidden if standard error is not a terminal.
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// A bar with `what` in front of it; hidden if `quiet`.
    pub fn new(what: &'static str, quiet: bool) -> Self {
        let target = if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bar = ProgressBar::with_draw_target(None, target).with_prefix(what);
        let template =
            "{prefix} [{bar:30}] {percent:>3}%  {decimal_bytes} of {decimal_total_bytes} {wide_msg}";
        // A bar in the library's own style is better than none.
        let bar = match ProgressStyle::with_template(template) {
            Ok(style) => bar.with_style(style.progress_chars("## ")),
            Err(_) => bar,
        };
        Self { bar }
    }

    /// Shows that `done` of `total` bytes are done, the last of which are those of `tensor`.
    pub fn show(&self, done: u64, total: u64, tensor: &str) {
        self.bar.set_length(total);
        self.bar.set_position(done);
        if done < total {
            self.bar.set_message(tensor.to_owned());
        } else {
            self.bar.finish_with_message("");
        }
    }
}
