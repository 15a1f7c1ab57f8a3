use std::io::Cursor;

use candle_core::quantized::gguf_file::Content;

use super::{check_alignment, check_tensors};

fn text(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

/// A file without tensors that has these entries: each a key, a type and a value.
fn file(entries: &[(&str, u32, &[u8])]) -> Cursor<Vec<u8>> {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3u32.to_le_bytes());
    bytes.extend(0u64.to_le_bytes());
    bytes.extend((entries.len() as u64).to_le_bytes());
    for (key, kind, value) in entries {
        bytes.extend(text(key));
        bytes.extend(kind.to_le_bytes());
        bytes.extend_from_slice(value);
    }
    Cursor::new(bytes)
}

#[test]
fn an_alignment_of_zero_is_found_wherever_it_is() {
    let array = |kind: u32, items: Vec<u8>| {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend(2u64.to_le_bytes());
        bytes.extend(items);
        bytes
    };
    let names = array(8, [text("a"), text("bc")].concat());
    let (name, numbers) = (text("model"), array(4, vec![0; 8]));
    let before: [(&str, u32, &[u8]); 3] = [
        ("general.name", 8, name.as_slice()),
        ("names", 9, names.as_slice()),
        ("numbers", 9, numbers.as_slice()),
    ];
    let with = |key: &str, value: u32| {
        let value = value.to_le_bytes();
        let mut entries = before.to_vec();
        entries.push((key, 4, value.as_slice()));
        check_alignment(&mut file(&entries)).is_ok()
    };
    assert!(with("general.alignment", 32) && with("other", 0));
    assert!(!with("general.alignment", 0) && !with("general.alignment\0", 0));
}

#[test]
fn a_file_that_is_cut_short_is_left_to_candle() {
    let mut whole = file(&[("general.alignment", 4, 32u32.to_le_bytes().as_slice())]);
    assert!(check_alignment(&mut whole).is_ok());
    let bytes = whole.into_inner();
    for end in 0..bytes.len() {
        assert!(check_alignment(&mut Cursor::new(&bytes[..end])).is_ok());
    }
}

#[test]
fn tensors_that_leave_the_file_or_their_range_are_named() {
    let with = |dims: [u64; 2], offset: u64, data: usize| {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3u32.to_le_bytes());
        bytes.extend(1u64.to_le_bytes());
        bytes.extend(0u64.to_le_bytes());
        bytes.extend(text("weight"));
        bytes.extend(2u32.to_le_bytes());
        dims.iter().for_each(|size| bytes.extend(size.to_le_bytes()));
        bytes.extend(0u32.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
        bytes.resize(bytes.len().next_multiple_of(32) + data, 0);
        let size = bytes.len() as u64;
        let content = Content::read(&mut Cursor::new(bytes)).unwrap();
        check_tensors(&content, size).map_err(|error| error.to_string())
    };
    assert!(with([2, 3], 0, 24).is_ok());
    for (dims, offset) in
        [([2, 3], 1), ([2, 3], u64::MAX), ([1 << 62, 1], 0), ([1 << 32, 1 << 32], 0), ([1 << 63, 0], 0)]
    {
        let error = with(dims, offset, 24).unwrap_err();
        assert!(error.contains("`weight`"), "{error}");
    }
}
