//! Resolves target names against a schema, in `const` code.
//!
//! A target is a suffix of a path, taken by whole segments: `v_proj` and `attn.v_proj` both name `layers.*.attn.v_proj`.
//! A `*` in a target stands for any one segment; an index stands for itself.

use super::nearest::Nearest;
use super::text::Text;
use super::trail::{Trail, Wildcard, count_segments, matches_suffix, push_suffix};
use super::{Family, LayerKind, Node, Schema};

/// What a target name stands for in a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Resolution {
    /// How many layers of the schema can carry adapters under that name.
    adaptable: usize,
    /// The kind of a layer under that name that is not wrapped in `Adapted`.
    plain: Option<LayerKind>,
    /// The type of a module under that name that is not a layer.
    module: Option<&'static str>,
}

impl Schema {
    /// What `target` names in this model.
    const fn resolve(&self, target: &str) -> Resolution {
        let none = Resolution { adaptable: 0, plain: None, module: None };
        resolve(self, &Trail::ROOT, target.as_bytes(), none)
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
        collect_nearest(schema, &Trail::ROOT, target.as_bytes(), &mut nearest);
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
                let child = trail.child(fields[i].0.as_bytes(), Wildcard::None);
                found = resolve(fields[i].1, &child, target, found);
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
            let child = trail.child(b"*", Wildcard::Index);
            found = resolve(item, &child, target, found);
        }
        Node::Map(item) => {
            if matches_suffix(trail, target) {
                found.module = Some(schema.name);
            }
            let child = trail.child(b"*", Wildcard::Key);
            found = resolve(item, &child, target, found);
        }
        // A bare weight is a parameter; target names do not refer to parameters.
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
        // The failed derive has already reported an error.
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
                count += count_adaptable_linear(fields[i].1);
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
                let child = trail.child(fields[i].0.as_bytes(), Wildcard::None);
                collect_nearest(fields[i].1, &child, target, nearest);
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
            let child = trail.child(b"*", Wildcard::None);
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
        &[Field("q_proj", &LINEAR), Field("self.query", &LINEAR), Field("gate", &PLAIN)],
    );
    const MODEL: Schema = Schema::module(
        "Model",
        &[
            Field("layers", &Schema::list(&Schema::module("Block", &[Field("attn", &ATTENTION)]))),
            Field("", &Schema::module("Head", &[Field("lm_head", &LINEAR)])),
            Field("experts", &Schema::map(&LINEAR)),
        ],
    );

    /// More layers than a message names.
    const WIDE: Schema = Schema::module(
        "Wide",
        &[
            Field("a_proj", &LINEAR),
            Field("b_proj", &LINEAR),
            Field("c_proj", &LINEAR),
            Field("d_proj", &LINEAR),
            Field("e_proj", &LINEAR),
            Field("f_proj", &LINEAR),
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
