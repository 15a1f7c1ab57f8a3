//! Writes out the hostile files, each set into a folder with its name: `attacks FOLDER`.

use std::path::PathBuf;
use std::process::ExitCode;

use peft_tests::attacks::all;

fn main() -> ExitCode {
    let Some(folder) = std::env::args().nth(1).map(PathBuf::from) else {
        say("usage: attacks FOLDER");
        return ExitCode::from(2);
    };
    for attack in all() {
        if let Err(error) = attack.write(&folder.join(attack.name)) {
            say(&format!("{}: {}", attack.name, error.chain()));
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

#[expect(clippy::print_stderr, reason = "its user sees what the program says")]
fn say(line: &str) {
    eprintln!("{line}");
}
