//! The rated snippets, as tokens and labels.

use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use candle_core::{Device, Tensor};
use peft_examples::batches::shuffled;
use tokenizers::{Tokenizer, TruncationParams};

/// How many snippets are held out from training.
const HELD_OUT: usize = 2000;

/// All snippets with a rating other than zero.
pub struct Reviews {
    tokens: Vec<Vec<u32>>,
    /// 1 for a positive rating.
    labels: Vec<u32>,
}

impl Reviews {
    /// Reads `id TAB rating TAB text` lines and cuts each text to `max_len` tokens.
    pub fn load(path: &Path, model: &Path, max_len: usize) -> Result<Self> {
        let tokenizer_path = model.join("tokenizer.json");
        let mut tokenizer = Tokenizer::from_file(&tokenizer_path)
            .map_err(|error| anyhow!("{}: {error}", tokenizer_path.display()))?;
        let truncation = TruncationParams { max_length: max_len, ..TruncationParams::default() };
        tokenizer.with_padding(None).with_truncation(Some(truncation)).map_err(|error| anyhow!("{error}"))?;
        let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        // Some lines of the file are in Latin-1.
        let text = String::from_utf8_lossy(&bytes);
        let (mut texts, mut labels) = (Vec::new(), Vec::new());
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let mut parts = line.splitn(3, '\t').skip(1);
            let rating = parts.next().and_then(|rating| rating.trim().parse::<f64>().ok());
            let (Some(rating), Some(text)) = (rating, parts.next()) else {
                return Err(anyhow!("{}:{}: expected `id TAB rating TAB text`", path.display(), number + 1));
            };
            if rating != 0.0 {
                texts.push(text.trim().to_owned());
                labels.push(u32::from(rating > 0.0));
            }
        }
        ensure!(labels.len() > HELD_OUT, "{} has only {} rated snippets", path.display(), labels.len());
        let encodings = tokenizer.encode_batch(texts, true).map_err(|error| anyhow!("{error}"))?;
        let tokens = encodings.iter().map(|encoding| encoding.get_ids().to_vec()).collect();
        Ok(Self { tokens, labels })
    }

    /// The snippets to train on and those held out, by index.
    pub fn split(&self, seed: u64, limit: Option<usize>) -> (Vec<usize>, Vec<usize>) {
        let mut training = shuffled(self.labels.len(), seed);
        let mut held_out = training.split_off(training.len() - HELD_OUT);
        training.truncate(limit.unwrap_or(usize::MAX));
        // Ordered by length, so that evaluation needs little padding.
        held_out.sort_by_key(|index| self.tokens[*index].len());
        (training, held_out)
    }

    /// Token ids and attention mask `[batch, length]`, padded to the longest of the batch, and labels `[batch]`.
    pub fn batch(&self, indices: &[usize], device: &Device) -> candle_core::Result<(Tensor, Tensor, Tensor)> {
        let length = indices.iter().map(|index| self.tokens[*index].len()).max().unwrap_or(0);
        let mut ids = Vec::with_capacity(indices.len() * length);
        let mut mask = Vec::with_capacity(indices.len() * length);
        for tokens in indices.iter().map(|index| &self.tokens[*index]) {
            ids.extend(tokens.iter().copied().chain(std::iter::repeat_n(0, length - tokens.len())));
            mask.extend((0..length).map(|position| if position < tokens.len() { 1f32 } else { 0.0 }));
        }
        let labels: Vec<u32> = indices.iter().map(|index| self.labels[*index]).collect();
        let shape = (indices.len(), length);
        Ok((
            Tensor::from_vec(ids, shape, device)?,
            Tensor::from_vec(mask, shape, device)?,
            Tensor::from_vec(labels, indices.len(), device)?,
        ))
    }
}
