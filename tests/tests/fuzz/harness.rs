//! Inputs one after the other, each with a limit on memory and time.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use peft_runtime::Error;
use peft_runtime::prelude::*;
use peft_tests::memory;
use peft_tests::mutate::Chance;
use peft_tests::tensors::bits;
use peft_tests::victim::Victim;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// The largest piece of memory that reading a small input may ask for.
const LARGEST: usize = 64 << 20;
/// How long reading one may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// The rolls that decide the changes of one input.
pub struct Dice(pub ChaCha8Rng);

impl Chance for Dice {
    fn below(&mut self, limit: usize) -> usize {
        (self.0.next_u64() % limit.max(1) as u64) as usize
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Tries `inputs` inputs, or as many as the environment says. `attempt` makes one, reads it, and returns what is
/// wrong apart from panics.
pub fn fuzz(test: &str, inputs: u64, mut attempt: impl FnMut(&mut Dice) -> Result<(), String>) {
    let first = number("PEFT_FUZZ_SEED").unwrap_or_default();
    let inputs = number("PEFT_FUZZ_INPUTS").unwrap_or(inputs);
    for seed in first..first.saturating_add(inputs) {
        let mut dice = Dice(ChaCha8Rng::seed_from_u64(seed));
        memory::start_input(seed);
        let started = Instant::now();
        let found = catch_unwind(AssertUnwindSafe(|| attempt(&mut dice)));
        let wrong = match found {
            Err(_) => Some("it panics".to_owned()),
            Ok(Err(wrong)) => Some(wrong),
            Ok(Ok(())) if memory::largest_piece() > LARGEST => {
                Some(format!("it asks for {} bytes in one piece", memory::largest_piece()))
            }
            Ok(Ok(())) => None,
        };
        let time = started.elapsed();
        let wrong = wrong.or_else(|| (time > PATIENCE).then(|| format!("it takes {time:?}")));
        if let Some(wrong) = wrong {
            panic!(
                "{wrong}; again with: PEFT_FUZZ_SEED={seed} PEFT_FUZZ_INPUTS=1 cargo test -p peft-tests --test fuzz {test}"
            );
        }
    }
}

/// An adapter's model that a failed call has not changed: the names of its adapters, and its outputs.
pub fn check_unchanged(model: &Victim, before: &(Vec<String>, Vec<u64>)) -> Result<(), String> {
    if state(model) == *before { Ok(()) } else { Err("a failed call has changed the model".to_owned()) }
}

pub fn state(model: &Victim) -> (Vec<String>, Vec<u64>) {
    let output = model.forward(&Victim::ids().unwrap()).unwrap();
    (model.adapter_names(), bits(&output).unwrap())
}

/// Checks a model after a call that may have failed: it runs, and a failure has changed nothing.
pub fn check_after<T>(
    model: &Victim,
    before: &(Vec<String>, Vec<u64>),
    outcome: Result<T, Error>,
    file: Option<&Path>,
) -> Result<(), String> {
    match outcome {
        Ok(_) => {
            // NaN and infinity may come out, but a shape that does not fit may not.
            model
                .forward(&Victim::ids().unwrap())
                .map_err(|error| format!("a loaded model fails: {error}"))?;
            Ok(())
        }
        Err(error) => {
            let text = error.chain();
            let folder = file.map(|file| file.display().to_string());
            if folder.is_some_and(|folder| !text.contains(&folder)) {
                return Err(format!("the error names no file: {text}"));
            }
            check_unchanged(model, before)
        }
    }
}
