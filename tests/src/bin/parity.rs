//! Replays parity cases: `parity DIR [DIR …]`, each a case or a folder of cases.

use std::path::PathBuf;
use std::process::ExitCode;

use peft_tests::parity;

fn main() -> ExitCode {
    let folders: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    if folders.is_empty() {
        report_usage();
        return ExitCode::from(2);
    }
    let mut passed = 0;
    let mut failed = 0;
    for folder in parity::find_cases(&folders) {
        let line = match folder.and_then(|folder| parity::run_case(&folder)) {
            Ok(line) => {
                passed += 1;
                line
            }
            Err(failure) => {
                failed += 1;
                failure.to_string()
            }
        };
        print_line(&line);
    }
    print_line(&format!("{passed} passed, {failed} failed"));
    if failed == 0 && passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[expect(clippy::print_stdout, reason = "the report is the program's output")]
fn print_line(line: &str) {
    println!("{line}");
}

#[expect(clippy::print_stderr, reason = "a usage message")]
fn report_usage() {
    eprintln!("usage: parity DIR [DIR …], each a case or a folder of cases");
}
