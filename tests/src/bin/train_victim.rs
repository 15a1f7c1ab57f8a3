//! Trains until it is done or killed: `train_victim FOLDER STEPS`. A later call resumes from the last checkpoint.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use peft_tests::training::{Method, run};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().map(PathBuf::from);
    let steps = arguments.next().and_then(|steps| steps.parse().ok());
    let (Some(folder), Some(steps)) = (folder, steps) else {
        say("usage: train_victim FOLDER STEPS");
        return ExitCode::from(2);
    };
    // Long enough that a kill can come between two steps as well as within one.
    let pause = || std::thread::sleep(Duration::from_millis(2));
    match run(Method::Lora, &folder, 1, steps, pause) {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            say(&error.chain());
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stderr, reason = "the test shows what the program says")]
fn say(line: &str) {
    eprintln!("{line}");
}
