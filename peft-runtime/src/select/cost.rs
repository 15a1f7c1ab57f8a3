//! How much a pattern may cost, judged by its text: the backtracking limit does not cover what is spent without
//! backtracking.
//!
//! Compiling expands counted repeats, in look-behind without any limit; references to groups of references double their
//! sizes until they overflow; and a repeated look-ahead runs as often as its count says without ever backtracking.
//! Patterns for module paths need none of that.

/// The most bytes a pattern may have.
const LONGEST: usize = 1 << 18;
/// The most groups, assertions and references a pattern may have: each may become an automaton of its own.
const MOST_PARTS: usize = 1000;
/// The most references to groups a pattern may have.
const MOST_REFERENCES: usize = 32;
/// The largest product of the counts of a pattern's repeats.
const MOST_REPEATS: u64 = 1000;
/// The largest product of length and counts in a pattern with look-behind.
const MOST_LOOK_BEHIND: u64 = 1 << 13;
/// The most bytes that the automata of a pattern may take together, and the most that a single one may take.
const SIZE: usize = 64 << 20;
const SIZE_OF_PART: usize = 10 << 20;

/// What makes a pattern costly. It errs on the high side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cost {
    length: usize,
    parts: usize,
    references: usize,
    repeats: u64,
    looks_behind: bool,
}

impl Cost {
    pub(super) fn of(pattern: &str) -> Self {
        let looks_behind = pattern.contains("(?<=") || pattern.contains("(?<!");
        let references = pattern.matches("(?P=").count();
        let mut cost = Self { length: pattern.len(), parts: 1, references, repeats: 1, looks_behind };
        let bytes = pattern.as_bytes();
        let mut at = 0;
        while let Some(byte) = bytes.get(at) {
            at += 1;
            match byte {
                b'\\' => {
                    cost.add_escape(bytes.get(at).copied());
                    at = after_escape(bytes, at);
                }
                b'(' => cost.parts += 1,
                b'{' => {
                    let end = after_brace(bytes, at);
                    let count = largest_number(bytes.get(at..end).unwrap_or_default());
                    cost.repeats = cost.repeats.saturating_mul(count);
                }
                _ => {}
            }
        }
        cost
    }

    /// References and assertions are parts of their own.
    fn add_escape(&mut self, escaped: Option<u8>) {
        let is_reference = matches!(escaped, Some(b'0'..=b'9' | b'k' | b'g'));
        let is_assertion = matches!(escaped, Some(b'G' | b'K' | b'b' | b'B' | b'<' | b'>'));
        self.references += usize::from(is_reference);
        self.parts += usize::from(is_reference || is_assertion);
    }

    /// Why the pattern is refused, if it is.
    pub(super) fn excess(&self) -> Option<String> {
        let Self { length, parts, references, repeats, looks_behind } = *self;
        if length > LONGEST {
            return Some(format!("has {length} bytes, more than the {LONGEST} that are allowed"));
        }
        if parts > MOST_PARTS {
            return Some(format!(
                "has {parts} groups and references, more than the {MOST_PARTS} that are allowed"
            ));
        }
        if references > MOST_REFERENCES {
            return Some(format!(
                "refers to groups {references} times, more than the {MOST_REFERENCES} that are allowed"
            ));
        }
        if repeats > MOST_REPEATS {
            return Some(format!("repeats too often; its counts multiply to more than {MOST_REPEATS}"));
        }
        if looks_behind && (length as u64).saturating_mul(repeats) > MOST_LOOK_BEHIND {
            return Some("is too long for a pattern with look-behind".to_owned());
        }
        None
    }

    /// What each automaton of the pattern may take.
    pub(super) fn size_limit(&self) -> usize {
        (SIZE / self.parts.max(1)).min(SIZE_OF_PART)
    }
}

/// Where the text continues after an escape; braces there hold a code point or a class, not a count.
fn after_escape(bytes: &[u8], at: usize) -> usize {
    let braces = bytes.get(at + 1) == Some(&b'{');
    match bytes.get(at) {
        Some(b'x' | b'u' | b'U' | b'p' | b'P') if braces => after_brace(bytes, at + 2),
        _ => at + 1,
    }
}

/// The place after the next closing brace.
fn after_brace(bytes: &[u8], at: usize) -> usize {
    let rest = bytes.get(at..).unwrap_or_default();
    rest.iter().position(|byte| *byte == b'}').map_or(bytes.len(), |place| at + place + 1)
}

/// The largest number in a text; at least 1.
fn largest_number(text: &[u8]) -> u64 {
    let number = |digits: &[u8]| {
        digits.iter().fold(0u64, |number, digit| {
            number.saturating_mul(10).saturating_add(u64::from(digit.saturating_sub(b'0')))
        })
    };
    text.split(|byte| !byte.is_ascii_digit()).map(number).max().unwrap_or_default().max(1)
}

#[cfg(test)]
mod tests {
    use super::Cost;

    fn repeats(pattern: &str) -> u64 {
        Cost::of(pattern).repeats
    }

    #[test]
    fn counts_are_multiplied_and_code_points_are_none() {
        assert_eq!(repeats(r"layers\.\d{1,2}\.q"), 2);
        assert_eq!(repeats("(a{3}){4,}"), 12);
        assert_eq!(repeats("a{,7}b{ 2 , 5 }"), 35);
        assert_eq!(repeats(r"\x{10FFFF}\p{Greek}\{9"), 1);
        assert_eq!(repeats(r"\\x{9}"), 9);
        assert_eq!(repeats("{99999999999999999999999"), u64::MAX);
    }

    #[test]
    fn patterns_of_real_configs_are_tried() {
        for pattern in [
            r"^(?!.*lm_head).*\.(?:q|k|v)_proj$",
            r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense).*?(?:q_proj|down_proj).*?)",
            r".*(?<!vision_tower)\.layers\.\d{1,3}\.(q_proj|v_proj)",
        ] {
            assert_eq!(Cost::of(pattern).excess(), None, "{pattern}");
        }
    }
}
