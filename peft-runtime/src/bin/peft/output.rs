//! Standard output, files, and the progress on the terminal.

use std::io::{ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use peft_runtime::Checkpoint;
use serde::Serialize;
use tempfile::NamedTempFile;

use crate::failure::Failure;

/// Prints text; a reader that has gone away is no error.
///
/// # Errors
/// If standard output cannot be written to.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut output = std::io::stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::new(format!("cannot print: {error}"), "check where the output goes"))
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

/// Says something on standard error that does not stop the command.
pub fn warn(text: &str) {
    // A warning that cannot be written is not worth an error.
    let _ = writeln!(std::io::stderr(), "warning: {text}");
}

/// Opens a base model: one folder, or safetensors files.
///
/// # Errors
/// If a file cannot be read.
pub fn open_base(paths: &[PathBuf]) -> Result<Checkpoint, Failure> {
    Ok(match paths {
        [one] => Checkpoint::open(one)?,
        several => Checkpoint::open_files(several)?,
    })
}

/// Refuses an output that is there already, unless it may be replaced.
///
/// # Errors
/// If it is.
pub fn check_free(output: &Path, is_there: bool, force: bool) -> Result<(), Failure> {
    if force || !is_there {
        return Ok(());
    }
    Err(Failure::new(
        format!("`{}` is there already", output.display()),
        "choose another output, or replace it with `--force`",
    ))
}

/// A file beside `path` that takes its place when it is persisted.
///
/// # Errors
/// If the folder cannot be written to.
pub fn new_file(path: &Path, suffix: &str) -> Result<NamedTempFile, Failure> {
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644));
    let file = builder.prefix(".").suffix(suffix).tempfile_in(folder);
    file.map_err(|error| Failure::write(path, &error))
}

/// A bar on the terminal.
pub struct Progress {
    shows: bool,
    last: Option<Instant>,
    what: &'static str,
}

impl Progress {
    /// A bar for `what`, if standard error is a terminal and nobody asked for quiet.
    pub fn new(what: &'static str, quiet: bool) -> Self {
        Self { shows: !quiet && std::io::stderr().is_terminal(), last: None, what }
    }

    /// Shows how far it is, ten times a second at most.
    pub fn show(&mut self, done: u64, total: u64, detail: &str) {
        const PAUSE: Duration = Duration::from_millis(100);
        if !self.shows || (done < total && self.last.is_some_and(|last| last.elapsed() < PAUSE)) {
            return;
        }
        self.last = Some(Instant::now());
        let end = if done < total { "" } else { "\n" };
        let detail = if done < total { detail } else { "" };
        let line = bar(done, total);
        // Progress that cannot be written is not worth an error.
        let _ = write!(std::io::stderr(), "\r{} {line} {detail}\x1b[K{end}", self.what);
    }
}

/// `[#####     ]  50%  1.0 of 2.0 GB`
fn bar(done: u64, total: u64) -> String {
    const WIDTH: usize = 30;
    #[expect(clippy::cast_precision_loss, reason = "a part of the width of a line")]
    let share = if total == 0 { 1.0 } else { done as f64 / total as f64 };
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and the width")]
    let filled = (share * WIDTH as f64).clamp(0.0, WIDTH as f64) as usize;
    let (filled, left) = ("#".repeat(filled), " ".repeat(WIDTH - filled));
    format!("[{filled}{left}] {:3.0}%  {} of {}", 100.0 * share, bytes(done), bytes(total))
}

/// A number of bytes with a unit.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    if count < 1000 {
        return format!("{count} B");
    }
    #[expect(clippy::cast_precision_loss, reason = "one decimal is shown")]
    let mut value = count as f64 / 1000.0;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::{bar, bytes};

    #[test]
    fn sizes_have_a_unit_and_one_decimal() {
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(1_500), "1.5 kB");
        assert_eq!(bytes(999_999), "1.0 MB");
        assert_eq!(bytes(4_000_000_000_000_000), "4000.0 TB");
    }

    #[test]
    fn the_bar_is_full_at_the_end() {
        assert!(bar(0, 10).starts_with("[   "));
        assert!(bar(10, 10).contains("####] 100%"));
        assert!(bar(0, 0).contains("100%"));
    }
}
