//! `module_tree()`: what `print(model)` shows in Python.

use super::repr::Repr;
use crate::adapter::{Component, Holds};
use crate::layer::{AdapterStack, Layer};
use crate::module::{Injectable, Item, tree};
use crate::path::ModulePath;
use crate::schema::{Family, Node};

/// The model's modules, with the containers of each adapter, as PyTorch and PEFT print them.
pub(crate) fn module_tree<M: Injectable + ?Sized>(model: &M) -> String {
    let mut open: Vec<(ModulePath, Repr)> = vec![(ModulePath::root(), Repr::module(M::SCHEMA.name()))];
    for item in tree(model) {
        match item {
            Item::Open { path, schema } => {
                let repr = match schema.node() {
                    Node::List(_) => Repr::list(schema.name()),
                    _ => Repr::module(schema.name()),
                };
                open.push((path, repr));
            }
            Item::Close => {
                if let Some((path, repr)) = open.pop() {
                    push(&mut open, &path, repr);
                }
            }
            Item::Leaf { path, layer } => {
                if let Some(text) = layer.describe() {
                    push(&mut open, &path, layer_repr(layer, &text));
                }
            }
        }
    }
    let model = open.pop().map(|(_, repr)| repr);
    model
        .map(|repr| if repr.children.is_empty() { format!("{}()", repr.head) } else { repr.text() })
        .unwrap_or_default()
}

/// Adds a module to the innermost open one, under its name in that module.
fn push(open: &mut [(ModulePath, Repr)], path: &ModulePath, repr: Repr) {
    if let Some((parent, module)) = open.last_mut() {
        let name =
            path.as_str().strip_prefix(parent.as_str()).unwrap_or(path.as_str()).trim_start_matches('.');
        module.push_at(name, repr);
    }
}

/// A layer that PyTorch prints as `text`, with its adapters.
fn layer_repr(layer: &dyn Layer, text: &str) -> Repr {
    let Some(stack) = layer.stack().filter(|stack| !stack.slots().is_empty()) else {
        return Repr::leaf(text);
    };
    let base = copies_repr(stack, text);
    let adapters: Vec<_> =
        stack.slots().iter().filter_map(|slot| Some((&slot.name, slot.adapter()?))).collect();
    if adapters.is_empty() {
        return base;
    }
    let mut repr = Repr::module(type_name(layer));
    repr.push("base_layer", base);
    let mut containers: Vec<Container<'_>> = Vec::new();
    for (name, adapter) in &adapters {
        for Component { name: container, holds, entry } in adapter.components() {
            if !containers.iter().any(|known| known.name == container) {
                containers.push(Container { name: container, holds, entries: Vec::new() });
            }
            let known = containers.iter_mut().find(|known| known.name == container);
            if let (Some(known), Some(entry)) = (known, entry) {
                known.entries.push((name.as_str(), entry));
            }
        }
    }
    for container in containers {
        repr.push(container.name, container.repr());
    }
    let Some((wrapper, name)) = adapters.iter().find_map(|(_, adapter)| adapter.tree_wrapper()) else {
        return repr;
    };
    let mut wrapper = Repr::module(wrapper);
    wrapper.push("original_module", Repr::leaf("None"));
    wrapper.push(name, repr);
    wrapper
}

/// The type of a layer as PEFT calls it, by its first adapter.
pub(super) fn type_name(layer: &dyn Layer) -> String {
    // PEFT wraps both layouts of a linear weight in one class.
    let kind = if layer.kind().family == Family::Linear { "Linear" } else { layer.kind().name };
    let slots = layer.stack().map(AdapterStack::slots).unwrap_or_default();
    match slots.iter().find_map(|slot| slot.adapter()) {
        Some(first) => match (first.tree_type(), first.tree_prefix()) {
            (Some(whole), _) => whole.to_owned(),
            (None, Some(prefix)) => format!("{prefix}.{kind}"),
            (None, None) => kind.to_owned(),
        },
        None if slots.is_empty() => kind.to_owned(),
        None => COPIES.to_owned(),
    }
}

/// PEFT's name for a layer of which adapters train full copies.
const COPIES: &str = "ModulesToSaveWrapper";

/// A PEFT container, such as `lora_A`, with an entry for each adapter.
struct Container<'a> {
    name: &'static str,
    holds: Holds,
    entries: Vec<(&'a str, String)>,
}

impl Container<'_> {
    fn repr(&self) -> Repr {
        let dict = match self.holds {
            Holds::Modules => None,
            Holds::Parameters => Some("ParameterDict"),
            Holds::Buffers => Some("BufferDict"),
        };
        let Some(dict) = dict else {
            let mut repr = Repr::module("ModuleDict");
            for (name, entry) in &self.entries {
                repr.push(*name, Repr::leaf(entry));
            }
            return if self.entries.is_empty() { Repr::leaf("ModuleDict()") } else { repr };
        };
        let lines: Vec<String> =
            self.entries.iter().map(|(name, entry)| format!("  ({name}): {entry}")).collect();
        Repr::leaf(match lines.as_slice() {
            [] | [_] => format!("{dict}({})", lines.concat()),
            many => format!("{dict}(\n  {}\n)", many.join("\n  ")),
        })
    }
}

/// The layer together with the full copies that adapters have of it, if any.
fn copies_repr(stack: &AdapterStack, text: &str) -> Repr {
    let owners: Vec<&String> =
        stack.slots().iter().filter(|slot| slot.copy().is_some()).map(|slot| &slot.name).collect();
    if owners.is_empty() {
        return Repr::leaf(text);
    }
    let mut repr = Repr::module(COPIES);
    let mut copies = Repr::module("ModuleDict");
    for name in owners {
        copies.push(name, Repr::leaf(text));
    }
    repr.push("original_module", Repr::leaf(text));
    repr.push("modules_to_save", copies);
    repr
}
