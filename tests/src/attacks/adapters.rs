//! Hostile `adapter_model.safetensors` files.

use serde_json::{Map, Value, json};

use super::build::{WEIGHTS, safetensors_with};
use super::{Attack, Make};

/// A tensor of a valid file.
const KEY: &str = "base_model.model.lin0.lora_A.weight";
const KEY_WITHOUT_PREFIX: &str = "lin0.lora_A.weight";

/// The header of a valid file, and its data.
fn parts(sound: &[u8]) -> (Map<String, Value>, &[u8]) {
    let Some((length, rest)) = sound.split_first_chunk::<8>() else { return Default::default() };
    let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or_default().min(rest.len());
    let (header, data) = rest.split_at(length);
    (serde_json::from_slice(header).unwrap_or_default(), data)
}

/// The file with other entries in its header, and more data.
fn with_header(sound: &[u8], more: &[u8], edit: impl FnOnce(&mut Map<String, Value>, usize)) -> Vec<u8> {
    let (mut header, data) = parts(sound);
    edit(&mut header, data.len());
    safetensors_with(&Value::Object(header).to_string(), &[data, more].concat())
}

/// An entry of a header.
fn entry(dtype: &str, shape: &[u64], start: u64, end: u64) -> Value {
    json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]})
}

/// The file with these data in place of one tensor's.
fn with_tensor(sound: &[u8], dtype: &str, shape: &[u64], data: &[u8]) -> Vec<u8> {
    let (header, old) = parts(sound);
    let offset = |value: &Value, place: usize| {
        usize::try_from(value["data_offsets"][place].as_u64().unwrap_or_default()).unwrap_or_default()
    };
    let mut entries: Vec<(&String, &Value)> = header.iter().collect();
    entries.sort_by_key(|(_, value)| offset(value, 0));
    let (mut new_header, mut new_data) = (Map::new(), Vec::new());
    for (key, value) in entries.into_iter().filter(|(_, value)| value.get("dtype").is_some()) {
        let start = new_data.len() as u64;
        let mut value = value.clone();
        if key == KEY {
            new_data.extend_from_slice(data);
            (value["dtype"], value["shape"]) = (json!(dtype), json!(shape));
        } else {
            new_data.extend_from_slice(old.get(offset(&value, 0)..offset(&value, 1)).unwrap_or_default());
        }
        value["data_offsets"] = json!([start, new_data.len()]);
        new_header.insert(key.clone(), value);
    }
    safetensors_with(&Value::Object(new_header).to_string(), &new_data)
}

fn refused(
    name: &'static str,
    tries: &'static str,
    says: &'static str,
    make: fn(&[u8]) -> Vec<u8>,
) -> Attack {
    Attack { name, tries, file: WEIGHTS, says: Some(says), make: Make::Weights(make) }
}

pub(super) fn attacks() -> Vec<Attack> {
    [frames(), offsets(), names(), tensors()].into_iter().flatten().collect()
}

fn frames() -> Vec<Attack> {
    vec![
        refused("header-of-2-to-the-63", "a header longer than any file", "header too large", |_| {
            [(1u64 << 63).to_le_bytes().as_slice(), b"{}"].concat()
        }),
        refused(
            "header-of-100-mb",
            "a header longer than this file",
            "of which only the first 10 are there",
            |_| [100_000_000u64.to_le_bytes().as_slice(), b"{}"].concat(),
        ),
        refused("header-of-nothing", "a header without text", "invalid JSON in header", |_| vec![0; 64]),
        refused("header-that-nests", "brackets that overflow the stack", "recursion limit", |_| {
            let nested = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
            let entry = r#""dtype": "U8", "shape": [0], "data_offsets": [0, 0]"#;
            safetensors_with(&format!(r#"{{"a": {{{entry}, "x": {nested}}}}}"#), b"")
        }),
        refused("archive", "an archive as PyTorch writes it", "torch saved: the archive is damaged", |_| {
            [b"PK\x03\x04\0\0\0\0".as_slice(), &[0; 120]].concat()
        }),
        refused("empty-weights", "nothing at all", "it is empty", |_| Vec::new()),
        refused("one-byte-too-many", "data that belongs to no tensor", "incomplete metadata", |sound| {
            [sound, b"x"].concat()
        }),
        refused(
            "metadata-of-tensors",
            "a tensor where the metadata belongs",
            "invalid JSON in header",
            |sound| {
                with_header(sound, b"", |header, end| {
                    let end = end as u64;
                    header.insert("__metadata__".into(), entry("U8", &[0], end, end));
                })
            },
        ),
    ]
}

fn offsets() -> Vec<Attack> {
    vec![
        refused("overlapping-offsets", "two tensors on the same bytes", "invalid offset", |_| {
            let header = json!({"a": entry("F32", &[1], 0, 4), "b": entry("F32", &[1], 0, 4)});
            safetensors_with(&header.to_string(), &[0; 4])
        }),
        refused("gap-between-offsets", "bytes that belong to no tensor", "invalid offset", |_| {
            let header = json!({"a": entry("F32", &[1], 0, 4), "b": entry("F32", &[1], 8, 12)});
            safetensors_with(&header.to_string(), &[0; 12])
        }),
        refused("offsets-backwards", "a tensor that ends before it begins", "invalid offset", |_| {
            safetensors_with(&json!({"a": entry("F32", &[1], 4, 0)}).to_string(), &[0; 4])
        }),
        refused(
            "offsets-past-the-end",
            "bytes after the end of the file",
            "of which only the first 72 are there",
            |_| safetensors_with(&json!({"a": entry("F32", &[1000], 0, 4000)}).to_string(), &[0; 4]),
        ),
        refused(
            "offsets-at-the-end-of-numbers",
            "an end whose sum with the header overflows",
            "invalid JSON in header",
            |_| {
                let step = (1u64 << 61) - 1;
                let entries =
                    (0..8u64).map(|i| (format!("t{i}"), entry("U8", &[step], i * step, (i + 1) * step)));
                safetensors_with(&Value::Object(entries.collect()).to_string(), b"")
            },
        ),
        refused(
            "shape-out-of-range",
            "a product of dimensions that overflows to 0",
            "has a shape that is too large",
            |_| {
                let half = 1u64 << 32;
                safetensors_with(&json!({"a": entry("F32", &[half, half, 2], 0, 0)}).to_string(), b"")
            },
        ),
        refused(
            "strides-out-of-range",
            "an empty tensor whose strides overflow",
            "has a shape that is too large",
            |_| safetensors_with(&json!({"a": entry("F32", &[0, 1 << 63, 2], 0, 0)}).to_string(), b""),
        ),
        refused(
            "hundred-thousand-dimensions",
            "a shape that is longer than the data",
            "more dimensions",
            |_| safetensors_with(&json!({"a": entry("U8", &vec![1; 100_000], 0, 1)}).to_string(), b"x"),
        ),
    ]
}

fn names() -> Vec<Attack> {
    vec![
        refused(
            "key-of-10-mb-in-weights",
            "a name of 10 MB, which the error would repeat",
            "unexpected: `xxx",
            |sound| {
                with_header(sound, b"", |header, end| {
                    let end = end as u64;
                    header.insert("x".repeat(10_000_000), entry("U8", &[0], end, end));
                })
            },
        ),
        refused("hundred-thousand-tensors", "more tensors than the model has", "and 99995 more", |sound| {
            with_header(sound, b"", |header, end| {
                let end = end as u64;
                header.extend((0..100_000).map(|i| (format!("extra{i}"), entry("U8", &[0], end, end))));
            })
        }),
        refused("tensor-twice", "two tensors with one name", "is there twice", |_| {
            let (first, second) = (entry("U8", &[0], 0, 0), entry("U8", &[1], 0, 1));
            safetensors_with(&format!(r#"{{"a": {first}, "a": {second}}}"#), b"x")
        }),
        refused(
            "tensor-under-two-names",
            "a tensor with and without PEFT's prefix",
            "under two names",
            |sound| {
                with_header(sound, &[0; 40], |header, end| {
                    let end = end as u64;
                    header.insert(KEY_WITHOUT_PREFIX.into(), entry("F32", &[2, 5], end, end + 40));
                })
            },
        ),
        refused("path-as-key", "a name that is a path", "unexpected: `../../etc/passwd`", |sound| {
            with_header(sound, b"", |header, end| {
                let end = end as u64;
                header.insert("../../etc/passwd".into(), entry("U8", &[0], end, end));
            })
        }),
    ]
}

fn tensors() -> Vec<Attack> {
    vec![
        refused(
            "dtype-of-no-tensor",
            "booleans where numbers belong",
            "unsupported safetensor dtype",
            |sound| with_tensor(sound, "BOOL", &[2, 5], &[1; 10]),
        ),
        refused("dtype-of-half-bytes", "4-bit numbers", "unsupported dtype", |sound| {
            with_tensor(sound, "F4", &[2, 5], &[0; 5])
        }),
        refused("dtype-unknown", "a type that does not exist", "unknown variant", |sound| {
            with_tensor(sound, "F1024", &[2, 5], &[0; 40])
        }),
        refused("empty-tensor", "a factor without rows", "has shape [0, 5], expected [2, 5]", |sound| {
            with_tensor(sound, "F32", &[0, 5], b"")
        }),
        refused("scalar-tensor", "a factor without dimensions", "has shape [], expected [2, 5]", |sound| {
            with_tensor(sound, "F32", &[], &[0; 4])
        }),
        refused("transposed-tensor", "a transposed factor", "has shape [5, 2], expected [2, 5]", |sound| {
            with_tensor(sound, "F32", &[5, 2], &[0; 40])
        }),
        Attack {
            name: "weights-that-are-no-numbers",
            tries: "NaN everywhere: read as it is, and refused by a merge that checks",
            file: WEIGHTS,
            says: None,
            make: Make::Weights(|sound| {
                with_tensor(sound, "F32", &[2, 5], &f32::NAN.to_le_bytes().repeat(10))
            }),
        },
    ]
}
