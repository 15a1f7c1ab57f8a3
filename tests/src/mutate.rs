//! Changes to bytes and texts, determined by a seed, for tests that read damaged input.

use std::ops::Range;

/// Decides what is changed: the same seed makes the same changes.
pub trait Chance {
    /// A number below `limit`, which is at least 1.
    fn below(&mut self, limit: usize) -> usize;

    /// One of the choices.
    fn pick<'c, T>(&mut self, choices: &'c [T]) -> Option<&'c T> {
        if choices.is_empty() { None } else { choices.get(self.below(choices.len())) }
    }

    /// A part of something of this length, of at most `longest`.
    fn part(&mut self, length: usize, longest: usize) -> Range<usize> {
        let start = self.below(length + 1);
        let end = start + self.below((length - start).min(longest) + 1);
        start..end
    }
}

/// Numbers that programs often get wrong.
const NUMBERS: [u64; 14] = [
    0,
    1,
    7,
    0x7f,
    0xff,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    1 << 32,
    (1 << 53) + 1,
    1 << 62,
    1 << 63,
    u64::MAX,
];

/// Words that parsers often get wrong.
const WORDS: [&str; 42] = [
    "0",
    "-1",
    "-0",
    "1e308",
    "1e-400",
    "4294967296",
    "9223372036854775808",
    "18446744073709551615",
    "NaN",
    "null",
    "true",
    "false",
    "\"\"",
    "[]",
    "{}",
    "[[[[",
    "}}",
    ",",
    ":",
    "\\",
    "\\u0000",
    "\u{feff}",
    "ä",
    "\0",
    "(",
    ")",
    "(?=",
    "(?!",
    "(?<=",
    "(?:",
    "*",
    "+",
    "{9}",
    "{1,}",
    "\\1",
    "[^",
    "|",
    "$",
    "..",
    "/",
    "lora_A",
    "base_model.model.",
];

/// The maximum number of changes to one input.
const CHANGES: usize = 6;
/// The longest part that is moved about.
const LONGEST: usize = 64;
/// The maximum length of an input.
const LIMIT: usize = 1 << 20;

/// `bytes` with a few changes, some of them parts of `other`.
pub fn mutate(bytes: &[u8], other: &[u8], chance: &mut impl Chance) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..=chance.below(CHANGES) {
        change(&mut bytes, other, chance);
        bytes.truncate(LIMIT);
    }
    bytes
}

/// `text` with a few changes; bytes that are no longer UTF-8 are replaced.
pub fn mutate_text(text: &str, other: &str, chance: &mut impl Chance) -> String {
    String::from_utf8_lossy(&mutate(text.as_bytes(), other.as_bytes(), chance)).into_owned()
}

fn change(bytes: &mut Vec<u8>, other: &[u8], chance: &mut impl Chance) {
    let at = chance.below(bytes.len() + 1);
    match chance.below(10) {
        0 => flip(bytes, chance),
        1 => overwrite(bytes, at, &[chance.below(256) as u8]),
        2 => {
            let number = chance.pick(&NUMBERS).copied().unwrap_or_default().to_le_bytes();
            let width = [1, 2, 4, 8][chance.below(4)];
            overwrite(bytes, at, &number[..width]);
        }
        3 => drop(bytes.drain(chance.part(bytes.len(), LONGEST))),
        4 => {
            let part = bytes[chance.part(bytes.len(), LONGEST)].to_vec();
            insert(bytes, at, &part);
        }
        5 => {
            let part = &other[chance.part(other.len(), LONGEST)];
            insert(bytes, at, part);
        }
        6 => insert(bytes, at, chance.pick(&WORDS).copied().unwrap_or_default().as_bytes()),
        7 => replace_number(bytes, chance),
        8 => bytes.truncate(at),
        _ => {
            let part = chance.part(bytes.len(), LONGEST);
            bytes[part].reverse();
        }
    }
}

fn flip(bytes: &mut [u8], chance: &mut impl Chance) {
    if !bytes.is_empty() {
        let at = chance.below(bytes.len());
        bytes[at] ^= 1 << chance.below(8);
    }
}

fn overwrite(bytes: &mut [u8], at: usize, part: &[u8]) {
    for (place, byte) in bytes.iter_mut().skip(at).zip(part) {
        *place = *byte;
    }
}

fn insert(bytes: &mut Vec<u8>, at: usize, part: &[u8]) {
    drop(bytes.splice(at..at, part.iter().copied()));
}

/// Changes the value of one of the numbers in a text.
fn replace_number(bytes: &mut Vec<u8>, chance: &mut impl Chance) {
    let mut numbers: Vec<Range<usize>> = Vec::new();
    for at in (0..bytes.len()).filter(|at| bytes[*at].is_ascii_digit()) {
        match numbers.last_mut() {
            Some(last) if last.end == at => last.end = at + 1,
            _ => numbers.push(at..at + 1),
        }
    }
    let Some(number) = chance.pick(&numbers).cloned() else { return };
    let value = chance.pick(&NUMBERS).copied().unwrap_or_default().to_string();
    drop(bytes.splice(number, value.into_bytes()));
}
