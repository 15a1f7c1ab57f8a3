//! What the compiler knows about a model: the names of its modules and the kinds of its layers, as `const` data.
//!
//! `#[derive(Injectable)]` generates one [`Schema`] for each type. Children are held by reference, not behind function
//! pointers, so that `const` code can walk the whole tree and `cargo check` reports a wrong target name. The price is
//! that a type which contains itself cannot have a schema.

mod nearest;
mod resolve;
mod text;
mod trail;

use std::fmt;

use crate::path::ModulePath;

pub(crate) use nearest::nearest_names;
pub use resolve::check_target;

/// The shape of one module type: its name and what it holds.
#[derive(Clone, Copy, Debug)]
pub struct Schema {
    name: &'static str,
    node: Node,
    /// The ranks that `#[peft(rank = …)]` declares, by the name of the field.
    ranks: &'static [(&'static str, usize)],
}

/// What a module holds.
#[derive(Clone, Copy, Debug)]
pub enum Node {
    /// Named children.
    Module(&'static [Field]),
    /// One of several shapes, all at the same path (an enum).
    Choice(&'static [&'static Schema]),
    /// Items under the names `0`, `1`, `2`, … (a `Vec`, an array).
    List(&'static Schema),
    /// Items under names that are known only at run time (a string-keyed map).
    Map(&'static Schema),
    /// A layer with parameters. Only an `Adapted` layer can carry adapters.
    Layer {
        /// What kind of computation the layer does.
        family: Family,
        /// Whether the layer is wrapped in `Adapted`.
        adaptable: bool,
    },
    /// A bare parameter tensor.
    Parameter,
    /// Plain settings: nothing to visit.
    Settings,
    /// A type whose derive failed: any name may be right.
    Unknown,
}

/// A named child of a module: its name in paths, and what it holds. The name may contain dots; an empty one leaves the
/// path as it is.
#[derive(Clone, Copy, Debug)]
pub struct Field(pub &'static str, pub &'static Schema);

/// The computation a layer does, as far as choosing adapters needs to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Family {
    /// A matrix product, whatever the layout of its weight; what `all-linear` selects.
    Linear,
    /// A table look-up.
    Embedding,
    /// A convolution.
    Convolution,
    /// A bare weight, which configs name as a parameter, not as a module.
    Parameter,
    /// A layer that no adapter method changes, but that `modules_to_save` can train in full.
    Other,
}

/// The name of a layer type together with its family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerKind {
    /// The type's name, as messages and the module tree print it.
    pub name: &'static str,
    /// The computation the layer does.
    pub family: Family,
}

impl LayerKind {
    /// A layer kind with the given name.
    pub const fn new(name: &'static str, family: Family) -> Self {
        Self { name, family }
    }
}

impl Schema {
    const fn new(name: &'static str, node: Node) -> Self {
        Self { name, node, ranks: &[] }
    }

    /// A module with named children.
    pub const fn module(name: &'static str, fields: &'static [Field]) -> Self {
        Self::new(name, Node::Module(fields))
    }

    /// The same module, with the ranks that some of its fields declare, by field name.
    #[must_use]
    pub const fn with_ranks(mut self, ranks: &'static [(&'static str, usize)]) -> Self {
        self.ranks = ranks;
        self
    }

    /// An enum: one of `variants`.
    pub const fn choice(name: &'static str, variants: &'static [&'static Schema]) -> Self {
        Self::new(name, Node::Choice(variants))
    }

    /// Numbered items.
    pub const fn list(item: &'static Schema) -> Self {
        Self::new("ModuleList", Node::List(item))
    }

    /// Items with names of their own.
    pub const fn map(item: &'static Schema) -> Self {
        Self::new("ModuleDict", Node::Map(item))
    }

    /// A layer that can carry adapters.
    pub const fn adaptable(kind: LayerKind) -> Self {
        Self::new(kind.name, Node::Layer { family: kind.family, adaptable: true })
    }

    /// A layer that cannot carry adapters.
    pub const fn plain(kind: LayerKind) -> Self {
        Self::new(kind.name, Node::Layer { family: kind.family, adaptable: false })
    }

    /// A bare parameter.
    pub const fn parameter() -> Self {
        Self::new("Tensor", Node::Parameter)
    }

    /// Plain settings of type `name`.
    pub const fn settings(name: &'static str) -> Self {
        Self::new(name, Node::Settings)
    }

    /// A type whose derive failed.
    #[doc(hidden)]
    pub const fn unknown(name: &'static str) -> Self {
        Self::new(name, Node::Unknown)
    }

    /// The name of the type.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// What the type holds.
    pub const fn node(&self) -> &Node {
        &self.node
    }

    /// The paths of all layers and bare parameters, in field order, with `*` for indices and map keys.
    ///
    /// ```
    /// use peft_runtime::schema::{Family, Field, LayerKind, Schema};
    ///
    /// const LINEAR: Schema = Schema::adaptable(LayerKind::new("Linear", Family::Linear));
    /// const BLOCK: Schema = Schema::module("Block", &[Field("up_proj", &LINEAR)]);
    /// const MODEL: Schema = Schema::module("Model", &[Field("layers", &Schema::list(&BLOCK))]);
    /// assert_eq!(MODEL.leaf_paths(), ["layers.*.up_proj"]);
    /// ```
    pub fn leaf_paths(&self) -> Vec<String> {
        let mut paths = Vec::new();
        self.walk(&ModulePath::root(), &mut |path, _, schema| {
            if matches!(schema.node, Node::Layer { .. } | Node::Parameter) {
                paths.push(path.as_str().to_owned());
            }
        });
        paths
    }

    /// The paths (indices as `*`) and ranks of all fields that declare a rank.
    pub(crate) fn declared_ranks(&self) -> Vec<(String, usize)> {
        let mut ranks = Vec::new();
        self.walk(&ModulePath::root(), &mut |path, rank, _| {
            ranks.extend(rank.map(|rank| (path.as_str().to_owned(), rank)));
        });
        ranks
    }

    fn walk(&self, path: &ModulePath, visit: &mut dyn FnMut(&ModulePath, Option<usize>, &Schema)) {
        match self.node {
            Node::Module(fields) => {
                for Field(name, schema) in fields {
                    let child = path.join(name);
                    let rank = self.ranks.iter().find(|(field, _)| field == name).map(|(_, rank)| *rank);
                    visit(&child, rank, schema);
                    schema.walk(&child, visit);
                }
            }
            Node::Choice(variants) => {
                for variant in variants {
                    visit(path, None, variant);
                    variant.walk(path, visit);
                }
            }
            Node::List(item) | Node::Map(item) => {
                let child = path.join("*");
                visit(&child, None, item);
                item.walk(&child, visit);
            }
            Node::Layer { .. } | Node::Parameter | Node::Settings | Node::Unknown => {}
        }
    }
}

impl fmt::Display for LayerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}
