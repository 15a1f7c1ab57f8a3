//! Embedding weights that PEFT writes into an adapter's file when the adapter targets the embeddings.

use std::collections::BTreeMap;

use candle_core::Tensor;

use crate::error::Result;
use crate::manage::method_of;
use crate::module::{Injectable, leaves};
use crate::path::ModulePath;
use crate::select::{Pattern, TargetModules};

/// Which of the model's embedding weights are written into the adapter's file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SaveEmbeddings {
    /// Those that the adapter's config names as `embed_tokens` or `lm_head`, as in PEFT.
    #[default]
    Auto,
    /// All that the model declares.
    Always,
    /// None.
    Never,
}

/// The names by which PEFT knows embeddings.
const EMBEDDING_NAMES: [&str; 2] = ["embed_tokens", "lm_head"];

/// The embedding weights that belong in the adapter's file, by key.
pub(super) fn embedding_weights<M: Injectable + ?Sized>(
    model: &M,
    name: &str,
    save: SaveEmbeddings,
) -> Result<BTreeMap<String, Tensor>> {
    let declared = [M::DECLARED.input_embedding, M::DECLARED.output_embedding];
    let declared: Vec<&str> = declared.into_iter().flatten().collect();
    let leaves = leaves(model);
    let wanted = match save {
        SaveEmbeddings::Never => false,
        SaveEmbeddings::Always => true,
        SaveEmbeddings::Auto => {
            let method = method_of(model, name)?;
            let selection = method.selection();
            let paths = leaves.iter().map(|(path, _)| path);
            !declared.is_empty() && selection.tokens.is_none() && names_embeddings(selection.targets, paths)?
        }
    };
    let mut weights = BTreeMap::new();
    for (path, leaf) in
        leaves.iter().filter(|(path, _)| wanted && declared.iter().any(|name| path.ends_with(name)))
    {
        let adapter = leaf.stack().and_then(|stack| stack.slot(name)?.adapter());
        let key = match (adapter, save) {
            (Some(adapter), _) => adapter.base_weight_key(),
            (None, SaveEmbeddings::Always) => "weight",
            (None, _) => continue,
        };
        if let Some((_, weight)) = leaf.parameters().into_iter().find(|(name, _)| *name == "weight") {
            weights.insert(path.parameter(key), weight.detach());
        }
    }
    Ok(weights)
}

/// Whether a config's target modules name an embedding literally, or match one with a pattern.
fn names_embeddings<'p>(
    targets: Option<&TargetModules>,
    paths: impl Iterator<Item = &'p ModulePath>,
) -> Result<bool> {
    Ok(match targets {
        Some(TargetModules::Names(names)) => EMBEDDING_NAMES.iter().any(|name| names.contains(*name)),
        Some(TargetModules::Regex(pattern)) => {
            let is_embedding = |path: &&ModulePath| EMBEDDING_NAMES.contains(&path.last());
            let matches = |pattern: &Pattern| {
                paths
                    .filter(is_embedding)
                    .map(|path| pattern.is_match(path.as_str()))
                    .collect::<Result<Vec<_>, _>>()
            };
            let found = Pattern::whole("target_modules", pattern).and_then(|pattern| matches(&pattern));
            found?.contains(&true)
        }
        Some(TargetModules::AllLinear) | None => false,
    })
}
