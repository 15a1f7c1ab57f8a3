//! A program whose `main` returns the library's errors, as users write them: `returned_error inject TARGET…` injects an adapter
//! on these targets, `returned_error load FOLDER` loads one.

use peft_runtime::Result;
use peft_runtime::prelude::*;
use peft_tests::victim::Victim;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut model = Victim::new()?;
    match arguments.split_first() {
        Some((word, targets)) if word == "inject" => {
            model.inject_adapter(&LoraConfig::new(2, 4.0).with_targets(targets.to_vec()), "default")?;
        }
        Some((word, folders)) if word == "load" => {
            for folder in folders {
                model.load_adapter(folder, "default")?;
            }
        }
        _ => {}
    }
    Ok(())
}
