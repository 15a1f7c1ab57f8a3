//! The header of a safetensors file of unknown origin, checked before anything trusts it.
//!
//! The format's own reader adds up offsets without checking for overflow, and of two tensors with the same name it
//! takes the last; candle does not check for overflow when it multiplies the dimensions of a shape. What would go
//! wrong there is refused here.

use std::collections::BTreeSet;
use std::fmt;

use safetensors::SafeTensorError;
use safetensors::tensor::{Metadata, SafeTensors};
use serde::de::{Error as _, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::error::shortened;

/// The size of the header's length, which is at the beginning of the file.
const LENGTH: usize = size_of::<u64>();
/// The format's own limit.
pub(super) const LONGEST: u64 = 100_000_000;
/// The entry that does not describe a tensor.
const METADATA: &str = "__metadata__";
/// The most dimensions of a tensor.
const MOST_DIMENSIONS: usize = 16;
/// The most elements of a tensor, counting an empty dimension as one: sizes that models compute from shapes stay in
/// range.
const MOST_ELEMENTS: u64 = 1 << 48;

/// The tensors of a file that is in memory.
pub(crate) fn parse(bytes: &[u8]) -> Result<SafeTensors<'_>, SafeTensorError> {
    check(bytes)?;
    SafeTensors::deserialize(bytes)
}

/// Where the data of a file begins, and what the header says about it.
pub(super) fn read(bytes: &[u8]) -> Result<(usize, Metadata), SafeTensorError> {
    check(bytes)?;
    let (length, metadata) = SafeTensors::read_metadata(bytes)?;
    Ok((LENGTH + length, metadata))
}

/// Refuses files that the readers after this one would mishandle. Those readers report all other faults themselves.
fn check(bytes: &[u8]) -> Result<(), SafeTensorError> {
    let Some((length, rest)) = bytes.split_first_chunk::<LENGTH>() else { return Ok(()) };
    let length = u64::from_le_bytes(*length);
    let header =
        usize::try_from(length).ok().filter(|_| length <= LONGEST).and_then(|length| rest.get(..length));
    let Some(header) = header else { return Ok(()) };
    let Checked { end } =
        serde_json::from_slice(header).map_err(SafeTensorError::InvalidHeaderDeserialization)?;
    let data = (rest.len() - header.len()) as u64;
    if end > data { Err(SafeTensorError::MetadataIncompleteBuffer) } else { Ok(()) }
}

/// The number of bytes that a file with this beginning has at least; `None` if it does not begin like a safetensors file.
pub(super) fn expected_length(bytes: &[u8]) -> Option<u64> {
    let (length, rest) = bytes.split_first_chunk::<LENGTH>()?;
    let length = u64::from_le_bytes(*length);
    if length > LONGEST || rest.first().is_some_and(|first| *first != b'{') {
        return None;
    }
    let end = LENGTH as u64 + length;
    let header = usize::try_from(length).ok().and_then(|length| rest.get(..length));
    let Some(header) = header else { return Some(end) };
    let Checked { end: data } = serde_json::from_slice(header).ok()?;
    end.checked_add(data)
}

/// A header without duplicates and without shapes that are too large.
struct Checked {
    /// Where the data of the last tensor ends.
    end: u64,
}

/// The checked part of a tensor's entry.
#[derive(Deserialize)]
struct Entry {
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl Entry {
    fn fault(&self) -> Option<&'static str> {
        let product = |elements: u64, size: &u64| elements.checked_mul((*size).max(1));
        let elements = self.shape.iter().try_fold(1, product);
        if self.shape.len() > MOST_DIMENSIONS {
            Some("has more dimensions than any tensor")
        } else if elements.is_none_or(|elements| elements > MOST_ELEMENTS) {
            Some("has a shape that is too large")
        } else {
            None
        }
    }
}

/// Reads the entries one after the other.
struct Entries;

impl<'de> Visitor<'de> for Entries {
    type Value = Checked;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Checked, A::Error> {
        let (mut names, mut end) = (BTreeSet::new(), 0);
        while let Some(name) = map.next_key::<String>()? {
            if name == METADATA {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            let entry: Entry = map.next_value()?;
            let twice = names.contains(&name).then_some("is there twice");
            if let Some(fault) = entry.fault().or(twice) {
                return Err(A::Error::custom(format!("the tensor `{}` {fault}", shortened(&name))));
            }
            end = end.max(entry.data_offsets.1);
            names.insert(name);
        }
        Ok(Checked { end })
    }
}

impl<'de> Deserialize<'de> for Checked {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Entries)
    }
}

#[cfg(test)]
mod tests {
    use super::parse;

    /// A file with this header and `data` bytes of data.
    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    }

    fn refused(header: &str, data: usize) -> String {
        let bytes = file(header, data);
        parse(&bytes).err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn a_sound_file_is_read() {
        let bytes = file(
            r#"{"__metadata__": {"format": "pt"}, "a": {"dtype": "F32", "shape": [2, 0, 3], "data_offsets": [0, 0]},
                "b": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]}}"#,
            3,
        );
        assert_eq!(parse(&bytes).unwrap().tensor("b").unwrap().data(), [0, 0, 0]);
    }

    #[test]
    fn names_that_come_twice_are_refused() {
        let twice = r#"{"a": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]},
                        "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}"#;
        assert!(refused(twice, 1).contains("the tensor `a` is there twice"));
    }

    #[test]
    fn shapes_and_offsets_whose_sums_leave_their_range_are_refused() {
        // The product is 0, but candle's strides are not.
        let strides =
            r#"{"a": {"dtype": "U8", "shape": [0, 9223372036854775808, 2], "data_offsets": [0, 0]}}"#;
        assert!(refused(strides, 0).contains("has a shape that is too large"));
        let step = 1u64 << 47;
        let entries: Vec<String> = (0..8)
            .map(|i| {
                let (start, end) = (i * step, (i + 1) * step);
                format!(r#""{i}": {{"dtype": "U8", "shape": [{step}], "data_offsets": [{start}, {end}]}}"#)
            })
            .collect();
        assert!(!refused(&format!("{{{}}}", entries.join(",")), 0).is_empty());
        let end = r#"{"a": {"dtype": "U8", "shape": [1], "data_offsets": [18446744073709551614, 18446744073709551615]}}"#;
        assert!(!refused(end, 0).is_empty());
        let ones = vec!["1"; 17].join(",");
        let many = format!(r#"{{"a": {{"dtype": "U8", "shape": [{ones}], "data_offsets": [0, 1]}}}}"#);
        assert!(refused(&many, 1).contains("more dimensions"));
    }
}
