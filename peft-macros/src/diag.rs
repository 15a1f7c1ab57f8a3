//! Collects errors, so that one run of the derive reports all of them.

use std::fmt::Display;

use proc_macro2::Span;

/// The errors found so far.
pub(crate) struct Diagnostics {
    error: Option<syn::Error>,
    finished: bool,
}

impl Diagnostics {
    pub(crate) fn new() -> Self {
        Self { error: None, finished: false }
    }

    /// Records an error at the smallest token that is wrong.
    pub(crate) fn error(&mut self, span: Span, message: impl Display) {
        self.push(syn::Error::new(span, message));
    }

    pub(crate) fn push(&mut self, error: syn::Error) {
        match &mut self.error {
            Some(first) => first.combine(error),
            None => self.error = Some(error),
        }
    }

    /// All errors in one, if there are any.
    pub(crate) fn finish(mut self) -> Result<(), syn::Error> {
        self.finished = true;
        self.error.take().map_or(Ok(()), Err)
    }
}

impl Drop for Diagnostics {
    fn drop(&mut self) {
        // Errors that are never taken out would be lost: a bug in this crate, not a mistake in its input.
        debug_assert!(self.finished || std::thread::panicking(), "diagnostics were dropped without `finish`");
    }
}

/// How similar two words must be for one to be suggested instead of the other.
const ALIKE: f64 = 0.8;

/// `; did you mean …?` with the known word closest to `word`, or the list of all known words.
pub(crate) fn suggestion(word: &str, known: &[&str]) -> String {
    let score = |candidate: &&&str| strsim::jaro_winkler(word, candidate);
    let nearest = known.iter().max_by(|a, b| score(a).total_cmp(&score(b)));
    match nearest {
        Some(nearest) if score(&nearest) >= ALIKE => format!("; did you mean `{nearest}`?"),
        _ => {
            let quoted: Vec<String> = known.iter().map(|word| format!("`{word}`")).collect();
            format!("; expected one of {}", quoted.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Diagnostics, suggestion};
    use proc_macro2::Span;

    #[test]
    fn two_faults_give_two_errors() {
        let mut diagnostics = Diagnostics::new();
        diagnostics.error(Span::call_site(), "first");
        diagnostics.error(Span::call_site(), "second");
        let messages: Vec<String> =
            diagnostics.finish().unwrap_err().into_iter().map(|e| e.to_string()).collect();
        assert_eq!(messages, ["first", "second"]);
    }

    #[test]
    fn a_slip_is_answered_with_the_word_and_a_guess_with_the_list() {
        assert_eq!(suggestion("skp", &["rename", "skip"]), "; did you mean `skip`?");
        assert_eq!(suggestion("xyz", &["rename", "skip"]), "; expected one of `rename`, `skip`");
    }
}
