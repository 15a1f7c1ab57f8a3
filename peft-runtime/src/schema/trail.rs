//! The current position of a walk over a schema, and which target names end there.

use super::text::{Text, equal};

/// The segments that lead to a place in the schema, innermost first.
#[derive(Clone, Copy)]
pub(super) struct Trail<'a> {
    parent: Option<&'a Trail<'a>>,
    name: &'a [u8],
    wildcard: Wildcard,
}

/// Which names a `*` of the schema stands for.
#[derive(Clone, Copy)]
pub(super) enum Wildcard {
    None,
    Index,
    Key,
}

impl<'a> Trail<'a> {
    /// Before the first segment.
    pub(super) const ROOT: Self = Self { parent: None, name: b"", wildcard: Wildcard::None };

    /// One name further, which may have several segments or none.
    pub(super) const fn child(&'a self, name: &'a [u8], wildcard: Wildcard) -> Self {
        Self { parent: Some(self), name, wildcard }
    }
}

/// Whether the trail ends with `target`, by whole segments. At least one of them has to be a name of the schema:
/// otherwise any name would match a map, whose keys are unknown.
pub(super) const fn matches_suffix(trail: &Trail<'_>, target: &[u8]) -> bool {
    let mut trail = trail;
    let mut end = trail.name.len();
    let mut target_end = target.len();
    let mut anchored = false;
    loop {
        // Empty names (the root, flattened fields) are not segments.
        while end == 0 {
            match trail.parent {
                Some(parent) => {
                    trail = parent;
                    end = trail.name.len();
                }
                None => return false,
            }
        }
        let start = segment_start(trail.name, end);
        let target_start = segment_start(target, target_end);
        let segment = trail.name.split_at(end).0.split_at(start).1;
        let wanted = target.split_at(target_end).0.split_at(target_start).1;
        if !matches_segment(segment, trail.wildcard, wanted) {
            return false;
        }
        anchored = anchored || (matches!(trail.wildcard, Wildcard::None) && !equal(wanted, b"*"));
        if target_start == 0 {
            return anchored;
        }
        target_end = target_start - 1;
        end = if start == 0 { 0 } else { start - 1 };
    }
}

const fn matches_segment(segment: &[u8], wildcard: Wildcard, wanted: &[u8]) -> bool {
    if equal(wanted, b"*") {
        return true;
    }
    match wildcard {
        Wildcard::None => equal(segment, wanted),
        Wildcard::Index => is_number(wanted),
        Wildcard::Key => !wanted.is_empty(),
    }
}

const fn segment_start(name: &[u8], end: usize) -> usize {
    let mut start = end;
    while start > 0 && name[start - 1] != b'.' {
        start -= 1;
    }
    start
}

const fn is_number(text: &[u8]) -> bool {
    let mut i = 0;
    while i < text.len() {
        if !text[i].is_ascii_digit() {
            return false;
        }
        i += 1;
    }
    !text.is_empty()
}

/// How many segments a name has.
pub(super) const fn count_segments(name: &[u8]) -> usize {
    let mut count = 1;
    let mut i = 0;
    while i < name.len() {
        if name[i] == b'.' {
            count += 1;
        }
        i += 1;
    }
    count
}

/// Writes the last `count` segments of the trail, outermost first.
pub(super) const fn push_suffix(trail: &Trail<'_>, count: usize, text: &mut Text<96>) {
    if count == 0 {
        return;
    }
    let own = if trail.name.is_empty() { 0 } else { count_segments(trail.name) };
    let mut start = 0;
    let mut surplus = own.saturating_sub(count);
    while surplus > 0 {
        if trail.name[start] == b'.' {
            surplus -= 1;
        }
        start += 1;
    }
    if let Some(parent) = trail.parent {
        push_suffix(parent, count.saturating_sub(own), text);
    }
    if own > 0 {
        if !text.as_bytes().is_empty() {
            text.push(b".");
        }
        text.push(trail.name.split_at(start).1);
    }
}
