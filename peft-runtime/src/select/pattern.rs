//! Regular expressions over whole paths, with the features of Python's `re` that real configs use.

use std::sync::OnceLock;

use fancy_regex::{Regex, RegexBuilder};

use super::cost::Cost;
use crate::error::{Fault, shortened};

/// How often one match may backtrack before the pattern is given up as hopeless.
const BACKTRACK_LIMIT: usize = 100_000;

/// A compiled pattern that remembers how it was written.
#[derive(Clone, Debug)]
pub(crate) struct Pattern {
    field: &'static str,
    written: String,
    regex: Regex,
    /// The error from the first path that it could not be matched against; it is not tried against others.
    hopeless: OnceLock<Fault>,
}

impl Pattern {
    /// A pattern that has to match a whole path.
    pub(crate) fn whole(field: &'static str, pattern: &str) -> Result<Self, Fault> {
        Self::compile(field, pattern, &format!(r"\A(?:{pattern})\z"))
    }

    /// A pattern that has to match the end of a path, starting at a segment boundary, as rank patterns do.
    pub(crate) fn suffix(field: &'static str, pattern: &str) -> Result<Self, Fault> {
        Self::compile(field, pattern, &format!(r"\A(?:.*\.)?(?:{pattern})\z"))
    }

    /// A pattern that has to match whole segments anywhere in a path, as `modules_to_save` does.
    pub(crate) fn segments(field: &'static str, pattern: &str) -> Result<Self, Fault> {
        Self::compile(field, pattern, &format!(r"\A(?:|.*\.)(?:{pattern})(?:\z|\..*)"))
    }

    /// Compiles `expression` as it stands; its user wrote `pattern`.
    pub(crate) fn compile(field: &'static str, pattern: &str, expression: &str) -> Result<Self, Fault> {
        let written = shortened(pattern).into_owned();
        let fault = |reason| Fault::Pattern { field, pattern: written.clone(), reason };
        let cost = Cost::of(expression);
        if let Some(reason) = cost.excess() {
            return Err(fault(reason));
        }
        let regex = RegexBuilder::new(expression)
            .backtrack_limit(BACKTRACK_LIMIT)
            .delegate_size_limit(cost.size_limit())
            .build();
        match regex {
            Ok(regex) => Ok(Self { field, written, regex, hopeless: OnceLock::new() }),
            Err(error) => {
                Err(fault(format!("is not a regular expression: {}", shortened(&error.to_string()))))
            }
        }
    }

    pub(crate) fn is_match(&self, path: &str) -> Result<bool, Fault> {
        self.check_hope()?;
        self.regex.is_match(path).map_err(|error| self.give_up(path, &error))
    }

    /// The text of the capture group `name`, if the pattern matches.
    pub(crate) fn capture(&self, path: &str, name: &str) -> Result<Option<String>, Fault> {
        self.check_hope()?;
        let captures = self.regex.captures(path).map_err(|error| self.give_up(path, &error))?;
        Ok(captures.and_then(|captures| captures.name(name).map(|group| group.as_str().to_owned())))
    }

    fn check_hope(&self) -> Result<(), Fault> {
        self.hopeless.get().map_or(Ok(()), |fault| Err(fault.clone()))
    }

    fn give_up(&self, path: &str, error: &fancy_regex::Error) -> Fault {
        let reason = format!("cannot be matched against `{}`: {error}", shortened(path));
        let fault = Fault::Pattern { field: self.field, pattern: self.written.clone(), reason };
        self.hopeless.get_or_init(|| fault).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::Pattern;

    #[test]
    fn look_ahead_works_and_whole_paths_are_needed() {
        let pattern = Pattern::whole("target_modules", r"^(model)(?!.*(lm_head|emb)).*proj").unwrap();
        assert!(pattern.is_match("model.layers.0.q_proj").unwrap());
        assert!(!pattern.is_match("model.embed.q_proj").unwrap());
        assert!(!pattern.is_match("model.layers.0.q_proj.extra").unwrap());
    }

    #[test]
    fn a_pattern_without_end_is_stopped_and_named() {
        let pattern = Pattern::whole("target_modules", r"(?=(a+)+$)(a|aa)+b\1").unwrap();
        let error = pattern.is_match(&"a".repeat(64)).unwrap_err();
        assert!(error.to_string().contains("cannot be matched"), "{error}");
    }

    #[test]
    fn a_pattern_that_is_given_up_is_not_tried_again() {
        let pattern = Pattern::whole("target_modules", r"(?=(a+)+$)(a|aa)+b\1").unwrap();
        let first = pattern.is_match(&"a".repeat(64)).unwrap_err();
        assert_eq!(pattern.is_match("b").unwrap_err(), first);
    }

    #[test]
    fn a_pattern_that_takes_too_much_is_refused_before_it_is_compiled() {
        for pattern in [r"(?:(?=a)){4000000000}", r"(?<=(?:\w{100}){100})x", r"((((a{9}){9}){9}){9}){9}"] {
            let fault = Pattern::whole("target_modules", pattern).unwrap_err().to_string();
            assert!(fault.contains("repeat") || fault.contains("look-behind"), "{fault}");
        }
        let fault = Pattern::whole("target_modules", &"a|".repeat(1 << 18)).unwrap_err().to_string();
        assert!(fault.contains("bytes") && fault.len() < 1000, "{fault}");
    }

    #[test]
    fn suffix_patterns_start_at_a_segment() {
        let pattern = Pattern::suffix("rank_pattern", "q").unwrap();
        assert!(pattern.is_match("q").unwrap() && pattern.is_match("blk.q").unwrap());
        assert!(!pattern.is_match("blk.xq").unwrap());
        assert!(Pattern::suffix("rank_pattern", "^model.x.q").unwrap().is_match("model.x.q").unwrap());
    }
}
