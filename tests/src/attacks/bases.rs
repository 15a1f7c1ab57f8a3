//! Hostile folders of base models.

use super::build::safetensors_with;
use super::{Attack, Files, Make};

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// A config that can be read, with more entries.
fn config(more: &str) -> Vec<u8> {
    let sizes = r#""vocab_size": 3, "hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 1"#;
    let heads = r#""num_key_value_heads": 1"#;
    format!(r#"{{"model_type": "llama", {sizes}, {heads}, {more}}}"#).into_bytes()
}

/// A folder with a valid config and these other files.
fn folder(files: &[(&str, &[u8])]) -> Files {
    let own = (CONFIG.to_owned(), config(r#""num_attention_heads": 2"#));
    let others = files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec()));
    [own].into_iter().chain(others).collect()
}

/// A folder with this config and no weights.
fn with_config(bytes: Vec<u8>) -> Files {
    vec![(CONFIG.to_owned(), bytes)]
}

/// A folder whose index names `shard` as the file of the weights.
fn with_shard(shard: &str) -> Files {
    folder(&[(INDEX, format!(r#"{{"weight_map": {{"model.norm.weight": "{shard}"}}}}"#).as_bytes())])
}

fn refused(
    name: &'static str,
    tries: &'static str,
    file: &'static str,
    says: &'static str,
    make: fn() -> Files,
) -> Attack {
    Attack { name, tries, file, says: Some(says), make: Make::Base(make) }
}

pub(super) fn attacks() -> Vec<Attack> {
    vec![
        refused(
            "shard-above-the-folder",
            "a file outside the folder",
            INDEX,
            "is not a file in the folder",
            || with_shard("../../../etc/passwd"),
        ),
        refused(
            "shard-at-the-root",
            "a file outside the folder",
            INDEX,
            "is not a file in the folder",
            || with_shard("/etc/passwd"),
        ),
        refused(
            "shard-that-is-the-index",
            "a file that names itself",
            INDEX,
            "a text that begins with",
            || with_shard(INDEX),
        ),
        refused("model-without-heads", "a division by 0", CONFIG, "`num_attention_heads` 0", || {
            with_config(config(r#""num_attention_heads": 0"#))
        }),
        refused(
            "model-with-a-huge-head",
            "a table of 2⁴⁰ frequencies",
            CONFIG,
            "`head_dim` is 1099511627776",
            || with_config(config(r#""num_attention_heads": 2, "head_dim": 1099511627776"#)),
        ),
        refused(
            "model-with-many-heads",
            "a product of sizes that overflows",
            CONFIG,
            "`num_attention_heads` is",
            || with_config(config(r#""num_attention_heads": 9223372036854775808, "head_dim": 4"#)),
        ),
        refused(
            "model-with-negative-theta",
            "angles that are not finite",
            CONFIG,
            "`rope_theta` is -1",
            || with_config(config(r#""num_attention_heads": 2, "rope_theta": -1.0"#)),
        ),
        refused("model-strides", "an empty tensor whose strides overflow", WEIGHTS, "too large", || {
            let header =
                r#"{"a": {"dtype": "F32", "shape": [0, 9223372036854775808, 2], "data_offsets": [0, 0]}}"#;
            folder(&[(WEIGHTS, &safetensors_with(header, b""))])
        }),
    ]
}
