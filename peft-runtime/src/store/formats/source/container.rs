//! What sort of file it is, by its first bytes.

use crate::error::AdapterFileError;

/// The sorts of files that hold tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Safetensors,
    /// llama.cpp's.
    Gguf,
    /// A ZIP archive, as torch writes it.
    Zip,
    /// Pickles, as torch wrote them before 1.6.
    Pickle,
}

/// The longest header of a safetensors file.
const LONGEST_HEADER: u64 = 100_000_000;

/// Beginnings of files that are something else, with what they are and what to do.
const OTHERS: [(&[u8], &str, &str); 8] = [
    (
        b"version https://git-lfs",
        "a pointer of git-lfs",
        "get the file itself with `git lfs pull`, or download it again",
    ),
    (b"<!DOCTYPE", "a web page", "download the file itself"),
    (b"<html", "a web page", "download the file itself"),
    (b"{", "JSON", "pass the folder of the adapter, or its file of tensors"),
    (b"\x93NUMPY", "a NumPy array", "pass a safetensors file"),
    (b"\x1f\x8b", "compressed by gzip", "unpack it"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", "unpack it"),
    (b"Rar!", "a RAR archive", "unpack it"),
];

impl Kind {
    /// The sort of a file with these bytes.
    ///
    /// # Errors
    /// If it is recognisably something else, or of no known sort.
    pub(super) fn of(bytes: &[u8]) -> Result<Self, AdapterFileError> {
        let something_else = |found: &str, advice: &str| AdapterFileError::SomethingElse {
            found: found.to_owned(),
            advice: advice.to_owned(),
        };
        if is_safetensors(bytes) {
            return Ok(Self::Safetensors);
        }
        if bytes.starts_with(b"PK\x03\x04") {
            return Ok(Self::Zip);
        }
        if bytes.starts_with(b"GGUF") {
            return Ok(Self::Gguf);
        }
        if matches!(bytes, [0x80, 2..=5, ..]) {
            return Ok(Self::Pickle);
        }
        match OTHERS.iter().find(|(start, ..)| bytes.starts_with(start)) {
            Some((_, found, advice)) => Err(something_else(found, advice)),
            None if bytes.is_empty() => Err(something_else("empty", "download it again")),
            None => Err(something_else(
                "of no known kind (safetensors, torch's, GGUF)",
                "check the path, or download it again",
            )),
        }
    }
}

/// Whether a length of a header comes first, and then the header.
fn is_safetensors(bytes: &[u8]) -> bool {
    let Some((length, rest)) = bytes.split_first_chunk() else { return false };
    let length = u64::from_le_bytes(*length);
    (2..=LONGEST_HEADER).contains(&length) && rest.trim_ascii_start().starts_with(b"{")
}

#[cfg(test)]
mod tests {
    use super::Kind;

    #[test]
    fn files_are_known_by_their_first_bytes_and_others_named() {
        assert_eq!(Kind::of(b"\x02\0\0\0\0\0\0\0{}").unwrap(), Kind::Safetensors);
        assert_eq!(Kind::of(b"GGUF").unwrap(), Kind::Gguf);
        assert_eq!(Kind::of(b"PK\x03\x04").unwrap(), Kind::Zip);
        assert_eq!(Kind::of(b"\x80\x02}.").unwrap(), Kind::Pickle);
        let refused = |bytes: &[u8]| Kind::of(bytes).unwrap_err().to_string();
        assert!(refused(b"version https://git-lfs.github.com/spec/v1").contains("git lfs pull"));
        assert!(refused(b"<!DOCTYPE html>").contains("a web page"));
        assert!(refused(b"").contains("it is empty"));
        assert!(refused(b"\0\0\0\0\0\0\0\0\0").contains("no known kind"));
    }
}
