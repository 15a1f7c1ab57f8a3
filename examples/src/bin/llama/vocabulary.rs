//! The tokenizer in a GGUF file.

use anyhow::{Context, Result, anyhow, bail, ensure};
use candle_core::quantized::gguf_file::{Content, Value as Metadata};
use serde_json::{Map, Value, json};
use tokenizers::Tokenizer;

/// llama.cpp's numbers for tokens that stand for no text, and for words that the model's makers added.
const CONTROL: i64 = 3;
const ADDED: i64 = 4;

/// How Llama 3 and Qwen 2 split a text into words, except for how many digits of a number stay together.
const WORDS: [&str; 2] = [
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
];

/// The byte-level tokenizer of a file.
pub fn tokenizer(content: &Content) -> Result<Tokenizer> {
    let kind = text(content, "tokenizer.ggml.model")?;
    ensure!(
        kind == "gpt2",
        "its tokenizer is of the kind `{kind}`; only byte-level ones (`gpt2`) are read from GGUF files; pass a \
         `tokenizer.json` with `--tokenizer`"
    );
    let tokens = strings(content, "tokenizer.ggml.tokens")?;
    let types = array(content, "tokenizer.ggml.token_type")?.iter().map(number);
    let types = types.collect::<Result<Vec<_>>>()?;
    let mut merges = Vec::new();
    for merge in strings(content, "tokenizer.ggml.merges")? {
        let (left, right) =
            merge.split_once(' ').with_context(|| format!("`{merge}` is not a pair of tokens"))?;
        merges.push(json!([left, right]));
    }
    let vocabulary = tokens.iter().enumerate().map(|(id, token)| ((*token).to_owned(), json!(id)));
    let vocabulary: Map<String, Value> = vocabulary.collect();
    let added = tokens.iter().zip(&types).enumerate();
    let added: Vec<Value> = added
        .filter(|(_, (_, kind))| matches!(**kind, CONTROL | ADDED))
        .map(|(id, (token, kind))| {
            json!({
                "id": id, "content": token, "special": *kind == CONTROL,
                "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            })
        })
        .collect();
    let words = text(content, "tokenizer.ggml.pre").unwrap_or("gpt-2");
    let file = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": (words == "qwen2").then(|| json!({"type": "NFC"})),
        "pre_tokenizer": pre_tokenizer(words)?,
        "post_processor": null,
        "decoder": byte_level(true),
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": words == "llama-bpe", "vocab": vocabulary, "merges": merges,
        },
    });
    Tokenizer::from_bytes(file.to_string()).map_err(|error| anyhow!("{error}"))
}

/// How a text is split into words before it becomes tokens, by llama.cpp's name for it.
fn pre_tokenizer(words: &str) -> Result<Value> {
    let split = |digits: &str| {
        let pattern = [WORDS[0], digits, WORDS[1]].concat();
        json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false})
    };
    let parts = match words {
        "gpt-2" => return Ok(byte_level(true)),
        "smollm" => [json!({"type": "Digits", "individual_digits": true}), byte_level(true)],
        "llama-bpe" => [split(r"\p{N}{1,3}"), byte_level(false)],
        "qwen2" => [split(r"\p{N}"), byte_level(false)],
        other => bail!(
            "its tokenizer splits words as `{other}` does; only `gpt-2`, `smollm`, `llama-bpe` and `qwen2` are known; \
             pass a `tokenizer.json` with `--tokenizer`"
        ),
    };
    Ok(json!({"type": "Sequence", "pretokenizers": parts}))
}

fn byte_level(cuts_words: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": cuts_words})
}

/// The token that begins every text, if the file says that one does.
pub fn first_token(content: &Content) -> Option<u32> {
    match content.metadata.get("tokenizer.ggml.add_bos_token") {
        Some(Metadata::Bool(true)) => token(content, "tokenizer.ggml.bos_token_id"),
        _ => None,
    }
}

/// The token with which the model ends a text.
pub fn last_token(content: &Content) -> Option<u32> {
    token(content, "tokenizer.ggml.eos_token_id")
}

fn token(content: &Content, key: &str) -> Option<u32> {
    u32::try_from(number(content.metadata.get(key)?).ok()?).ok()
}

fn find<'c>(content: &'c Content, key: &str) -> Result<&'c Metadata> {
    content.metadata.get(key).with_context(|| format!("it has no `{key}`"))
}

fn text<'c>(content: &'c Content, key: &str) -> Result<&'c str> {
    Ok(find(content, key)?.to_string()?)
}

fn array<'c>(content: &'c Content, key: &str) -> Result<&'c [Metadata]> {
    Ok(find(content, key)?.to_vec()?)
}

fn strings<'c>(content: &'c Content, key: &str) -> Result<Vec<&'c str>> {
    let string = |value: &'c Metadata| -> Result<&'c str> { Ok(value.to_string()?) };
    array(content, key)?.iter().map(string).collect()
}

fn number(value: &Metadata) -> Result<i64> {
    Ok(match *value {
        Metadata::I32(number) => i64::from(number),
        Metadata::U32(number) => i64::from(number),
        Metadata::I64(number) => number,
        ref other => bail!("{other:?} is not a whole number of the expected kind"),
    })
}
