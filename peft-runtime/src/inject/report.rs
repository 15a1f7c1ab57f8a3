//! What an injection did.

use std::fmt;

use candle_core::Var;

use crate::error::shortened;
use crate::layer::Content;
use crate::path::ModulePath;

/// What an injection did to the model: where the adapter is attached, and where it acts.
///
/// [`layer_status`](crate::PeftModel::layer_status) says the same of all adapters, at any later time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct InjectionReport {
    /// The adapter's name.
    pub adapter: String,
    /// The layers that carry it, in model order.
    pub adapted: Vec<ModulePath>,
    /// The layers of which it trains a full copy.
    pub copied: Vec<ModulePath>,
    /// The layers of the base model whose bias trains along with it.
    pub biases: Vec<ModulePath>,
    /// The layers whose output it changes now, in model order: the adapter is active, adapters are enabled, and no other
    /// adapter that is merged hides it.
    pub acting: Vec<ModulePath>,
    /// Target names of a loaded config that match nothing; in a config of your own they are errors.
    pub unmatched_targets: Vec<String>,
    /// Patterns of a loaded config that match nothing; in a config of your own they are errors.
    pub unmatched_patterns: Vec<UnmatchedPattern>,
    /// Whether the adapter is active: a model's first adapter is; later ones wait for `set_adapter`.
    pub active: bool,
    /// Whether adapters act at all, which `disable_adapters` changes.
    pub enabled: bool,
    /// The number of elements in the adapter's tensors.
    pub elements: usize,
}

/// A pattern or name of a config that matches nothing: of `rank_pattern` and `alpha_pattern` no adapted layer, of
/// `exclude_modules` no module. It has no effect.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct UnmatchedPattern {
    /// The field under its name in `adapter_config.json`.
    pub field: &'static str,
    /// The pattern as written.
    pub pattern: String,
}

impl fmt::Display for UnmatchedPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` holds `{}`, which matches nothing", self.field, shortened(&self.pattern))
    }
}

impl InjectionReport {
    /// Where the adapter is attached, whether it acts there or not: the layers that carry it, and those of which it trains a
    /// full copy.
    pub fn attached(&self) -> impl Iterator<Item = &ModulePath> {
        self.adapted.iter().chain(&self.copied)
    }

    /// Notes what the layer at `path` got, which may be what another one has.
    pub(super) fn add_content(&mut self, path: &ModulePath, content: &Content, is_shared: bool) {
        match content {
            Content::Adapter(adapter) => {
                self.adapted.push(path.clone());
                if !is_shared {
                    let tensors = adapter.tensors();
                    self.elements += tensors.iter().map(|tensor| tensor.var.elem_count()).sum::<usize>();
                }
            }
            Content::Copy(parameters) => {
                self.copied.push(path.clone());
                if !is_shared {
                    self.elements += parameters.iter().map(|copy| copy.var.elem_count()).sum::<usize>();
                }
            }
        }
    }

    pub(super) fn add_bias(&mut self, path: &ModulePath, bias: &Var) {
        self.biases.push(path.clone());
        self.elements += bias.elem_count();
    }

    /// Why the adapter does not act where it is attached.
    fn obstacle(&self) -> &'static str {
        match (self.active, self.enabled) {
            (false, _) => "it is not active; `set_adapter` activates it",
            (true, false) => "adapters are disabled; `enable_adapters` enables them",
            (true, true) => "other adapters are merged there",
        }
    }
}

/// A line of what it is, one of where it is attached, and one of where it acts.
impl fmt::Display for InjectionReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { adapter, adapted, copied, biases, acting, unmatched_targets, active, elements, .. } = self;
        let state = if *active { "active" } else { "not active" };
        let (layers, elements) = (of(adapted.len(), "layer", "layers"), of(*elements, "element", "elements"));
        write!(f, "adapter `{adapter}` ({state}): {layers} adapted, {elements}")?;
        if !copied.is_empty() {
            write!(f, ", {} trained in full", of(copied.len(), "layer", "layers"))?;
        }
        if !biases.is_empty() {
            write!(f, ", {} of the base model", of(biases.len(), "bias", "biases"))?;
        }
        if !unmatched_targets.is_empty() {
            write!(f, "; targets that match nothing: {}", unmatched_targets.join(", "))?;
        }
        self.unmatched_patterns.iter().try_for_each(|unmatched| write!(f, "; {unmatched}"))?;
        let attached: Vec<&ModulePath> = self.attached().collect();
        write!(f, "\nattached to {}", named(&attached))?;
        if acting.is_empty() {
            return write!(f, "\nacting on no layer: {}", self.obstacle());
        }
        write!(f, "\nacting on {}", named(&acting.iter().collect::<Vec<_>>()))?;
        if acting.len() < attached.len() {
            write!(f, "; on the others {}", self.obstacle())?;
        }
        Ok(())
    }
}

/// How many paths a line names.
const NAMED: usize = 4;

/// The number of layers and the paths of the first ones.
fn named(paths: &[&ModulePath]) -> String {
    let layers = of(paths.len(), "layer", "layers");
    let first: Vec<&str> = paths.iter().take(NAMED).map(|path| path.as_str()).collect();
    match (first.as_slice(), paths.len() - first.len()) {
        ([], _) => layers,
        (first, 0) => format!("{layers}: {}", first.join(", ")),
        (first, more) => format!("{layers}: {} and {more} more", first.join(", ")),
    }
}

/// A number of things.
fn of(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}
