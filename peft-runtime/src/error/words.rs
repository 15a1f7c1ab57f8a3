//! Phrases that several errors share.

use std::borrow::Cow;
use std::fmt::Write as _;

/// How many characters of a text from a file a message shows.
const SHOWN: usize = 300;

/// The beginning of a text from a file, which may be of any length.
pub(crate) fn shortened(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => Cow::Owned(format!("{}… ({} bytes)", &text[..end], text.len())),
        None => Cow::Borrowed(text),
    }
}

/// `; did you mean …?`, or nothing.
pub(super) fn suggestion(nearest: &[String]) -> String {
    match nearest {
        [] => String::new(),
        names => format!("; did you mean {}?", join(names, " or ")),
    }
}

/// All known names, and those that may be meant.
pub(super) fn did_you_mean(nearest: &[String], known: &[String]) -> String {
    format!("; it must be {}{}", join(known, " or "), suggestion(nearest))
}

/// `; the model has …`.
pub(super) fn known_names(known: &[String]) -> String {
    match known {
        [] => "; the model has no adapters".to_owned(),
        names => format!("; the model has {}", quoted_list(names)),
    }
}

/// Names as a list that ends in "and".
pub(super) fn quoted_list(names: &[String]) -> String {
    join(names, " and ")
}

/// What a state dict begins with.
pub(super) fn first_key(first: &Option<String>) -> String {
    match first {
        Some(key) => format!("the first key is `{}`", shortened(key)),
        None => "there are no keys".to_owned(),
    }
}

/// Names of tensors, each with its shape.
pub(super) fn tensors(tensors: &[(String, Vec<usize>)]) -> String {
    let each = |(name, shape): &(String, Vec<usize>)| format!("`{}` {shape:?}", shortened(name));
    tensors.iter().map(each).collect::<Vec<_>>().join(", ")
}

/// Names as a list, with `last` before the last one.
pub(super) fn join(names: &[String], last: &str) -> String {
    let mut text = String::new();
    for (i, name) in names.iter().enumerate() {
        let separator = match i {
            0 => "",
            _ if i + 1 == names.len() => last,
            _ => ", ",
        };
        let _ = write!(text, "{separator}`{name}`");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{SHOWN, shortened};

    #[test]
    fn a_long_text_is_shown_by_its_beginning() {
        assert_eq!(shortened("lora_A"), "lora_A");
        let long = "ä".repeat(SHOWN + 1);
        assert_eq!(shortened(&long), format!("{}… (602 bytes)", "ä".repeat(SHOWN)));
    }
}
