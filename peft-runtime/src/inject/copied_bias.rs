//! Where PEFT's files have the biases of a layer that is copied, if biases train.

use crate::adapter::Selection;
use crate::path::ModulePath;

/// The module that PEFT has in the place of the one that it copies.
const ORIGINAL: &str = "original_module";
/// The container of the copies.
const COPIES: &str = "modules_to_save";

/// The bias of a layer that is copied by itself or as a part of a module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CopiedBias {
    module: ModulePath,
    /// The layer's path in the module; empty if it is the module.
    layer: ModulePath,
}

impl CopiedBias {
    /// That of the layer at `path`, which a config with this selection copies.
    pub(crate) fn of(selection: &Selection<'_>, path: &ModulePath) -> Self {
        let module = selection.copied_module(path).unwrap_or_else(|| path.clone());
        let layer = path.as_str().strip_prefix(module.as_str()).unwrap_or_default();
        Self { layer: ModulePath::from(layer.trim_start_matches('.')), module }
    }

    /// The key of the base layer's own bias.
    pub(crate) fn own(&self) -> String {
        self.module.join(ORIGINAL).join(&self.layer).parameter("bias")
    }

    /// The key under which PEFT stores the bias of the copy once more; in a module it has the adapter's name.
    pub(crate) fn second(&self, adapter: &str) -> String {
        let name = if self.layer.is_root() { "" } else { adapter };
        self.module.join(COPIES).join(name).join(&self.layer).parameter("bias")
    }

    /// Whether `key` is that of the copy once more, whatever the adapter was called.
    pub(crate) fn is_second(&self, key: &str) -> bool {
        without_copy(key).is_some_and(|key| key == self.module.join(&self.layer).parameter("bias"))
    }
}

/// The key that the base model has for what `key` names inside of a copied module or of the module that is copied; `None` if
/// it names nothing there.
pub(crate) fn base_key(key: &str) -> Option<String> {
    let original = key.split_once(&format!(".{ORIGINAL}.")).map(|(module, rest)| format!("{module}.{rest}"));
    original.or_else(|| without_copy(key))
}

/// The key without the container of copies, and without the adapter's name where it comes before a layer's path.
fn without_copy(key: &str) -> Option<String> {
    let (module, rest) = key.split_once(&format!(".{COPIES}."))?;
    let layer = rest.split_once('.').map_or(rest, |(_, layer)| layer);
    Some(format!("{module}.{layer}"))
}

#[cfg(test)]
mod tests {
    use super::{CopiedBias, base_key};
    use crate::adapter::Selection;
    use crate::path::ModulePath;

    #[test]
    fn the_keys_of_a_copied_layer_and_of_one_in_a_copied_module() {
        let names = ["mlp".to_owned(), "head".to_owned()];
        let selection = Selection { modules_to_save: &names, ..Selection::default() };
        let of = |path: &str| CopiedBias::of(&selection, &ModulePath::from(path));
        let head = of("head");
        assert_eq!(
            [head.own(), head.second("a")],
            ["head.original_module.bias", "head.modules_to_save.bias"]
        );
        let up = of("h.0.mlp.up");
        let keys = ["h.0.mlp.original_module.up.bias", "h.0.mlp.modules_to_save.a.up.bias"];
        assert_eq!([up.own(), up.second("a")], keys);
        assert!(up.is_second("h.0.mlp.modules_to_save.other.up.bias") && !up.is_second(keys[0]));
        assert!(head.is_second("head.modules_to_save.bias"));
        for key in keys {
            assert_eq!(base_key(key).as_deref(), Some("h.0.mlp.up.bias"));
        }
        assert_eq!(base_key("head.modules_to_save.bias").as_deref(), Some("head.bias"));
        assert_eq!(base_key("head.bias"), None);
    }
}
