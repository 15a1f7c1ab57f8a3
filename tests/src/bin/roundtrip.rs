//! The Rust half of `tests/python/roundtrip.py`, which calls it: `roundtrip read CASES` loads what PEFT saved,
//! `roundtrip write CASES OUT` saves adapters for PEFT to load.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use peft_tests::parity::{self, Failure};

fn main() -> ExitCode {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let words: Vec<&Path> = arguments.iter().map(PathBuf::as_path).collect();
    match words.as_slice() {
        [word, cases] if *word == Path::new("read") => report(cases, parity::read_case),
        [word, cases, out] if *word == Path::new("write") => {
            report(cases, |case| parity::write_case(case, out))
        }
        _ => {
            report_usage();
            ExitCode::from(2)
        }
    }
}

/// Does the work on each case and prints a line for it.
fn report(cases: &Path, work: impl Fn(&Path) -> Result<String, Failure>) -> ExitCode {
    let mut failed = 0;
    for case in parity::find_cases(&[cases.to_owned()]) {
        match case.and_then(|case| work(&case)) {
            Ok(line) => print_line(&line),
            Err(failure) => {
                failed += 1;
                print_line(&failure.to_string());
            }
        }
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[expect(clippy::print_stdout, reason = "the report is the program's output")]
fn print_line(line: &str) {
    println!("{line}");
}

#[expect(clippy::print_stderr, reason = "a usage message")]
fn report_usage() {
    eprintln!("usage: roundtrip read CASES | roundtrip write CASES OUT");
}
