//! Where the modules that adapters name are in a base model.

use std::collections::BTreeSet;
use std::ops::Range;

use super::prefix_search::{fitting_prefixes, joined, without_front};

/// What a base model calls the modules that an adapter names, and which of them it keeps in one fused weight.
///
/// Rules apply in the order in which they were given, each to the path that the rules before it produced.
///
/// ```
/// use peft_runtime::NameMap;
///
/// let names = NameMap::new()
///     // `bert.encoder…` of the adapter is `encoder…` in the base model.
///     .prefix("bert", "")
///     .module("self_attn.o_proj", "attn.out")
///     // Rows 0 to 64 of the fused weight are the query projection.
///     .rows("self_attn.q_proj", "attn.qkv", 0..64)
///     .rows("self_attn.k_proj", "attn.qkv", 64..96)
///     .rows("self_attn.v_proj", "attn.qkv", 96..128);
/// # let _ = names;
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NameMap {
    rules: Vec<Rule>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Rule {
    Prefix { from: String, to: String },
    Module { from: String, to: String, rows: Option<Range<usize>> },
}

/// Where a module of an adapter is in a base model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Placement {
    /// The module's path in the base model.
    pub(crate) module: String,
    /// The outputs of the adapter's module, if the base model's module has those of other modules too.
    pub(crate) rows: Option<Range<usize>>,
}

impl NameMap {
    /// No rules: the checkpoint uses the adapter's names.
    pub fn new() -> Self {
        Self::default()
    }

    /// Replaces the segments `from` at the beginning of a path with `to`; either may be empty.
    #[must_use]
    pub fn prefix(mut self, from: impl Into<String>, to: impl Into<String>) -> Self {
        self.rules.push(Rule::Prefix { from: from.into(), to: to.into() });
        self
    }

    /// Replaces the segments `from` at the end of a path with `to`.
    #[must_use]
    pub fn module(mut self, from: impl Into<String>, to: impl Into<String>) -> Self {
        self.rules.push(Rule::Module { from: from.into(), to: to.into(), rows: None });
        self
    }

    /// Like [`module`](Self::module), for a module whose outputs are part of a fused module's.
    #[must_use]
    pub fn rows(mut self, from: impl Into<String>, to: impl Into<String>, rows: Range<usize>) -> Self {
        self.rules.push(Rule::Module { from: from.into(), to: to.into(), rows: Some(rows) });
        self
    }

    /// The map of prefixes with which every path is one of the base model's `modules`, found by trying.
    ///
    /// It is empty if every path is one as it is. `None` if no prefixes make all of them fit, or if several do equally well:
    /// the best keep the most of a path, and put nothing else into it or out of it than what only wraps a model
    /// (`model`, `language_model`, `transformer`). Blocks keep their numbers.
    ///
    /// ```
    /// use peft_runtime::NameMap;
    ///
    /// let adapter = ["model.layers.0.q_proj", "lm_head"];
    /// let base = ["language_model.model.layers.0.q_proj", "vision_tower.layers.0.q_proj", "lm_head"];
    /// let names = NameMap::fitting(adapter, base);
    /// assert_eq!(names, Some(NameMap::new().prefix("model", "language_model.model")));
    /// ```
    pub fn fitting<'n>(
        paths: impl IntoIterator<Item = &'n str>,
        modules: impl IntoIterator<Item = &'n str>,
    ) -> Option<Self> {
        let (paths, modules): (BTreeSet<&str>, BTreeSet<&str>) =
            (paths.into_iter().collect(), modules.into_iter().collect());
        let prefixes = fitting_prefixes(&paths, &modules)?;
        Some(prefixes.into_iter().fold(Self::new(), |names, (from, to)| names.prefix(from, to)))
    }

    /// The prefixes that are replaced, each with what takes its place, in their order.
    pub fn prefixes(&self) -> impl Iterator<Item = (&str, &str)> {
        self.rules.iter().filter_map(|rule| match rule {
            Rule::Prefix { from, to } => Some((from.as_str(), to.as_str())),
            Rule::Module { .. } => None,
        })
    }

    /// The path of the base model's module that has the adapter's module at `path`.
    pub fn module_of(&self, path: &str) -> String {
        self.place(path).module
    }

    /// Whether the base model uses the adapter's names.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Where the adapter's module at `path` is in the base model.
    pub(crate) fn place(&self, path: &str) -> Placement {
        let mut place = Placement { module: path.to_owned(), rows: None };
        for rule in &self.rules {
            match rule {
                Rule::Prefix { from, to } => {
                    if let Some(rest) = without_front(&place.module, from) {
                        place.module = joined(to, rest);
                    }
                }
                Rule::Module { from, to, rows } => {
                    if let Some(rest) = without_back(&place.module, from) {
                        place.module = joined(rest, to);
                        place.rows = rows.clone().or(place.rows);
                    }
                }
            }
        }
        place
    }
}

fn without_back<'p>(path: &'p str, back: &str) -> Option<&'p str> {
    match path.strip_suffix(back)? {
        rest if back.is_empty() || rest.is_empty() => Some(rest),
        rest => rest.strip_suffix('.'),
    }
}

#[cfg(test)]
mod tests {
    use super::{NameMap, Placement};

    #[test]
    fn rules_replace_whole_segments_in_order() {
        let names = NameMap::new()
            .prefix("model", "")
            .module("attn.q", "attn.query")
            .rows("attn.query", "attn.qkv", 2..4)
            .prefix("", "base");
        let place = |path: &str| names.place(path).module;
        assert_eq!(place("model.h.0.mlp"), "base.h.0.mlp");
        assert_eq!(place("models.h"), "base.models.h");
        assert_eq!(place("model.h.xattn.q"), "base.h.xattn.q");
        let fused = Placement { module: "base.h.attn.qkv".to_owned(), rows: Some(2..4) };
        assert_eq!(names.place("model.h.attn.q"), fused);
        assert_eq!(NameMap::new().place("a.b"), Placement { module: "a.b".to_owned(), rows: None });
    }
}
