//! What sort of file it is, by its first bytes.

use crate::error::{Error, Result};
use crate::store::{header, other_file};

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

impl Kind {
    /// The sort of a file with these bytes.
    ///
    /// # Errors
    /// If it is recognisably something else, or of no known sort.
    pub(super) fn of(bytes: &[u8]) -> Result<Self> {
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
        Err(other_file::recognised(bytes).unwrap_or_else(|| Error::OtherFile {
            found: "of no known kind (safetensors, torch's, GGUF)".to_owned(),
            advice: "check the path, or download it again".to_owned(),
        }))
    }
}

/// Whether a length of a header comes first, and then the header.
fn is_safetensors(bytes: &[u8]) -> bool {
    let Some((length, rest)) = bytes.split_first_chunk() else { return false };
    let length = u64::from_le_bytes(*length);
    (2..=header::LONGEST).contains(&length) && rest.trim_ascii_start().starts_with(b"{")
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
