//! `rank_pattern` and `alpha_pattern`: values for the modules that a pattern matches, in the order written.

use std::collections::BTreeSet;
use std::fmt;
use std::marker::PhantomData;
use std::sync::OnceLock;

use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::common::{ConfigFault, as_number};
use crate::error::{Fault, shortened};
use crate::select::Pattern;

/// Patterns with values; the first pattern that matches a module supplies its value.
///
/// A pattern is a regular expression that has to match the end of a module path, starting at a segment boundary.
#[derive(Clone)]
pub struct PatternMap<T> {
    entries: Vec<(String, T)>,
    /// The patterns, compiled when they are first matched.
    compiled: OnceLock<Result<Vec<Pattern>, Fault>>,
}

impl<T> Default for PatternMap<T> {
    fn default() -> Self {
        Self { entries: Vec::new(), compiled: OnceLock::new() }
    }
}

impl<T: fmt::Debug> fmt::Debug for PatternMap<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<T: PartialEq> PartialEq for PatternMap<T> {
    fn eq(&self, other: &Self) -> bool {
        self.entries == other.entries
    }
}

impl<T> PatternMap<T> {
    /// The patterns and values in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &T)> {
        self.entries.iter().map(|(pattern, value)| (pattern.as_str(), value))
    }

    /// What `fault` finds wrong with the values, each with its pattern.
    pub(crate) fn faults(
        &self,
        field: &'static str,
        fault: impl Fn(&T) -> Option<ConfigFault>,
    ) -> impl Iterator<Item = ConfigFault> {
        self.iter().filter_map(move |(pattern, value)| {
            let (_, reason) = fault(value)?;
            Some((field, format!("for the pattern `{pattern}`, {reason}")))
        })
    }

    /// Whether there is no pattern.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// What the patterns say about one module.
#[derive(Debug, PartialEq)]
enum Chosen<T> {
    /// No pattern matches.
    Default,
    /// A pattern supplies the value.
    Value(T),
    /// Two patterns match with different values, and a saved file, whose keys are sorted, would swap their order.
    Ambiguous {
        /// The pattern that comes first as written.
        written_first: String,
        /// The pattern that comes first when sorted.
        sorted_first: String,
    },
}

impl<T: Copy + PartialEq> PatternMap<T> {
    /// The value for the module at `path`, or `default` if no pattern matches.
    ///
    /// # Errors
    /// If a pattern cannot be matched, or two of them give different values and the order decides.
    pub(crate) fn value(&self, field: &'static str, path: &str, default: T) -> Result<T, Fault> {
        match self.choose(field, path)? {
            Chosen::Value(value) => Ok(value),
            Chosen::Default => Ok(default),
            Chosen::Ambiguous { written_first: first, sorted_first: second } => {
                Err(Fault::AmbiguousPattern { field, path: path.to_owned(), first, second })
            }
        }
    }

    /// The patterns that match none of the modules at `paths`.
    ///
    /// # Errors
    /// If a pattern cannot be matched.
    pub(crate) fn unmatched(&self, field: &'static str, paths: &[&str]) -> Result<Vec<String>, Fault> {
        let mut unmatched = Vec::new();
        for (pattern, (written, _)) in self.compiled(field)?.iter().zip(&self.entries) {
            let mut matches = false;
            for path in paths {
                matches = matches || pattern.is_match(path)?;
            }
            if !matches {
                unmatched.push(written.clone());
            }
        }
        Ok(unmatched)
    }

    fn compiled(&self, field: &'static str) -> Result<&[Pattern], Fault> {
        let compile = || self.entries.iter().map(|(pattern, _)| Pattern::suffix(field, pattern)).collect();
        self.compiled.get_or_init(compile).as_deref().map_err(Fault::clone)
    }

    /// What the patterns say about the module at `path`.
    fn choose(&self, field: &'static str, path: &str) -> Result<Chosen<T>, Fault> {
        let patterns = self.compiled(field)?;
        let mut matching = Vec::new();
        for (pattern, (written, value)) in patterns.iter().zip(&self.entries) {
            if pattern.is_match(path)? {
                matching.push((written, *value));
            }
        }
        let sorted_first = matching.iter().min_by_key(|(written, _)| *written);
        Ok(match (matching.first(), sorted_first) {
            (Some((written, value)), Some((sorted, other))) if value != other => {
                Chosen::Ambiguous { written_first: (*written).clone(), sorted_first: (*sorted).clone() }
            }
            (Some((_, value)), _) => Chosen::Value(*value),
            (None, _) => Chosen::Default,
        })
    }
}

impl<S: Into<String>, T> FromIterator<(S, T)> for PatternMap<T> {
    fn from_iter<I: IntoIterator<Item = (S, T)>>(patterns: I) -> Self {
        Self {
            entries: patterns.into_iter().map(|(pattern, value)| (pattern.into(), value)).collect(),
            compiled: OnceLock::new(),
        }
    }
}

impl<S: Into<String>, T, const N: usize> From<[(S, T); N]> for PatternMap<T> {
    fn from(patterns: [(S, T); N]) -> Self {
        patterns.into_iter().collect()
    }
}

impl<T: Serialize> Serialize for PatternMap<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

/// Reads patterns in the order in which they are written.
struct InOrder<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for InOrder<T> {
    type Value = PatternMap<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of patterns and numbers")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(PatternMap::default())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut entries, mut known) = (Vec::new(), BTreeSet::new());
        while let Some((pattern, value)) = map.next_entry::<String, T>()? {
            // Readers do not agree on which of two values counts.
            if !known.insert(pattern.clone()) {
                let pattern = shortened(&pattern);
                return Err(A::Error::custom(format!("the pattern `{pattern}` is there twice")));
            }
            entries.push((pattern, value));
        }
        Ok(entries.into_iter().collect())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for PatternMap<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(InOrder(PhantomData))
    }
}

/// The patterns for ranks and alphas that match none of the modules at `paths`, each with its field.
///
/// # Errors
/// If a pattern cannot be matched.
pub(crate) fn unmatched_sizes(
    ranks: &PatternMap<usize>,
    alphas: &PatternMap<f64>,
    paths: &[&str],
) -> Result<Vec<(&'static str, String)>, Fault> {
    let ranks = ranks.unmatched("rank_pattern", paths)?.into_iter().map(|pattern| ("rank_pattern", pattern));
    let alphas =
        alphas.unmatched("alpha_pattern", paths)?.into_iter().map(|pattern| ("alpha_pattern", pattern));
    Ok(ranks.chain(alphas).collect())
}

/// Writes numbers without a fraction as integers, as PEFT's files do.
pub(crate) fn as_numbers<S: Serializer>(
    patterns: &PatternMap<f64>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Number(#[serde(serialize_with = "as_number")] f64);

    serializer.collect_map(patterns.iter().map(|(pattern, value)| (pattern, Number(*value))))
}
