//! A place in a pickle that moves on.

use super::fault::Fault;

/// The bytes of a pickle, and how far they are read.
pub(super) struct Cursor<'f> {
    pub(super) bytes: &'f [u8],
    pub(super) position: usize,
}

impl<'f> Cursor<'f> {
    fn take(&mut self, length: usize) -> Result<&'f [u8], Fault> {
        let end = self.position.checked_add(length);
        let bytes = end.and_then(|end| self.bytes.get(self.position..end));
        let bytes = bytes.ok_or_else(|| Fault("it is cut off".to_owned()))?;
        self.position += length;
        Ok(bytes)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let bytes = self.take(N)?;
        bytes.try_into().map_err(|_| Fault("it is cut off".to_owned()))
    }

    /// A length of one, four or eight bytes, and so many bytes.
    pub(super) fn counted(&mut self, width: usize) -> Result<&'f [u8], Fault> {
        let mut length = [0; 8];
        for (to, from) in length.iter_mut().zip(self.take(width)?) {
            *to = *from;
        }
        let length = usize::try_from(u64::from_le_bytes(length));
        self.take(length.map_err(|_| Fault("it is cut off".to_owned()))?)
    }

    /// The text up to the end of the line.
    pub(super) fn line(&mut self) -> Result<&'f str, Fault> {
        let rest = self.bytes.get(self.position..).unwrap_or_default();
        let length = rest.iter().position(|byte| *byte == b'\n');
        let length = length.ok_or_else(|| Fault("it is cut off".to_owned()))?;
        let line = self.take(length)?;
        self.position += 1;
        std::str::from_utf8(line).map_err(|_| Fault("a name in it is not UTF-8".to_owned()))
    }
}
