//! Whether a base model has what an adapter is on, in the same sizes.

use std::collections::{BTreeMap, BTreeSet};

use peft_runtime::NameMap;
use serde_json::Value;

use super::adapter_file::AdapterFile;
use super::keys::{Key, Part};

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
}

/// The tensors of one module.
struct Module<'a> {
    path: &'a str,
    parts: Vec<(&'a Key, &'a [usize])>,
}

/// Compares an adapter with its base model.
pub fn compare(adapter: &AdapterFile, base: &Base) -> Fit {
    let keys: Vec<(Key, &[usize])> =
        adapter.tensors.iter().map(|tensor| (Key::parse(&tensor.key), tensor.shape.as_slice())).collect();
    let mut modules: BTreeMap<&str, Module<'_>> = BTreeMap::new();
    for (key, shape) in keys.iter().filter(|(key, _)| key.part != Part::Stranger) {
        let module =
            modules.entry(&key.path).or_insert_with(|| Module { path: &key.path, parts: Vec::new() });
        module.parts.push((key, *shape));
    }
    let mut fit = Fit::default();
    let is_missing = |module: &&Module<'_>| !base.has_module(module.path);
    let (brought, missing): (Vec<&Module<'_>>, Vec<&Module<'_>>) =
        modules.values().filter(is_missing).partition(|module| module.is_copy());
    if !missing.is_empty() {
        fit.names = base.fitting(&modules);
        fit.misfits.push(missing_words(&missing, fit.names.as_ref()));
    } else if !brought.is_empty() {
        let paths: Vec<&str> = brought.iter().map(|module| module.path).collect();
        let paths = paths.join("`, `");
        fit.notes.push(format!(
            "the files of the base model have no `{paths}`, of which the adapter has all parameters"
        ));
    }
    let map = fit.names.clone().unwrap_or_default();
    for module in modules.values() {
        let place = map.module_of(module.path);
        if let Some(misfit) = base.misfit(module, &place, adapter) {
            fit.misfits.push(misfit);
        }
    }
    fit.notes.extend(base.tied_words(&modules));
    fit
}

impl Module<'_> {
    /// Whether the adapter has only parameters of it, and so all of it.
    fn is_copy(&self) -> bool {
        self.parts.iter().all(|(key, _)| key.part == Part::Parameter)
    }
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
        self.copy_misfit(module, place).or_else(|| {
            let weight = self.weight(place, "weight")?;
            let has = token_misfit(module, weight, adapter)
                .or_else(|| factor_misfit(module, weight, may_lie(adapter, &self.config)))?;
            Some(format!("`{}` {has}, and the base model's weight has shape {weight:?}", module.path))
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

impl Module<'_> {
    fn shape(&self, part: Part) -> Option<&[usize]> {
        self.parts.iter().find(|(key, _)| key.part == part).map(|(_, shape)| *shape)
    }
}

/// What trained rows are for, if not for an embedding with this weight.
fn token_misfit(module: &Module<'_>, weight: &[usize], adapter: &AdapterFile) -> Option<String> {
    let &[rows, features] = module.shape(Part::Tokens)? else { return None };
    let largest = largest_token(adapter);
    let outside = largest.filter(|largest| weight.first().is_some_and(|vocabulary| largest >= vocabulary));
    match outside {
        Some(token) => Some(format!("has a row for the token {token}")),
        None if weight.get(1) != Some(&features) => Some(format!("has {rows} rows of {features}")),
        None => None,
    }
}

/// What factors are for, if not for a layer with this weight, which may lie either way if `transposed`.
fn factor_misfit(module: &Module<'_>, weight: &[usize], transposed: bool) -> Option<String> {
    let embedding = (module.shape(Part::EmbeddingA), module.shape(Part::EmbeddingB));
    if let (Some(&[_, vocabulary]), Some(&[features, _])) = embedding
        && weight != [vocabulary, features]
    {
        return Some(format!("is for {vocabulary} rows of {features}"));
    }
    match (module.shape(Part::A)?, module.shape(Part::B)?) {
        (&[_, inputs], &[outputs, _]) => {
            let fits = weight == [outputs, inputs] || transposed && weight == [inputs, outputs];
            (!fits).then(|| format!("takes {inputs} inputs to {outputs} outputs"))
        }
        ([_, inputs, kernel @ ..], [outputs, ..]) => {
            let fits = weight == [&[*outputs, *inputs][..], kernel].concat();
            (!fits).then(|| format!("takes {inputs} channels to {outputs} with a kernel {kernel:?}"))
        }
        _ => None,
    }
}

/// Whether a weight may lie as [in, out].
fn may_lie(adapter: &AdapterFile, config: &Value) -> bool {
    adapter.is_on("fan_in_fan_out") || config.get("model_type").and_then(Value::as_str) == Some("gpt2")
}

/// The largest number of a trained row.
fn largest_token(adapter: &AdapterFile) -> Option<usize> {
    fn numbers(value: &Value) -> Vec<u64> {
        match value {
            Value::Array(values) => values.iter().filter_map(Value::as_u64).collect(),
            Value::Object(values) => values.values().flat_map(numbers).collect(),
            _ => Vec::new(),
        }
    }
    let largest = numbers(adapter.field("trainable_token_indices")?).into_iter().max()?;
    usize::try_from(largest).ok()
}
