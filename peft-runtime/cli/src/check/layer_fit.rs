//! Whether the tensors that an adapter has for a layer have the sizes of its weight.

use serde_json::Value;

use super::adapter_file::AdapterFile;
use super::keys::{Key, Part};

/// The tensors of one module.
pub struct Module<'a> {
    /// The module's path.
    pub path: &'a str,
    /// Its keys, with the shapes of their tensors.
    pub parts: Vec<(&'a Key, &'a [usize])>,
}

/// What the tensors of a module are for, if not for a layer with this weight; `config` is the base model's.
pub fn misfit_of_layer(
    module: &Module<'_>,
    weight: &[usize],
    adapter: &AdapterFile,
    config: &Value,
) -> Option<String> {
    let blocks = blocks_of_a(module.path, adapter);
    token_misfit(module, weight, adapter)
        .or_else(|| factor_misfit(module, weight, blocks, may_lie(adapter, config)))
}

/// How many blocks of BD-LoRA the A of a layer has on its diagonal, which is all that is stored; 1 where that is off.
fn blocks_of_a(path: &str, adapter: &AdapterFile) -> usize {
    let name = path.rsplit('.').next().unwrap_or_default();
    let field = |field: &str| adapter.field("use_bdlora").and_then(|config| config.get(field));
    let mut names = field("target_modules_bd_a").and_then(Value::as_array).into_iter().flatten();
    let has_blocks = names.any(|own| own.as_str().is_some_and(|own| name.contains(own)));
    let count = field("nblocks").and_then(Value::as_u64).filter(|_| has_blocks);
    count.and_then(|count| usize::try_from(count).ok()).unwrap_or(1)
}

impl Module<'_> {
    /// Whether the adapter has only parameters of it, and so all of it.
    pub fn is_copy(&self) -> bool {
        self.parts.iter().all(|(key, _)| key.part == Part::Parameter)
    }

    /// The shape of one of its tensors.
    pub fn shape(&self, part: Part) -> Option<&[usize]> {
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
fn factor_misfit(
    module: &Module<'_>,
    weight: &[usize],
    blocks_of_a: usize,
    transposed: bool,
) -> Option<String> {
    let embedding = (module.shape(Part::EmbeddingA), module.shape(Part::EmbeddingB));
    if let (Some(&[_, vocabulary]), Some(&[features, _])) = embedding
        && weight != [vocabulary, features]
    {
        return Some(format!("is for {vocabulary} rows of {features}"));
    }
    match (module.shape(Part::A)?, module.shape(Part::B)?) {
        (&[_, inputs], &[outputs, _]) => {
            let inputs = inputs * blocks_of_a;
            let fits = weight == [outputs, inputs] || transposed && weight == [inputs, outputs];
            (!fits).then(|| format!("takes {inputs} inputs to {outputs} outputs"))
        }
        ([rank, inputs, kernel @ ..], [outputs, inner, ..]) => {
            // B has the groups of the layer, of which each has its share of the ranks; A has one group.
            let groups = if *inner == 0 { 1 } else { rank / inner };
            let fits = groups * inner == *rank
                && inputs % groups.max(1) == 0
                && weight == [&[*outputs, inputs / groups.max(1)][..], kernel].concat();
            let in_groups = if groups > 1 { format!(" in {groups} groups") } else { String::new() };
            (!fits)
                .then(|| format!("takes {inputs} channels to {outputs}{in_groups} with a kernel {kernel:?}"))
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
