//! Texts as tokens.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use candle_core::quantized::gguf_file::Content;
use serde_json::Value;
use tokenizers::Tokenizer;

use super::vocabulary;

/// A model's tokenizer, and the tokens that begin and end a text.
pub struct Language {
    tokenizer: Tokenizer,
    /// The token that begins every text, where the tokenizer does not add it itself.
    first: Option<u32>,
    /// The tokens with which the model ends a text.
    pub last: Vec<u32>,
}

impl Language {
    /// The tokenizer of a model in a folder or a GGUF file; `other` is a `tokenizer.json` that replaces it.
    pub fn open(model: &Path, other: Option<&Path>) -> Result<Self> {
        if model.is_dir() {
            let path = model.join("tokenizer.json");
            let tokenizer = read_tokenizer(other.unwrap_or(&path))?;
            return Ok(Self { tokenizer, first: None, last: last_tokens(model) });
        }
        let read = || -> Result<Self> {
            let content = Content::read(&mut BufReader::new(File::open(model)?))?;
            let (tokenizer, first) = match other {
                Some(path) => (read_tokenizer(path)?, None),
                None => (vocabulary::tokenizer(&content)?, vocabulary::first_token(&content)),
            };
            Ok(Self { tokenizer, first, last: vocabulary::last_token(&content).into_iter().collect() })
        };
        read().with_context(|| format!("reading the tokenizer of {}", model.display()))
    }

    /// The tokens of a part of a text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.tokenizer.encode(text, false).map_err(|error| anyhow!("{error}"))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The tokens of the beginning of a text.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.tokenizer.encode(text, true).map_err(|error| anyhow!("{error}"))?;
        Ok(self.first.into_iter().chain(encoding.get_ids().iter().copied()).collect())
    }

    /// The text of tokens.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        self.tokenizer.decode(tokens, true).map_err(|error| anyhow!("{error}"))
    }
}

fn read_tokenizer(path: &Path) -> Result<Tokenizer> {
    let mut tokenizer = Tokenizer::from_file(path).map_err(|error| anyhow!("{}: {error}", path.display()))?;
    tokenizer.with_padding(None).with_truncation(None).map_err(|error| anyhow!("{error}"))?;
    Ok(tokenizer)
}

/// `eos_token_id` of a folder's configs: a number or several, in whichever file has it.
fn last_tokens(folder: &Path) -> Vec<u32> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    for name in ["generation_config.json", "config.json"] {
        let Ok(text) = std::fs::read_to_string(folder.join(name)) else { continue };
        let Ok(config) = serde_json::from_str::<Value>(&text) else { continue };
        match config.get("eos_token_id") {
            Some(Value::Array(ids)) => return ids.iter().filter_map(id).collect(),
            Some(value) if value.is_u64() => return id(value).into_iter().collect(),
            _ => {}
        }
    }
    Vec::new()
}
