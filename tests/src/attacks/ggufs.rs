//! Hostile GGUF files.

use super::build::{Gguf, gguf_text, kind};
use super::{Attack, Make};

/// The name of the file.
pub(super) const FILE: &str = "model.gguf";

/// The length of a string that no file can hold.
const HUGE: u64 = 1 << 62;

fn refused(name: &'static str, tries: &'static str, says: &'static str, make: fn() -> Vec<u8>) -> Attack {
    Attack { name, tries, file: FILE, says: Some(says), make: Make::Gguf(make) }
}

pub(super) fn attacks() -> Vec<Attack> {
    [frames(), tensors(), settings()].into_iter().flatten().collect()
}

/// The file with an integer at `key`.
fn with_number(key: &'static str, value: u32) -> Vec<u8> {
    Gguf::sound().with(key, kind::U32, &value.to_le_bytes()).bytes()
}

/// The file with a float at `key`.
fn with_float(key: &'static str, value: f32) -> Vec<u8> {
    Gguf::sound().with(key, kind::F32, &value.to_le_bytes()).bytes()
}

fn frames() -> Vec<Attack> {
    vec![
        refused("gguf-empty", "nothing at all", "failed to fill whole buffer", Vec::new),
        refused("gguf-magic", "a different format", "unknown magic", || {
            Gguf { magic: *b"GGML", ..Gguf::sound() }.bytes()
        }),
        refused("gguf-version", "a version that does not exist", "unsupported magic/version", || {
            Gguf { version: 99, ..Gguf::sound() }.bytes()
        }),
        refused("gguf-count-of-tensors", "a list of 2⁴⁰ tensors", "exceeds max", || {
            Gguf { tensor_count: Some(1 << 40), ..Gguf::sound() }.bytes()
        }),
        refused("gguf-count-of-entries", "a map of 2³⁰ entries", "header declares", || {
            Gguf { entry_count: Some(1 << 30), ..Gguf::sound() }.bytes()
        }),
        refused("gguf-length-of-text", "a string of 2⁶² bytes", "string length", || {
            Gguf::sound().with("general.name", kind::STRING, &HUGE.to_le_bytes()).bytes()
        }),
        refused("gguf-length-of-array", "an array of 2²⁹ numbers", "array of", || {
            let array = [kind::U32.to_le_bytes().as_slice(), &(1u64 << 29).to_le_bytes()].concat();
            Gguf::sound().with("tokens", kind::ARRAY, &array).bytes()
        }),
        refused("gguf-arrays-in-arrays", "arrays that overflow the stack", "nesting depth", || {
            let level = [kind::ARRAY.to_le_bytes().as_slice(), &1u64.to_le_bytes()].concat();
            let last = [kind::U32.to_le_bytes().as_slice(), &0u64.to_le_bytes()].concat();
            Gguf::sound().with("tokens", kind::ARRAY, &[level.repeat(100_000), last].concat()).bytes()
        }),
        refused("gguf-type-of-value", "a type that does not exist", "unrecognized value-type", || {
            Gguf::sound().with("tokens", 99, &[0; 8]).bytes()
        }),
        refused("gguf-alignment-0", "a division by 0", "`general.alignment` is 0", || {
            with_number("general.alignment", 0)
        }),
    ]
}

fn tensors() -> Vec<Attack> {
    vec![
        refused(
            "gguf-five-dimensions",
            "more dimensions than a tensor may have",
            "dimensions, max is",
            || Gguf::sound().with_tensor("output_norm.weight", |tensor| tensor.dims = vec![1; 5]).bytes(),
        ),
        refused(
            "gguf-product-of-dimensions",
            "a product that overflows to 0",
            "does not lie in the file",
            || {
                let dims = vec![1 << 32, 1 << 32];
                Gguf::sound().with_tensor("token_embd.weight", |tensor| tensor.dims = dims).bytes()
            },
        ),
        refused("gguf-bytes-of-tensor", "a size that overflows to 0", "does not lie in the file", || {
            Gguf::sound().with_tensor("output_norm.weight", |tensor| tensor.dims = vec![1 << 62]).bytes()
        }),
        refused("gguf-offset", "an offset whose sum overflows", "does not lie in the file", || {
            Gguf::sound().with_tensor("output_norm.weight", |tensor| tensor.offset = Some(u64::MAX)).bytes()
        }),
        refused(
            "gguf-offset-past-the-end",
            "bytes after the end of the file",
            "does not lie in the file",
            || {
                Gguf::sound()
                    .with_tensor("output_norm.weight", |tensor| tensor.offset = Some(1 << 20))
                    .bytes()
            },
        ),
        refused("gguf-shape", "a weight of a different size", "does not fit the model", || {
            Gguf::sound().with_tensor("blk.0.attn_q.weight", |tensor| tensor.dims = vec![4, 2]).bytes()
        }),
        refused(
            "gguf-block-size",
            "rows that are not whole blocks",
            "not divisible by the block size",
            || Gguf::sound().with_tensor("blk.0.attn_q.weight", |tensor| tensor.dtype = 2).bytes(),
        ),
        refused("gguf-dtype", "a number type that does not exist", "has the unknown type 250", || {
            Gguf::sound().with_tensor("blk.0.attn_q.weight", |tensor| tensor.dtype = 250).bytes()
        }),
    ]
}

fn settings() -> Vec<Attack> {
    vec![
        refused("gguf-architecture", "an architecture that is a path", "is not supported", || {
            Gguf::sound().with("general.architecture", kind::STRING, &gguf_text("../../etc")).bytes()
        }),
        refused("gguf-blocks", "four billion blocks", "`num_hidden_layers` is 4294967295", || {
            with_number("llama.block_count", u32::MAX)
        }),
        refused(
            "gguf-no-blocks-and-a-huge-head",
            "a table of 2⁴⁰ frequencies",
            "`head_dim` is 1099511627776",
            || {
                let size = (1u64 << 40).to_le_bytes();
                let file = Gguf::sound().with("llama.attention.key_length", kind::U64, &size);
                file.with("llama.block_count", kind::U32, &0u32.to_le_bytes()).bytes()
            },
        ),
        refused("gguf-no-heads", "a division by 0", "`num_attention_heads` 0", || {
            with_number("llama.attention.head_count", 0)
        }),
        refused("gguf-many-heads", "a product of sizes that overflows", "`num_attention_heads` is", || {
            let heads = (1u64 << 63).to_le_bytes();
            Gguf::sound().with("llama.attention.head_count", kind::U64, &heads).bytes()
        }),
        refused("gguf-epsilon", "a norm that gives NaN", "`rms_norm_eps` is NaN", || {
            with_float("llama.attention.layer_norm_rms_epsilon", f32::NAN)
        }),
        refused("gguf-theta", "angles that are not finite", "`rope_theta` is inf", || {
            with_float("llama.rope.freq_base", f32::INFINITY)
        }),
        refused("gguf-scaling", "frequencies divided by 0", "rope scaling is 0", || {
            let file = Gguf::sound().with("llama.rope.scaling.type", kind::STRING, &gguf_text("linear"));
            file.with("llama.rope.scaling.factor", kind::F32, &0f32.to_le_bytes()).bytes()
        }),
    ]
}
