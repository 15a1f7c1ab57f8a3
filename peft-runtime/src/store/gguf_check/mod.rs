//! Checks what candle's GGUF reader takes on trust: that the alignment is not 0, and that tensor sizes stay in range.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io::{Error, ErrorKind, Read, Result as IoResult, Seek};

use candle_core::quantized::gguf_file::{Content, TensorInfo};
use candle_core::{Result, bail};

/// The key of the alignment, by which candle divides.
const ALIGNMENT: &[u8] = b"general.alignment";
/// Type numbers: the last of the integers of up to four bytes, and the types with contents of their own.
const LAST_SMALL_INTEGER: u32 = 5;
const STRING: u32 = 8;
const ARRAY: u32 = 9;
/// How deeply arrays are nested in files that candle reads.
const DEEPEST: usize = 64;
/// No tensor has more elements, counting an empty dimension as 1.
const MOST_ELEMENTS: u64 = 1 << 48;

/// What a file of `size` bytes says of itself, if candle can be trusted with it.
///
/// # Errors
/// If the alignment is 0, a tensor has a type that candle does not read, or tensors leave the file.
pub(crate) fn read_content<R: Read + Seek>(reader: &mut R, size: u64) -> Result<Content> {
    check_alignment(reader)?;
    check_types(reader)?;
    let content =
        Content::read(reader).map_err(|error| error.context("a GGUF file that is damaged or cut off"))?;
    check_tensors(&content, size)?;
    Ok(content)
}

/// Refuses an alignment of 0. A file that cannot be read at all is left for candle to refuse.
fn check_alignment<R: Read + Seek>(reader: &mut R) -> Result<()> {
    let mut walk = Walk { reader: &mut *reader, wide: true };
    let is_zero = walk.finds_zero_alignment().unwrap_or_default();
    reader.rewind()?;
    if is_zero {
        bail!("`general.alignment` is 0")
    }
    Ok(())
}

/// Refuses tensors of types that candle does not read, by name. A file that cannot be read at all is candle's to refuse.
fn check_types<R: Read + Seek>(reader: &mut R) -> Result<()> {
    let mut walk = Walk { reader: &mut *reader, wide: true };
    let unknown = walk.find_unknown_type().unwrap_or_default();
    reader.rewind()?;
    match unknown {
        Some((name, kind)) => {
            let kind = match UNREAD.iter().find(|(number, _)| *number == kind) {
                Some((_, name)) => format!("type {name}"),
                None => format!("unknown type {kind}"),
            };
            bail!(
                "the tensor `{name}` has the {kind}; types that can be read and written are F32, F16, BF16, Q4_0, Q4_1, Q5_0, \
                 Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K and Q6_K"
            )
        }
        None => Ok(()),
    }
}

/// The types of ggml that candle reads from files.
const READ: [u32; 13] = [0, 1, 2, 3, 6, 7, 8, 10, 11, 12, 13, 14, 30];

/// Others, by ggml's names.
const UNREAD: [(u32, &str); 20] = [
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
];

/// Refuses tensors that do not lie in the file, which has `size` bytes.
fn check_tensors(content: &Content, size: u64) -> Result<()> {
    let tensors: BTreeMap<&String, &TensorInfo> = content.tensor_infos.iter().collect();
    for (name, info) in tensors {
        // Candle reads the data of an empty tensor through a dangling pointer.
        if info.shape.dims().contains(&0) {
            bail!("the tensor `{name}` of shape {:?} is empty", info.shape.dims())
        }
        match end_of(info, content.tensor_data_offset) {
            Some(end) if end <= size => {}
            _ => bail!("the tensor `{name}` of shape {:?} does not lie in the file", info.shape.dims()),
        }
    }
    Ok(())
}

/// Where a tensor's data ends; `None` if no file is that large.
fn end_of(info: &TensorInfo, start: u64) -> Option<u64> {
    let (mut elements, mut extent) = (1u64, 1u64);
    for size in info.shape.dims() {
        let size = *size as u64;
        elements = elements.checked_mul(size)?;
        extent = extent.checked_mul(size.max(1)).filter(|extent| *extent <= MOST_ELEMENTS)?;
    }
    let blocks = elements.div_ceil(info.ggml_dtype.block_size().max(1) as u64);
    let bytes = blocks.checked_mul(info.ggml_dtype.type_size() as u64)?;
    start.checked_add(info.offset)?.checked_add(bytes)
}

/// A walk over the metadata of a file that keeps nothing of it.
struct Walk<'r, R> {
    reader: &'r mut R,
    /// Whether lengths have eight bytes.
    wide: bool,
}

impl<R: Read + Seek> Walk<'_, R> {
    fn finds_zero_alignment(&mut self) -> IoResult<bool> {
        let _magic = self.u32()?;
        self.wide = self.u32()? != 1;
        let _tensors = self.length()?;
        for _ in 0..self.length()? {
            let is_alignment = self.key_is(ALIGNMENT)?;
            let kind = self.u32()?;
            if is_alignment && kind <= LAST_SMALL_INTEGER {
                if self.is_zero(size_of_kind(kind)?)? {
                    return Ok(true);
                }
            } else {
                self.skip_value(kind, 0)?;
            }
        }
        Ok(false)
    }

    /// The first tensor of a type that is not read, and the type.
    fn find_unknown_type(&mut self) -> IoResult<Option<(String, u32)>> {
        let _magic = self.u32()?;
        self.wide = self.u32()? != 1;
        let tensors = self.length()?;
        for _ in 0..self.length()? {
            self.key_is(ALIGNMENT)?;
            let kind = self.u32()?;
            self.skip_value(kind, 0)?;
        }
        for _ in 0..tensors {
            let length = self.length()?;
            let mut name = Vec::new();
            self.reader.by_ref().take(length).read_to_end(&mut name)?;
            for _ in 0..self.u32()? {
                self.length()?;
            }
            let kind = self.u32()?;
            if !READ.contains(&kind) {
                return Ok(Some((String::from_utf8_lossy(&name).into_owned(), kind)));
            }
            self.skip(size_of::<u64>() as u64)?;
        }
        Ok(None)
    }

    fn bytes<const N: usize>(&mut self) -> IoResult<[u8; N]> {
        let mut bytes = [0; N];
        self.reader.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn u32(&mut self) -> IoResult<u32> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn length(&mut self) -> IoResult<u64> {
        if self.wide { self.bytes().map(u64::from_le_bytes) } else { self.u32().map(u64::from) }
    }

    /// Whether the next key is `key`; trailing zeros are ignored, as in candle.
    fn key_is(&mut self, key: &[u8]) -> IoResult<bool> {
        let length = self.length()?;
        let mut found = Vec::new();
        self.reader.by_ref().take(length).read_to_end(&mut found)?;
        if (found.len() as u64) < length {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let zeros = found.iter().rev().take_while(|byte| **byte == 0).count();
        Ok(found[..found.len() - zeros] == *key)
    }

    fn is_zero(&mut self, size: u64) -> IoResult<bool> {
        let mut zero = true;
        for _ in 0..size {
            zero &= self.bytes::<1>()? == [0];
        }
        Ok(zero)
    }

    fn skip(&mut self, bytes: u64) -> IoResult<()> {
        self.reader.seek_relative(i64::try_from(bytes).map_err(Error::other)?)
    }

    fn skip_value(&mut self, kind: u32, depth: usize) -> IoResult<()> {
        match kind {
            STRING => {
                let length = self.length()?;
                self.skip(length)
            }
            ARRAY if depth < DEEPEST => {
                let (kind, length) = (self.u32()?, self.length()?);
                match kind {
                    STRING | ARRAY => (0..length).try_for_each(|_| self.skip_value(kind, depth + 1)),
                    _ => self.skip(length.saturating_mul(size_of_kind(kind)?)),
                }
            }
            _ => self.skip(size_of_kind(kind)?),
        }
    }
}

/// The size of a value without contents of its own.
fn size_of_kind(kind: u32) -> IoResult<u64> {
    match kind {
        0 | 1 | 7 => Ok(1),
        2 | 3 => Ok(2),
        4..=6 => Ok(4),
        10..=12 => Ok(8),
        _ => Err(ErrorKind::InvalidData.into()),
    }
}
