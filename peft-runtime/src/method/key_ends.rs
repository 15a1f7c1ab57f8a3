//! Keys taken apart into the path of a layer and the end that names the tensor.

/// A key taken apart before the end that it has.
pub(super) fn split_at_end<'k>(key: &'k str, ends: &[&str]) -> Option<(&'k str, &'k str)> {
    let split = |end: &&str| {
        let path = key.strip_suffix(end)?.strip_suffix('.')?;
        Some((path, &key[path.len() + 1..]))
    };
    ends.iter().find_map(split)
}

/// A key taken apart at the last `.` before `marker`.
pub(super) fn split_at_marker<'k>(key: &'k str, marker: &str) -> Option<(&'k str, &'k str)> {
    let at = key.rfind(&format!(".{marker}"))?;
    Some((&key[..at], &key[at + 1..]))
}
