//! Replays every folder of `parity/cases`, and of `parity/half` those in half precision, as a test of that name: `cargo test -p peft-tests --test parity lora_bert`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};
use peft_tests::parity::{Failure, find_cases, run_case};

/// The test of a case.
fn trial(folder: PathBuf) -> Trial {
    let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Trial::test(name.clone(), move || replay(&folder, &name))
}

/// Replays a case, which has to have the name of its folder, because the test is called by that name.
fn replay(folder: &Path, name: &str) -> Result<(), Failed> {
    let report = run_case(folder)?;
    if report.split(' ').nth(1) == Some(name) {
        Ok(())
    } else {
        Err(format!("`case.json` has a different name from its folder: {report}").into())
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let parity = Path::new(env!("CARGO_MANIFEST_DIR")).join("parity");
    // A missing or empty folder is a failure whatever tests are selected.
    let folders: Result<Vec<PathBuf>, Failure> =
        find_cases(&["cases", "half"].map(|folder| parity.join(folder))).into_iter().collect();
    match folders {
        Ok(folders) => libtest_mimic::run(&arguments, folders.into_iter().map(trial).collect()).exit_code(),
        Err(failure) => {
            report_failure(&failure);
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stderr, reason = "without a test, nothing else could report it")]
fn report_failure(failure: &Failure) {
    eprintln!("{failure}");
}
