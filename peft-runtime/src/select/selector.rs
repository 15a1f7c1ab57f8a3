//! Decides for each module path whether a config selects it; the rules and their order are PEFT's.

use std::collections::BTreeSet;

use super::layers::LayerFilter;
use super::pattern::Pattern;
use super::targets::TargetModules;
use crate::error::Fault;
use crate::schema::Family;

/// What a config says about one module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Ruled out by `exclude_modules` or `modules_to_save`.
    Excluded,
    /// To be adapted.
    Target,
    /// Not named.
    Unmatched,
}

/// The compiled selection of a config.
#[derive(Debug)]
pub(crate) struct Selector {
    exclude: Option<Matcher>,
    modules_to_save: Vec<Pattern>,
    targets: Matcher,
    layers: Option<LayerFilter>,
}

/// A compiled [`TargetModules`].
#[derive(Debug)]
enum Matcher {
    Names(BTreeSet<String>),
    Regex(Box<Pattern>),
    AllLinear,
}

/// How a name list matched a path; exact names are not subject to the layer filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Match {
    None,
    Exact,
    Suffix,
}

impl Matcher {
    fn new(field: &'static str, targets: &TargetModules) -> Result<Self, Fault> {
        Ok(match targets {
            TargetModules::Names(names) => Self::Names(names.clone()),
            TargetModules::Regex(pattern) => Self::Regex(Box::new(Pattern::whole(field, pattern)?)),
            TargetModules::AllLinear => Self::AllLinear,
        })
    }

    fn find(&self, path: &str, family: Option<Family>) -> Result<Match, Fault> {
        Ok(match self {
            Self::Names(names) if names.contains(path) => Match::Exact,
            Self::Names(names) if proper_suffixes(path).any(|suffix| names.contains(suffix)) => Match::Suffix,
            Self::Regex(pattern) if pattern.is_match(path)? => Match::Exact,
            Self::AllLinear if family == Some(Family::Linear) => Match::Exact,
            Self::Names(_) | Self::Regex(_) | Self::AllLinear => Match::None,
        })
    }
}

/// The ends of a path that start at a segment boundary, longest first, without the path itself.
pub(crate) fn proper_suffixes(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('.').map(|(dot, _)| &path[dot + 1..])
}

/// The names that are the end of none of the paths.
pub(crate) fn unmatched_names<'p>(
    names: &BTreeSet<String>,
    paths: impl Iterator<Item = &'p str>,
) -> Vec<String> {
    let mut unmatched = names.clone();
    for path in paths {
        unmatched.remove(path);
        for suffix in proper_suffixes(path) {
            unmatched.remove(suffix);
        }
    }
    unmatched.into_iter().collect()
}

/// The names or the pattern of `exclude_modules` that match none of the modules at `paths`.
///
/// # Errors
/// If the pattern cannot be matched.
pub(crate) fn unmatched_exclusions<'p>(
    exclude: Option<&TargetModules>,
    paths: impl Iterator<Item = &'p str>,
) -> Result<Vec<String>, Fault> {
    match exclude {
        Some(TargetModules::Names(names)) => Ok(unmatched_names(names, paths)),
        Some(TargetModules::Regex(written)) if !written.is_empty() => {
            let pattern = Pattern::whole("exclude_modules", written)?;
            for path in paths {
                if pattern.is_match(path)? {
                    return Ok(Vec::new());
                }
            }
            Ok(vec![written.clone()])
        }
        Some(TargetModules::Regex(_) | TargetModules::AllLinear) | None => Ok(Vec::new()),
    }
}

impl Selector {
    pub(crate) fn new(
        targets: &TargetModules,
        exclude: Option<&TargetModules>,
        modules_to_save: &[String],
        layers: Option<LayerFilter>,
    ) -> Result<Self, Fault> {
        let exclude = exclude.filter(|exclude| !exclude.is_empty());
        let exclude = exclude.map(|exclude| Matcher::new("exclude_modules", exclude)).transpose()?;
        let segments = |name: &String| Pattern::segments("modules_to_save", name);
        let modules_to_save = modules_to_save.iter().map(segments).collect::<Result<_, _>>()?;
        Ok(Self { exclude, modules_to_save, targets: Matcher::new("target_modules", targets)?, layers })
    }

    /// What the config says about the module at `path`; `family` is the layer's family, or `None` for other modules.
    pub(crate) fn decide(&self, path: &str, family: Option<Family>) -> Result<Decision, Fault> {
        if let Some(exclude) = &self.exclude
            && exclude.find(path, family)? != Match::None
        {
            return Ok(Decision::Excluded);
        }
        for pattern in &self.modules_to_save {
            if pattern.is_match(path)? {
                return Ok(Decision::Excluded);
            }
        }
        let found = match (self.targets.find(path, family)?, &self.layers) {
            (Match::Suffix, Some(filter)) => filter.admits(path)?,
            (found, _) => found != Match::None,
        };
        Ok(if found { Decision::Target } else { Decision::Unmatched })
    }
}

#[cfg(test)]
mod tests {
    use super::super::LayerIndices;
    use super::{Decision, LayerFilter, Selector, TargetModules};

    fn selector(targets: TargetModules) -> Selector {
        let filter = LayerFilter::new(Some(&LayerIndices::One(1)), None).unwrap();
        Selector::new(&targets, Some(&TargetModules::from(["lm_head"])), &["score".to_owned()], filter)
            .unwrap()
    }

    fn decide(selector: &Selector, path: &str) -> Decision {
        selector.decide(path, None).unwrap()
    }

    #[test]
    fn exclusion_comes_first_and_exact_names_ignore_the_layer_filter() {
        let selector = selector(TargetModules::names(["q", "model.layers.0.q", "lm_head", "out"]));
        assert_eq!(decide(&selector, "model.layers.1.q"), Decision::Target);
        assert_eq!(decide(&selector, "model.layers.0.q"), Decision::Target);
        assert_eq!(decide(&selector, "model.layers.2.q"), Decision::Unmatched);
        assert_eq!(decide(&selector, "lm_head"), Decision::Excluded);
        assert_eq!(decide(&selector, "score.out"), Decision::Excluded);
        assert_eq!(decide(&selector, "score.head.out"), Decision::Excluded);
        assert_eq!(decide(&selector, "xscore.out"), Decision::Unmatched);
    }
}
