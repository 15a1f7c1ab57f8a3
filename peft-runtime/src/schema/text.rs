//! Text that is assembled at compile time.

/// A fixed buffer of UTF-8 text; what does not fit is cut off.
#[derive(Clone, Copy)]
pub(super) struct Text<const N: usize> {
    bytes: [u8; N],
    length: usize,
}

impl<const N: usize> Text<N> {
    pub(super) const fn new() -> Self {
        Self { bytes: [0; N], length: 0 }
    }

    pub(super) const fn push(&mut self, bytes: &[u8]) {
        let mut i = 0;
        while i < bytes.len() && self.length < N {
            self.bytes[self.length] = bytes[i];
            self.length += 1;
            i += 1;
        }
    }

    /// Appends `bytes` between back-ticks.
    pub(super) const fn push_quoted(&mut self, bytes: &[u8]) {
        self.push(b"`");
        self.push(bytes);
        self.push(b"`");
    }

    pub(super) const fn as_bytes(&self) -> &[u8] {
        self.bytes.split_at(self.length).0
    }

    pub(super) const fn as_str(&self) -> &str {
        match std::str::from_utf8(self.as_bytes()) {
            Ok(text) => text,
            // Reached only if a name is cut off in the middle of a character.
            Err(_) => "target does not fit the model",
        }
    }
}

pub(super) const fn equal(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let mut i = 0;
    while i < a.len() {
        if a[i] != b[i] {
            return false;
        }
        i += 1;
    }
    true
}
