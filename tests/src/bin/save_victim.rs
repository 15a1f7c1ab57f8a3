//! Saves one adapter over another until it is done or killed: `save_victim FOLDER NAME FIRST COUNT`, where a COUNT of 0 never
//! ends.
//!
//! It writes a line when it begins. If a save fails, it ends with status 1 and prints the error on standard error.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use peft_runtime::Result;
use peft_runtime::prelude::*;
use peft_tests::victim::Variant;

/// The program's arguments.
struct Arguments {
    folder: PathBuf,
    name: String,
    first: Variant,
    count: usize,
}

fn arguments() -> Option<Arguments> {
    let mut arguments = std::env::args().skip(1);
    Some(Arguments {
        folder: PathBuf::from(arguments.next()?),
        name: arguments.next()?,
        first: Variant(arguments.next()?.parse().ok()?),
        count: arguments.next()?.parse().ok()?,
    })
}

fn save(arguments: &Arguments) -> Result<()> {
    let Arguments { folder, name, first, count } = arguments;
    let models = Variant::all().map(|variant| variant.model(name)).collect::<Result<Vec<_>>>()?;
    let begin = || {
        let mut output = std::io::stdout();
        writeln!(output, "begin")?;
        output.flush()
    };
    begin().map_err(candle_core::Error::Io)?;
    let (mut variant, mut saved) = (*first, 0);
    while *count == 0 || saved < *count {
        if let Some(model) = models.get(variant.0) {
            model.save_pretrained(folder, name)?;
        }
        (variant, saved) = (variant.following(), saved + 1);
    }
    Ok(())
}

fn main() -> ExitCode {
    let Some(arguments) = arguments() else {
        say("usage: save_victim FOLDER NAME FIRST COUNT");
        return ExitCode::from(2);
    };
    match save(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
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
