//! The text to train on, and the part of it that is held out.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

use super::language::Language;

/// The beginning of a book; see `data/README.md` for its origin.
const ALICE: &str = include_str!("../../../data/alice.txt");

/// One token in this many is held out.
const HELD_OUT: usize = 10;

/// The most sequences of the held-out text that are evaluated.
const MOST_WINDOWS: usize = 16;

/// The tokens of the held-out text that form the prompt.
const PROMPT: usize = 24;

/// A text as tokens, the last of which are held out.
pub struct Data {
    training: Vec<u32>,
    held_out: Vec<u32>,
    seq: usize,
}

impl Data {
    /// Reads a `.txt` or `.jsonl` file, or takes the text that comes with the example.
    pub fn load(path: Option<&Path>, language: &Language, seq: usize) -> Result<Self> {
        let mut training = match path {
            None => language.encode(ALICE)?,
            Some(path) => read(path, language).with_context(|| format!("reading {}", path.display()))?,
        };
        let held_out = training.split_off(training.len() - training.len() / HELD_OUT);
        ensure!(seq > 1, "`--seq` must be at least 2");
        ensure!(
            training.len() > seq && held_out.len() > 1,
            "{} tokens are too few for sequences of {seq}, with one in {HELD_OUT} held out",
            training.len() + held_out.len()
        );
        Ok(Self { training, held_out, seq })
    }

    /// How many tokens there are to train on, and how many are held out.
    pub fn sizes(&self) -> (usize, usize) {
        (self.training.len(), self.held_out.len())
    }

    /// Batch `number` of a run with this seed, `[batch, seq]`: pieces of the text from random places.
    pub fn batch(&self, number: u64, batch: usize, seed: u64) -> candle_core::Result<Tensor> {
        // Each batch has a stream of its own: a resumed run continues with the batch that comes next.
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(number);
        let mut tokens = Vec::with_capacity(batch * self.seq);
        for _ in 0..batch {
            let start = random.random_range(0..=self.training.len() - self.seq);
            tokens.extend_from_slice(&self.training[start..start + self.seq]);
        }
        Tensor::from_vec(tokens, (batch, self.seq), &Device::Cpu)
    }

    /// The held-out text in pieces, `[1, seq]`; the last may be shorter.
    pub fn held_out(&self) -> impl Iterator<Item = candle_core::Result<Tensor>> {
        let windows = self.held_out.chunks(self.seq).take(MOST_WINDOWS).filter(|window| window.len() > 1);
        windows.map(|window| Tensor::new(window, &Device::Cpu)?.unsqueeze(0))
    }

    /// The beginning of the held-out text.
    pub fn prompt(&self) -> &[u32] {
        &self.held_out[..PROMPT.min(self.held_out.len())]
    }
}

fn read(path: &Path, language: &Language) -> Result<Vec<u32>> {
    let text = std::fs::read_to_string(path)?;
    if path.extension().is_none_or(|extension| extension != "jsonl") {
        return language.encode(&text);
    }
    let mut tokens = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let value: Value = serde_json::from_str(line).with_context(|| format!("line {}", number + 1))?;
        let text = value.get("text").and_then(Value::as_str);
        let text = text.with_context(|| format!("line {} has no string called `text`", number + 1))?;
        tokens.extend(language.encode(text)?);
        // Texts are separated by the token that ends one.
        tokens.extend(language.last.first());
    }
    Ok(tokens)
}
