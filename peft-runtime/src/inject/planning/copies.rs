//! Which modules train in full, as copies.

use super::planner::{Planner, is_parameter};
use crate::error::Fault;
use crate::inject::plan::{Origin, PlannedContent};
use crate::layer::Layer;
use crate::module::Item;
use crate::path::ModulePath;
use crate::schema::{Node, nearest_names};

impl Planner<'_> {
    /// Finds the layers below the modules that train in full; entries match the ends of paths as plain text.
    pub(super) fn choose_copies(&mut self, modules_to_save: &[String]) {
        for entry in modules_to_save {
            let (mut matched, mut trains) = (false, false);
            let items = self.items;
            for item in items {
                let Some(path) =
                    item.path().filter(|path| !path.is_root() && path.as_str().ends_with(entry.as_str()))
                else {
                    continue;
                };
                if matches!(item, Item::Leaf { layer, .. } if is_parameter(*layer)) {
                    continue;
                }
                matched = true;
                if let Item::Open { schema, .. } = item
                    && matches!(schema.node(), Node::List(_) | Node::Map(_))
                {
                    let reason = "a list of modules; name its items instead".to_owned();
                    self.faults.push(Fault::ModuleToSave { path: path.clone(), reason });
                    trains = true;
                    continue;
                }
                trains |= self.copy_below(path);
            }
            if matched && !trains && self.origin == Origin::Caller {
                let reason = "which has nothing to train".to_owned();
                self.faults.push(Fault::ModuleToSave { path: entry.as_str().into(), reason });
            }
            if !matched && self.origin == Origin::Caller {
                let nearest = nearest_names(entry, items.iter().filter_map(Item::path).map(ModulePath::last));
                let reason = match nearest.first() {
                    Some(name) => format!("which matches no module; did you mean `{name}`?"),
                    None => "which matches no module".to_owned(),
                };
                self.faults.push(Fault::ModuleToSave { path: entry.as_str().into(), reason });
            }
        }
    }

    /// Plans copies of every layer at or below `root`; returns whether any of them has parameters.
    fn copy_below(&mut self, root: &ModulePath) -> bool {
        let items = self.items;
        let mut any = false;
        let below = |path: &ModulePath| {
            path == root
                || path.as_str().strip_prefix(root.as_str()).is_some_and(|rest| rest.starts_with('.'))
        };
        for item in items {
            match item {
                Item::Leaf { path, layer } if layer.can_carry_adapters() && below(path) => {
                    any = true;
                    if self.is_adapted(path) {
                        let reason = "which is also a target".to_owned();
                        self.faults.push(Fault::ModuleToSave { path: path.clone(), reason });
                    }
                    if layer.quantized_weight().is_some() {
                        let reason =
                            "whose quantized weight cannot be trained; make the layer dense first".to_owned();
                        self.faults.push(Fault::ModuleToSave { path: path.clone(), reason });
                    }
                    self.contents.insert(path.clone(), PlannedContent::Copy);
                }
                // A layer without parameters is its own copy.
                Item::Leaf { layer, .. } if has_no_parameters(*layer) => {}
                Item::Leaf { path, layer } if below(path) => {
                    any = true;
                    let kind = layer.kind().name;
                    let reason = match layer.can_be_adapted() {
                        true => format!(
                            "a plain `{kind}` that has no place for a copy; declare it as `Adapted<{kind}>`"
                        ),
                        false => format!("a plain `{kind}`, which cannot be trained as a copy"),
                    };
                    self.note(Fault::ModuleToSave { path: path.clone(), reason });
                }
                Item::Open { .. } | Item::Close | Item::Leaf { .. } => {}
            }
        }
        any
    }
}

fn has_no_parameters(layer: &dyn Layer) -> bool {
    layer.parameters().is_empty() && layer.quantized_weight().is_none()
}
