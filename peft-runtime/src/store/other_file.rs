//! Files under the name of a safetensors file that are recognisably something else, and what to do about it.

use super::header;
use crate::error::Error;

/// Beginnings of files, with what such a file is and what to do.
const BEGINNINGS: [(&[u8], &str, &str); 10] = [
    (
        b"version https://git-lfs",
        "a pointer of git-lfs, not the file itself",
        "get the file with `git lfs pull`, or download it again",
    ),
    (b"GGUF", "a GGUF file", "pass it where a GGUF file is expected, or get the safetensors file"),
    (
        b"PK\x03\x04",
        "a ZIP archive, as torch writes its `.bin` files",
        "rename it to `adapter_model.bin` if it is such a file, or get the safetensors file",
    ),
    (
        b"\x80",
        "a pickle, as torch writes its `.bin` files",
        "rename it to `adapter_model.bin` if it is such a file, or get the safetensors file",
    ),
    (b"\x1f\x8b", "compressed by gzip", "unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", "unpack it first"),
    (b"BZh", "compressed by bzip2", "unpack it first"),
    (b"Rar!", "a RAR archive", "unpack it first"),
    (b"\x93NUMPY", "a NumPy array", "get the safetensors file"),
    (b"\x89HDF", "an HDF5 file", "get the safetensors file"),
];

/// How the texts begin that servers send in the place of a file, without regard to case.
const PAGES: [&str; 5] = ["<!doctype", "<html", "<?xml", "<head", "<error"];
/// The longest text of a server that is shown.
const SHOWN: usize = 80;

/// What the bytes are, if they are recognisably not a safetensors file or only a part of one.
pub(super) fn recognised(bytes: &[u8]) -> Option<Error> {
    let is = |found: &str, advice: &str| {
        Some(Error::OtherFile { found: found.to_owned(), advice: advice.to_owned() })
    };
    if bytes.is_empty() {
        return is("empty", "the download or the copy was cut off; get the file again");
    }
    if let Some(expected) = header::expected_length(bytes) {
        let length = bytes.len() as u64;
        let found =
            format!("a safetensors file of {expected} bytes, of which only the first {length} are there");
        return if expected > length {
            is(&found, "the download or the copy was cut off; get the file again")
        } else {
            None
        };
    }
    if let Some((_, found, advice)) = BEGINNINGS.iter().find(|(start, ..)| bytes.starts_with(start)) {
        return is(found, advice);
    }
    text(bytes)
}

/// What a text is.
fn text(bytes: &[u8]) -> Option<Error> {
    const LOOKED_AT: usize = 512;
    let start = &bytes[..bytes.len().min(LOOKED_AT)];
    let text = String::from_utf8_lossy(start);
    let text = text.trim_start_matches('\u{feff}').trim();
    let found = if text.is_empty() {
        "blank".to_owned()
    } else if PAGES.iter().any(|page| text.to_ascii_lowercase().starts_with(page)) {
        "a web page, such as a server sends in the place of a file".to_owned()
    } else if start.iter().all(|byte| (b' '..=b'~').contains(byte) || byte.is_ascii_whitespace()) {
        let shown: String = text.chars().take(SHOWN).collect();
        format!("a text that begins with `{}`", shown.lines().next().unwrap_or_default())
    } else {
        return None;
    };
    Some(Error::OtherFile { found, advice: "download the file itself".to_owned() })
}

#[cfg(test)]
mod tests {
    use super::recognised;

    fn said(bytes: &[u8]) -> String {
        recognised(bytes).map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn what_a_file_is_is_said_with_what_to_do() {
        let cases: [(&[u8], &str); 10] = [
            (b"", "empty"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 8160\n", "git lfs pull"),
            (b"<!DOCTYPE html><html>", "a web page"),
            (b"\n  <HTML><body>", "a web page"),
            (b"Entry not found", "a text that begins with `Entry not found`"),
            (b"{\"error\": \"gated\"}", "a text that begins with"),
            (b"PK\x03\x04abc", "a ZIP archive"),
            (b"\x80\x02}q\x00.", "a pickle"),
            (b"GGUF\x03\0\0\0", "a GGUF file"),
            (b"\x1f\x8b\x08", "gzip"),
        ];
        for (bytes, says) in cases {
            assert!(said(bytes).contains(says), "{says}: {}", said(bytes));
        }
    }

    #[test]
    fn a_file_that_was_cut_off_is_told_by_its_length() {
        let header = br#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}"#;
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(header);
        file.extend_from_slice(&[0; 16]);
        assert!(recognised(&file).is_none());
        let whole = file.len();
        for length in [whole - 1, whole - 16] {
            let said = said(&file[..length]);
            assert!(
                said.contains(&format!("of {whole} bytes")) && said.contains(&format!("first {length}")),
                "{said}"
            );
        }
        // Within the header, only the header's length is known.
        assert!(said(&file[..20]).contains("only the first 20"));
    }
}
