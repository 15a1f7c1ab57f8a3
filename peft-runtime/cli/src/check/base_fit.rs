//! Whether a base model has what an adapter is on, in the same sizes.

use std::collections::{BTreeMap, BTreeSet};

use peft_runtime::NameMap;
use serde_json::Value;

use super::adapter_file::AdapterFile;
use super::fused_experts::fuse;
use super::keys::{Key, Part};
use super::layer_fit::{Module, misfit_of_layer};
use super::saved_modules::missing_parameters;

/// How many modules a sentence names.
const LISTED: usize = 3;

/// A base model: the shapes of its tensors, and its config.
pub struct Base {
    pub shapes: BTreeMap<String, Vec<usize>>,
    pub config: Value,
}

/// What was compared.
#[derive(Debug, Default)]
pub struct Fit {
    /// What the base model does not have as the adapter has it, a sentence each.
    pub misfits: Vec<String>,
    /// What the adapter changes in ways that are easily lost.
    pub notes: Vec<String>,
    /// The names that make all modules fit.
    pub names: Option<NameMap>,
    /// The paths of single experts whose scaling changes when PEFT fuses them.
    pub rescaled: Vec<String>,
}

/// Compares an adapter with its base model.
pub fn compare(adapter: &AdapterFile, base: &Base) -> Fit {
    let keys: Vec<(Key, &[usize])> =
        adapter.tensors.iter().map(|tensor| (Key::parse(&tensor.key), tensor.shape.as_slice())).collect();
    let mut modules: BTreeMap<&str, Module<'_>> = BTreeMap::new();
    for (key, shape) in keys.iter().filter(|(key, _)| key.part != Part::Stranger) {
        let path = own_path(key, adapter);
        let module = modules.entry(path).or_insert_with(|| Module { path, parts: Vec::new() });
        module.parts.push((key, *shape));
    }
    let fusion = fuse(adapter, &modules, &base.shapes, base.model_type());
    modules.retain(|path, _| !fusion.fused.contains(*path));
    let mut fit = Fit { misfits: fusion.misfits, rescaled: fusion.rescaled, ..Fit::default() };
    let is_missing =
        |module: &&Module<'_>| !base.has_module(module.path) && !fusion.placed.contains_key(module.path);
    let (brought, missing): (Vec<&Module<'_>>, Vec<&Module<'_>>) =
        modules.values().filter(is_missing).partition(|module| module.is_copy());
    if !missing.is_empty() {
        fit.names = base.fitting(&modules);
        fit.misfits.push(missing_words(&missing, fit.names.as_ref()));
    } else if !brought.is_empty() {
        fit.notes.push(brought_words(&brought));
    }
    let map = fit.names.clone().unwrap_or_default();
    for module in modules.values() {
        let place = fusion.placed.get(module.path).cloned();
        let place = place.unwrap_or_else(|| map.module_of(module.path));
        fit.misfits.extend(base.misfit(module, &place, adapter));
    }
    fit.misfits.extend(missing_parameters(adapter, &base.shapes, &map));
    fit.notes.extend(base.tied_words(&modules));
    fit
}

/// The path of the module that a tensor is for: PEFT wraps a module once for each of its parameters that it adapts.
fn own_path<'k>(key: &'k Key, adapter: &AdapterFile) -> &'k str {
    let mut path = key.path.as_str();
    if matches!(key.part, Part::A | Part::B) && adapter.field("target_parameters").is_some() {
        while let Some(inner) = path.strip_suffix(".base_layer") {
            path = inner;
        }
    }
    path
}

fn brought_words(brought: &[&Module<'_>]) -> String {
    let paths: Vec<&str> = brought.iter().map(|module| module.path).collect();
    let paths = paths.join("`, `");
    format!("the files of the base model have no `{paths}`, of which the adapter has all parameters")
}

fn missing_words(missing: &[&Module<'_>], names: Option<&NameMap>) -> String {
    let listed: Vec<&str> = missing.iter().take(LISTED).map(|module| module.path).collect();
    let listed = listed.join("`, `");
    let more = match missing.len().saturating_sub(LISTED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let help = match names {
        Some(names) => {
            let rules = names.prefixes().map(|(from, to)| format!("--rename {from}={to}"));
            format!("; with `{}` it has all of them", rules.collect::<Vec<_>>().join(" "))
        }
        None => "; no prefix makes all modules fit".to_owned(),
    };
    format!("the base model has no `{listed}`{more}{help}")
}

impl Base {
    fn module_names(&self) -> BTreeSet<String> {
        let modules = self.shapes.keys().filter_map(|name| name.rsplit_once('.'));
        modules.map(|(module, _)| module.to_owned()).collect()
    }

    /// The names that make all modules fit; those that the adapter brings need not.
    fn fitting(&self, modules: &BTreeMap<&str, Module<'_>>) -> Option<NameMap> {
        let names = self.module_names();
        let found = |copies: bool| {
            let wanted = modules.values().filter(|module| copies || !module.is_copy());
            let wanted = wanted.map(|module| module.path).filter(|path| !self.is_tied_head(path));
            NameMap::fitting(wanted, names.iter().map(String::as_str))
        };
        found(true).or_else(|| found(false))
    }

    fn model_type(&self) -> &str {
        self.config.get("model_type").and_then(Value::as_str).unwrap_or_default()
    }

    fn weight(&self, module: &str, parameter: &str) -> Option<&[usize]> {
        self.shapes.get(&format!("{module}.{parameter}")).map(Vec::as_slice)
    }

    fn has_module(&self, path: &str) -> bool {
        let front = format!("{path}.");
        let after = self.shapes.range(front.clone()..).next();
        after.is_some_and(|(name, _)| name.starts_with(&front)) || self.is_tied_head(path)
    }

    /// Whether the output layer is the embedding.
    pub fn ties(&self) -> bool {
        let text = self.config.get("text_config").and_then(|config| config.get("tie_word_embeddings"));
        self.config.get("tie_word_embeddings").or(text) == Some(&Value::Bool(true))
    }

    /// Whether it is the output layer of a model that has the embedding in its place.
    fn is_tied_head(&self, path: &str) -> bool {
        self.ties() && path.rsplit('.').next() == Some("lm_head")
    }

    fn vocabulary(&self) -> Option<usize> {
        let mut embeddings = self.shapes.iter().filter(|(name, _)| {
            ["embed_tokens.weight", "wte.weight", "word_embeddings.weight"]
                .iter()
                .any(|end| name.ends_with(end))
        });
        embeddings.next().and_then(|(_, shape)| shape.first().copied())
    }

    /// What of a module does not fit, in words.
    fn misfit(&self, module: &Module<'_>, place: &str, adapter: &AdapterFile) -> Option<String> {
        self.copy_misfit(module, place).or_else(|| self.parameter_misfit(module, place, adapter)).or_else(
            || {
                let weight = self.weight(place, "weight")?;
                let has = misfit_of_layer(module, weight, adapter, &self.config)?;
                Some(format!("`{}` {has}, and the base model's weight has shape {weight:?}", module.path))
            },
        )
    }

    /// Factors for bare parameters of a module that has none of their size.
    fn parameter_misfit(&self, module: &Module<'_>, place: &str, adapter: &AdapterFile) -> Option<String> {
        adapter.field("target_parameters")?;
        let front = format!("{place}.");
        let own = self.shapes.range(front.clone()..).take_while(|(name, _)| name.starts_with(&front));
        let own: Vec<&[usize]> = own.map(|(_, shape)| shape.as_slice()).collect();
        let factors = |part: Part| module.parts.iter().filter(move |(key, _)| key.part == part);
        factors(Part::A).find_map(|(key, a)| {
            let (_, b) = factors(Part::B).find(|(other, _)| other.path == key.path)?;
            let ([_, inputs], [outputs, _]) = (a, b) else { return None };
            let (inputs, outputs) = (*inputs, *outputs);
            let fits = |shape: &&[usize]| {
                shape.ends_with(&[outputs, inputs]) || shape.ends_with(&[inputs, outputs])
            };
            let found = own.iter().any(fits);
            (!found).then(|| {
                format!("`{}` takes {inputs} inputs to {outputs} outputs, and no parameter of the base model's `{place}` does", key.path)
            })
        })
    }

    /// Parameters that the adapter has in the place of the base model's.
    fn copy_misfit(&self, module: &Module<'_>, place: &str) -> Option<String> {
        let path = module.path;
        let mut copies = module.parts.iter().filter(|(key, _)| key.part == Part::Parameter);
        copies.find_map(|(key, own)| match self.weight(place, &key.parameter) {
            Some(weight) if weight != *own => Some(self.other_shape(path, &key.parameter, own, weight)),
            None if self.is_tied_head(path) => {
                let rows = self.vocabulary().filter(|rows| own.first().is_some_and(|own| own != rows))?;
                Some(format!(
                    "`{path}` has {} rows, and the vocabulary of the base model {rows}",
                    own.first()?
                ))
            }
            _ => None,
        })
    }

    fn other_shape(&self, path: &str, parameter: &str, own: &[usize], weight: &[usize]) -> String {
        if own.len() == 2 && own[1..] == weight[1..] && Some(weight[0]) == self.vocabulary() {
            return format!(
                "`{path}.{parameter}` has {} rows, and the vocabulary of the base model {}: its embeddings have to be resized first",
                own[0], weight[0]
            );
        }
        format!("`{path}.{parameter}` has shape {own:?}, and the base model's {weight:?}")
    }

    /// What happens to tied embeddings.
    fn tied_words(&self, modules: &BTreeMap<&str, Module<'_>>) -> Option<String> {
        let is_word = |path: &&&str| {
            ["lm_head", "embed_tokens", "wte"].contains(&path.rsplit('.').next().unwrap_or_default())
        };
        let touched: Vec<&str> = modules.keys().filter(is_word).copied().collect();
        if !self.ties() || touched.is_empty() {
            return None;
        }
        Some(format!(
            "the base model ties its output layer to its embedding, and the adapter changes `{}`: programs that merge it have to untie them",
            touched.join("`, `")
        ))
    }
}
