//! The prefixes under which an adapter's modules are those of a base model, found by trying.

use std::collections::{BTreeMap, BTreeSet};

/// Segments that only wrap a model: one checkpoint of a model has them, and another one of the same model does not.
const WRAPPERS: [&str; 5] = ["base_model", "language_model", "model", "text_model", "transformer"];

/// The most replacements that are tried for one adapter.
const MOST_RULES: usize = 8;

/// The most ways to place one module that are tried.
const MOST_CANDIDATES: usize = 64;

/// A way to place a module: `from` in front of what both names end with, and `to` in the base model.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate<'n> {
    from: Vec<&'n str>,
    to: Vec<&'n str>,
    /// What both end with, from the front.
    common: Vec<&'n str>,
}

/// The prefixes to replace, one after the other, so that every path is one of `modules`; empty if every path is one as it is.
///
/// `None` if nothing makes all of them fit, or if several ways are equally good: the one that keeps the most of a name
/// is better, and then the one that changes fewer names besides those that only wrap a model.
pub(super) fn fitting_prefixes(
    paths: &BTreeSet<&str>,
    modules: &BTreeSet<&str>,
) -> Option<Vec<(String, String)>> {
    let mut places: Vec<(&str, String)> = paths.iter().map(|path| (*path, (*path).to_owned())).collect();
    let mut rules = Vec::new();
    loop {
        let left = places.iter().filter(|(_, place)| !modules.contains(place.as_str()));
        // The longest name says the most of where it belongs.
        let Some((path, _)) = left.max_by_key(|(path, _)| (path.split('.').count(), *path)) else {
            return Some(rules);
        };
        if rules.len() == MOST_RULES {
            return None;
        }
        let (from, to) = best_rule(path, &places, modules)?;
        for (_, place) in &mut places {
            if let Some(replaced) = replaced(place, &from, &to) {
                *place = replaced;
            }
        }
        rules.push((from, to));
    }
}

/// `path` with `to` in the place of the segments `from`, if it begins with them.
fn replaced(path: &str, from: &str, to: &str) -> Option<String> {
    without_front(path, from).map(|rest| joined(to, rest))
}

/// The one best rule for `path` that puts no other path into a wrong place.
fn best_rule(path: &str, places: &[(&str, String)], modules: &BTreeSet<&str>) -> Option<(String, String)> {
    let place = places.iter().find(|(own, _)| *own == path).map(|(_, place)| place.as_str())?;
    let candidates: BTreeSet<Candidate<'_>> =
        modules.iter().filter_map(|module| Candidate::of(place, module)).collect();
    let mut ranked: BTreeMap<_, Vec<Candidate<'_>>> = BTreeMap::new();
    for candidate in candidates {
        ranked.entry(candidate.rank()).or_default().push(candidate);
    }
    let mut tried = 0;
    for candidates in ranked.values() {
        tried += candidates.len();
        if tried > MOST_CANDIDATES {
            return None;
        }
        let mut rules = candidates.iter().filter_map(|candidate| candidate.rule(places, modules));
        match (rules.next(), rules.next()) {
            (Some(rule), None) => return Some(rule),
            (Some(_), Some(_)) => return None,
            (None, _) => {}
        }
    }
    None
}

impl<'n> Candidate<'n> {
    /// How `path` would be `module`; `None` if their ends have too little in common. Blocks keep their numbers.
    fn of(path: &'n str, module: &'n str) -> Option<Self> {
        let (path, module): (Vec<&str>, Vec<&str>) = (path.split('.').collect(), module.split('.').collect());
        let same = path.iter().rev().zip(module.iter().rev()).take_while(|(a, b)| a == b).count();
        let (from, common) = path.split_at(path.len() - same);
        let (to, _) = module.split_at(module.len() - same);
        let is_number = |segment: &&str| segment.bytes().all(|byte| byte.is_ascii_digit());
        if same == 0 || from.iter().chain(to).any(is_number) {
            return None;
        }
        let candidate = Self { from: from.to_vec(), to: to.to_vec(), common: common.to_vec() };
        (same > 1 || candidate.strangers() == 0).then_some(candidate)
    }

    /// What is better comes first.
    fn rank(&self) -> (std::cmp::Reverse<usize>, usize) {
        (std::cmp::Reverse(self.common.len()), self.strangers())
    }

    /// The number of names that it takes away or adds and that do not only wrap a model.
    fn strangers(&self) -> usize {
        let mut added = self.to.clone();
        let mut strangers: Vec<&str> = Vec::new();
        for name in &self.from {
            match added.iter().position(|other| other == name) {
                Some(place) => drop(added.remove(place)),
                None => strangers.push(name),
            }
        }
        strangers.extend(added);
        strangers.iter().filter(|name| !WRAPPERS.contains(name)).count()
    }

    /// The shortest prefix that changes only paths that fit afterwards: with as much of the common end as it takes.
    fn rule(&self, places: &[(&str, String)], modules: &BTreeSet<&str>) -> Option<(String, String)> {
        let is_number = |segment: &str| segment.bytes().all(|byte| byte.is_ascii_digit());
        let kept = self.common.iter().take_while(|segment| !is_number(segment)).count();
        (0..=kept).find_map(|kept| {
            let with = |front: &[&str]| [front, &self.common[..kept]].concat().join(".");
            let (from, to) = (with(&self.from), with(&self.to));
            let is_right = |place: &String| match replaced(place, &from, &to) {
                Some(moved) => !modules.contains(place.as_str()) && modules.contains(moved.as_str()),
                None => true,
            };
            places.iter().all(|(_, place)| is_right(place)).then_some((from, to))
        })
    }
}

/// What is left of a path that begins with the segments `front`.
pub(super) fn without_front<'p>(path: &'p str, front: &str) -> Option<&'p str> {
    match path.strip_prefix(front)? {
        rest if front.is_empty() || rest.is_empty() => Some(rest),
        rest => rest.strip_prefix('.'),
    }
}

/// Two parts of a path as one; either may be empty.
pub(super) fn joined(front: &str, back: &str) -> String {
    if front.is_empty() || back.is_empty() { format!("{front}{back}") } else { format!("{front}.{back}") }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::fitting_prefixes;

    fn found(paths: &[&str], modules: &[&str]) -> Option<Vec<(String, String)>> {
        let set = |names: &[&str]| -> Vec<String> { names.iter().map(|name| (*name).to_owned()).collect() };
        let (paths, modules) = (set(paths), set(modules));
        let paths: BTreeSet<&str> = paths.iter().map(String::as_str).collect();
        fitting_prefixes(&paths, &modules.iter().map(String::as_str).collect())
    }

    fn one(paths: &[&str], modules: &[&str]) -> (String, String) {
        let rules = found(paths, modules).unwrap();
        assert_eq!(rules.len(), 1, "{rules:?}");
        rules.into_iter().next().unwrap()
    }

    fn pair(from: &str, to: &str) -> (String, String) {
        (from.to_owned(), to.to_owned())
    }

    const Q: &str = "layers.0.self_attn.q_proj";

    #[test]
    fn a_wrapper_may_be_on_either_side() {
        let text = format!("model.{Q}");
        for prefix in ["language_model", "base_model.model", "text_model"] {
            let wrapped = format!("{prefix}.model.{Q}");
            assert_eq!(one(&[&text], &[&wrapped]), pair("", prefix));
            assert_eq!(one(&[&wrapped], &[&text]), pair(prefix, ""));
        }
        assert_eq!(
            one(&["transformer.h.0.attn.c_attn"], &["h.0.attn.c_attn", "wte"]),
            pair("transformer", "")
        );
        assert_eq!(
            one(&[&text], &[&format!("model.language_model.{Q}")]),
            pair("model", "model.language_model")
        );
    }

    #[test]
    fn what_fits_as_it_is_stays() {
        let (head, q) = ("lm_head", format!("model.{Q}"));
        assert_eq!(found(&[head, &q], &[head, &q]), Some(Vec::new()));
        let wrapped = format!("language_model.model.{Q}");
        assert_eq!(one(&[head, &q], &[head, &wrapped]), pair("model", "language_model.model"));
    }

    #[test]
    fn parts_of_a_model_are_placed_one_by_one() {
        let vision = "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj";
        let text = [format!("language_model.model.{Q}"), format!("model.language_model.{Q}")];
        let old = [text[0].as_str(), vision, "language_model.lm_head"];
        let wrapped = format!("model.{vision}");
        let new = [text[1].as_str(), wrapped.as_str(), "lm_head"];
        let rules = found(&old, &new).unwrap();
        let expected = [
            pair("vision_tower", "model.vision_tower"),
            pair("language_model.model", "model.language_model"),
            pair("language_model", ""),
        ];
        assert_eq!(rules, expected);
        assert!(found(&new, &old).is_some());
    }

    #[test]
    fn the_text_model_is_meant_where_towers_have_the_same_names() {
        let towers = [format!("model.language_model.{Q}"), format!("model.vision_tower.encoder.{Q}")];
        let towers = towers.each_ref().map(String::as_str);
        assert_eq!(one(&[&format!("model.{Q}")], &towers), pair("model", "model.language_model"));
        let equal = [format!("encoder.{Q}"), format!("decoder.{Q}")];
        assert_eq!(found(&[Q], &equal.each_ref().map(String::as_str)), None);
    }

    #[test]
    fn no_block_stands_for_another_and_no_name_for_a_stranger() {
        assert_eq!(found(&["layers.0.q"], &["model.layers.1.q"]), None);
        assert_eq!(found(&["decoder.q"], &["encoder.q"]), None);
        assert_eq!(found(&["decoder.q"], &["encoder.k"]), None);
        assert_eq!(found(&["a.layers.0.q", "a.layers.0.gone"], &["b.layers.0.q"]), None);
        assert_eq!(found(&[], &["a"]), Some(Vec::new()));
    }
}
