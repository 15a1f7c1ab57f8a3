//! Resolves target names against a schema, in `const` code.
//!
//! A target is a suffix of a path, taken by whole segments: `v_proj` and `attn.v_proj` both name `layers.*.attn.v_proj`.
//! A `*` in a target stands for any one segment; an index stands for itself.

use super::nearest::Nearest;
use super::text::{Text, equal};
use super::{Family, LayerKind, Node, Schema};

/// What a target name stands for in a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resolution {
    /// How many layers of the schema can carry adapters under that name.
    pub adaptable: usize,
    /// The kind of a layer under that name that is not wrapped in `Adapted`.
    pub plain: Option<LayerKind>,
    /// The type of a module under that name that is not a layer.
    pub module: Option<&'static str>,
}

/// The segments that lead to a place in the schema, innermost first.
#[derive(Clone, Copy)]
struct Trail<'a> {
    parent: Option<&'a Trail<'a>>,
    name: &'a [u8],
    wildcard: Wildcard,
}

/// Which names a `*` of the schema stands for.
#[derive(Clone, Copy)]
enum Wildcard {
    None,
    Index,
    Key,
}

const ROOT: Trail<'static> = Trail { parent: None, name: b"", wildcard: Wildcard::None };

impl Schema {
    /// What `target` names in this model.
    pub const fn resolve(&self, target: &str) -> Resolution {
        let none = Resolution { adaptable: 0, plain: None, module: None };
        resolve(self, &ROOT, target.as_bytes(), none)
    }
}

/// Fails to compile unless `target` names layers of the model that can carry adapters.
///
/// # Panics
/// In a `const`, which makes it a compile error: when nothing has that name (the nearest names are offered), when the
/// name belongs to a module, or when it belongs to a layer that is not wrapped in `Adapted`.
#[track_caller]
pub const fn check_target(schema: &Schema, target: &str) {
    let resolution = if equal_ignoring_case(target.as_bytes(), b"all-linear") {
        Resolution { adaptable: count_adaptable_linear(schema), plain: None, module: None }
    } else {
        schema.resolve(target)
    };
    if let Some(kind) = resolution.plain {
        let mut message = Text::<1024>::new();
        message.push_quoted(target.as_bytes());
        message.push(b" in ");
        message.push_quoted(schema.name.as_bytes());
        message.push(b" is a plain ");
        message.push_quoted(kind.name.as_bytes());
        message.push(b" and cannot carry an adapter");
        // No method adapts other layers, whatever the field is declared as.
        if !matches!(kind.family, Family::Other) {
            message.push(b"; declare the field as `Adapted<");
            message.push(kind.name.as_bytes());
            message.push(b">`");
        }
        panic!("{}", message.as_str());
    }
    if resolution.adaptable == 0 {
        let mut message = Text::<1024>::new();
        match resolution.module {
            Some(module) => {
                message.push_quoted(target.as_bytes());
                message.push(b" in ");
                message.push_quoted(schema.name.as_bytes());
                message.push(b" is a module (");
                message.push_quoted(module.as_bytes());
                message.push(b"), not a layer");
            }
            None => {
                message.push(b"no module named ");
                message.push_quoted(target.as_bytes());
                message.push(b" in ");
                message.push_quoted(schema.name.as_bytes());
            }
        }
        let mut nearest = Nearest::new();
        collect_nearest(schema, &ROOT, target.as_bytes(), &mut nearest);
        nearest.describe(target.as_bytes(), &mut message);
        panic!("{}", message.as_str());
    }
}

const fn resolve(schema: &Schema, trail: &Trail<'_>, target: &[u8], mut found: Resolution) -> Resolution {
    match schema.node {
        Node::Module(fields) => {
            if matches_suffix(trail, target) {
                found.module = Some(schema.name);
            }
            let mut i = 0;
            while i < fields.len() {
                let child =
                    Trail { parent: Some(trail), name: fields[i].name.as_bytes(), wildcard: Wildcard::None };
                found = resolve(fields[i].schema, &child, target, found);
                i += 1;
            }
        }
        Node::Choice(variants) => {
            let mut i = 0;
            while i < variants.len() {
                found = resolve(variants[i], trail, target, found);
                i += 1;
            }
        }
        Node::List(item) => {
            if matches_suffix(trail, target) {
                found.module = Some(schema.name);
            }
            let child = Trail { parent: Some(trail), name: b"*", wildcard: Wildcard::Index };
            found = resolve(item, &child, target, found);
        }
        Node::Map(item) => {
            if matches_suffix(trail, target) {
                found.module = Some(schema.name);
            }
            let child = Trail { parent: Some(trail), name: b"*", wildcard: Wildcard::Key };
            found = resolve(item, &child, target, found);
        }
        // A bare weight is a parameter, which target names do not mean.
        Node::Layer { family: Family::Parameter, .. } => {}
        Node::Layer { family, adaptable } => {
            if matches_suffix(trail, target) {
                if adaptable {
                    found.adaptable += 1;
                } else {
                    found.plain = Some(LayerKind::new(schema.name, family));
                }
            }
        }
        // Its own error says enough.
        Node::Unknown => found.adaptable += 1,
        Node::Parameter | Node::Settings => {}
    }
    found
}

const fn count_adaptable_linear(schema: &Schema) -> usize {
    match schema.node {
        Node::Module(fields) => {
            let mut count = 0;
            let mut i = 0;
            while i < fields.len() {
                count += count_adaptable_linear(fields[i].schema);
                i += 1;
            }
            count
        }
        Node::Choice(variants) => {
            let mut count = 0;
            let mut i = 0;
            while i < variants.len() {
                count += count_adaptable_linear(variants[i]);
                i += 1;
            }
            count
        }
        Node::List(item) | Node::Map(item) => count_adaptable_linear(item),
        Node::Layer { family: Family::Linear, adaptable: true } => 1,
        Node::Unknown => 1,
        Node::Layer { .. } | Node::Parameter | Node::Settings => 0,
    }
}

const fn collect_nearest(schema: &Schema, trail: &Trail<'_>, target: &[u8], nearest: &mut Nearest) {
    match schema.node {
        Node::Module(fields) => {
            let mut i = 0;
            while i < fields.len() {
                let child =
                    Trail { parent: Some(trail), name: fields[i].name.as_bytes(), wildcard: Wildcard::None };
                collect_nearest(fields[i].schema, &child, target, nearest);
                i += 1;
            }
        }
        Node::Choice(variants) => {
            let mut i = 0;
            while i < variants.len() {
                collect_nearest(variants[i], trail, target, nearest);
                i += 1;
            }
        }
        Node::List(item) | Node::Map(item) => {
            let child = Trail { parent: Some(trail), name: b"*", wildcard: Wildcard::None };
            collect_nearest(item, &child, target, nearest);
        }
        Node::Layer { family: Family::Parameter, .. } => {}
        Node::Layer { adaptable: true, .. } => {
            let mut name = Text::new();
            push_suffix(trail, count_segments(target), &mut name);
            nearest.offer(target, name);
        }
        Node::Layer { .. } | Node::Parameter | Node::Settings | Node::Unknown => {}
    }
}

/// Whether `target` is the end of the trail, by whole segments of which at least one is a name of the schema: otherwise any
/// name would fit a map, whose keys are not known.
const fn matches_suffix(trail: &Trail<'_>, target: &[u8]) -> bool {
    let mut trail = trail;
    let mut end = trail.name.len();
    let mut target_end = target.len();
    let mut anchored = false;
    loop {
        // Empty names (the root, flattened fields) are no segments.
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

const fn count_segments(name: &[u8]) -> usize {
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
const fn push_suffix(trail: &Trail<'_>, count: usize, text: &mut Text<96>) {
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

const fn equal_ignoring_case(a: &[u8], b: &[u8]) -> bool {
    a.eq_ignore_ascii_case(b)
}

#[cfg(test)]
mod tests {
    use super::super::{Family, Field, LayerKind, Schema};
    use super::Resolution;

    const LINEAR: Schema = Schema::adaptable(LayerKind::new("Linear", Family::Linear));
    const PLAIN: Schema = Schema::plain(LayerKind::new("Linear", Family::Linear));
    const ATTENTION: Schema = Schema::module(
        "Attention",
        &[Field::new("q_proj", &LINEAR), Field::new("self.query", &LINEAR), Field::new("gate", &PLAIN)],
    );
    const MODEL: Schema = Schema::module(
        "Model",
        &[
            Field::new("layers", &Schema::list(&Schema::module("Block", &[Field::new("attn", &ATTENTION)]))),
            Field::new("", &Schema::module("Head", &[Field::new("lm_head", &LINEAR)])),
            Field::new("experts", &Schema::map(&LINEAR)),
        ],
    );

    /// More layers than a message names.
    const WIDE: Schema = Schema::module(
        "Wide",
        &[
            Field::new("a_proj", &LINEAR),
            Field::new("b_proj", &LINEAR),
            Field::new("c_proj", &LINEAR),
            Field::new("d_proj", &LINEAR),
            Field::new("e_proj", &LINEAR),
            Field::new("f_proj", &LINEAR),
        ],
    );

    fn adaptable(target: &str) -> usize {
        MODEL.resolve(target).adaptable
    }

    #[test]
    fn targets_match_whole_segments_from_the_end() {
        assert_eq!(adaptable("q_proj"), 1);
        assert_eq!(adaptable("attn.q_proj"), 1);
        assert_eq!(adaptable("layers.*.attn.q_proj"), 1);
        assert_eq!(adaptable("layers.0.attn.q_proj"), 1);
        assert_eq!(adaptable("proj"), 0);
        assert_eq!(adaptable("tn.q_proj"), 0);
        assert_eq!(adaptable("layers.first.attn.q_proj"), 0);
        assert_eq!(adaptable("model.layers.0.attn.q_proj"), 0);
    }

    #[test]
    fn dotted_names_flattened_fields_and_map_keys_are_ordinary_segments() {
        assert_eq!(adaptable("query"), 1);
        assert_eq!(adaptable("self.query"), 1);
        assert_eq!(adaptable("attn.self.query"), 1);
        assert_eq!(adaptable("lm_head"), 1);
        assert_eq!(adaptable("experts.any"), 1);
    }

    #[test]
    fn plain_layers_and_modules_are_told_apart() {
        let plain = Some(LayerKind::new("Linear", Family::Linear));
        assert_eq!(MODEL.resolve("gate"), Resolution { adaptable: 0, plain, module: None });
        assert_eq!(MODEL.resolve("attn").module, Some("Attention"));
    }

    #[test]
    #[should_panic(expected = "no module named `q_prj` in `Model`; did you mean `q_proj`?")]
    fn an_unknown_name_is_answered_with_the_nearest_one() {
        super::check_target(&MODEL, "q_prj");
    }

    #[test]
    #[should_panic(expected = "no module named `attn.qproj` in `Model`; did you mean `attn.q_proj`?")]
    fn a_dotted_name_is_answered_with_a_name_of_the_same_depth() {
        super::check_target(&MODEL, "attn.qproj");
    }

    #[test]
    #[should_panic(expected = "did you mean `a_proj`, `b_proj`, `c_proj`, `d_proj` or `e_proj`?")]
    fn of_many_near_names_five_are_offered() {
        super::check_target(&WIDE, "x_proj");
    }

    #[test]
    #[should_panic(expected = "no module named `convolution` in `Wide`; some of its layers are `")]
    fn of_many_names_that_are_not_near_five_are_listed_and_said_to_be_some() {
        super::check_target(&WIDE, "convolution");
    }

    #[test]
    #[should_panic(expected = "declare the field as `Adapted<Linear>`")]
    fn a_plain_layer_is_answered_with_how_to_wrap_it() {
        super::check_target(&MODEL, "gate");
    }
}
