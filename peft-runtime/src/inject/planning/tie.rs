//! `ensure_weight_tying`: one adapter for an embedding and the output layer that has its weight.

use std::sync::Arc;

use super::declarations::Declarations;
use crate::adapter::{AdapterMethod, Shared};
use crate::error::Fault;
use crate::inject::plan::Origin;
use crate::layer::Layer;
use crate::module::Item;
use crate::ops::storage_address;
use crate::path::ModulePath;

/// Settings that mean the embedding, and the tie.
pub(super) type TiedSettings = (Arc<dyn AdapterMethod>, Tie);

/// The embedding that PEFT takes where a model declares none.
const INPUT_EMBEDDING: &str = "embed_tokens";
pub(super) const FIELD: &str = "ensure_weight_tying";

/// An output layer that gets what an embedding gets.
#[derive(Clone, Debug)]
pub(super) struct Tie {
    pub(super) embedding: ModulePath,
    pub(super) head: ModulePath,
    pub(super) shared: Shared,
}

impl Tie {
    /// The settings that mean the embedding where they meant one of two tied layers, and the two; `None` if nothing is tied.
    ///
    /// # Errors
    /// If the caller asks for a tie where there is nothing to tie.
    pub(super) fn find(
        items: &[Item<'_>],
        model: &Declarations<'_>,
        method: &dyn AdapterMethod,
        origin: Origin,
    ) -> Result<Option<TiedSettings>, Fault> {
        let selection = method.selection();
        if !selection.ties {
            return Ok(None);
        }
        // In a shared config it changes nothing for models that are not tied, as in PEFT.
        let nothing = |reason: &str| match origin {
            Origin::Caller => Err(Fault::Config { field: FIELD, reason: reason.to_owned() }),
            Origin::File | Origin::Swap => Ok(None),
        };
        let Some((embedding, head)) = tied_layers(items, model) else {
            return nothing("no output layer of the model has the weight of its embedding; leave it out");
        };
        match method.tied(&embedding, &head)? {
            Some((method, shared)) => Ok(Some((method, Self { embedding, head, shared }))),
            None if selection.tokens.is_some() => Ok(None),
            None => nothing(
                "neither `target_modules` nor `modules_to_save` names `embed_tokens` or `lm_head`, which could be tied",
            ),
        }
    }

    /// Whether the layer at `path` gets its adapter from the embedding, whatever the targets say.
    pub(super) fn adapts(&self, path: &ModulePath) -> bool {
        self.shared == Shared::Adapter && self.head == *path
    }
}

/// The input embedding, and the output layer with the same weight.
fn tied_layers(items: &[Item<'_>], model: &Declarations<'_>) -> Option<(ModulePath, ModulePath)> {
    let carriers = || items.iter().filter_map(Item::leaf).filter(|(_, layer)| layer.can_carry_adapters());
    let address = |layer: &dyn Layer| layer.parameters().first().map(|(_, weight)| storage_address(weight));
    let input = model.declared.input_embedding.unwrap_or(INPUT_EMBEDDING);
    let output = model.declared.output_embedding?;
    let (embedding, table) = carriers().find(|(path, _)| path.ends_with(input))?;
    let tied = |layer: &dyn Layer| address(layer).is_some() && address(layer) == address(table);
    let (head, _) =
        carriers().find(|(path, layer)| *path != embedding && path.ends_with(output) && tied(*layer))?;
    Some((embedding.clone(), head.clone()))
}
