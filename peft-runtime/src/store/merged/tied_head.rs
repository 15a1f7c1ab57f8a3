//! Base models whose head has the weight of the embeddings, with adapters that change only one of the two.

use candle_core::{DType, Device, Tensor};
use candle_nn::var_builder::SimpleBackend;

use super::MergedWeights;
use super::placed_tensors::PlacedLayer;
use super::weighted_adapter::WeightedAdapter;
use crate::error::{Error, Result};
use crate::path::ModulePath;
use crate::store::name_map::NameMap;
use crate::store::standalone::StoredAdapter;
use crate::store::tied::{KEY, Tie, Tying, is_head, is_shared_table, is_table};

/// Whether head and embeddings are another tensor each once the adapter is merged.
///
/// Rows of tokens train in both, as in PEFT; a value of the base model that the file has is the value of both.
fn parts(adapter: &WeightedAdapter, tie: &Tie) -> bool {
    let has_layers = [&tie.table, &tie.head]
        .into_iter()
        .any(|module| adapter.layers_of(module).iter().any(|layer| !adapter.has_tokens(layer)));
    let has_copies = [tie.table_weight(), tie.head_weight()]
        .iter()
        .any(|name| adapter.replacements_of(name).iter().any(|replacement| replacement.is_copy));
    (has_layers || has_copies) && !adapter.keeps_ties()
}

impl<B> MergedWeights<B> {
    /// The modules of the base model whose weights are one tensor.
    pub(super) fn tie(&self) -> Option<&Tie> {
        match self.tying.as_ref() {
            Tying::Tied(tie) => Some(tie),
            Tying::Separate | Tying::Unknown { .. } => None,
        }
    }

    /// The same if they are one tensor no longer when the adapters are merged.
    pub(super) fn parted(&self) -> Option<&Tie> {
        self.tie().filter(|tie| self.adapters.iter().any(|adapter| parts(adapter, tie)))
    }

    /// The layers of all adapters in a module, or on the bare parameter of that name, in order. A head of its own begins as the table does, with rows of tokens.
    pub(super) fn layers_of(&self, module: &str) -> Vec<(&WeightedAdapter, &PlacedLayer)> {
        let table = self.parted().filter(|tie| tie.head == module).map(|tie| tie.table.as_str());
        let mut layers = Vec::new();
        for adapter in self.adapters.iter().map(AsRef::as_ref) {
            let tokens = table.map(|table| adapter.layers_of(table)).unwrap_or_default().iter();
            layers.extend(tokens.filter(|layer| adapter.has_tokens(layer)).map(|layer| (adapter, layer)));
            layers.extend(adapter.layers_of(module).iter().map(|layer| (adapter, layer)));
        }
        layers
    }

    /// Refuses an adapter that fits the base model's head and embeddings by their shapes, and not by what they are.
    pub(super) fn check_head(&self, adapter: &WeightedAdapter) -> Result<()> {
        let Some(tie) = self.tie() else { return Ok(()) };
        for layer in adapter.layers_of(&tie.table) {
            if is_head(layer.path.as_str()) || !adapter.is_on_embedding(layer) {
                return Err(adapter.cannot_merge(layer, renamed(tie)));
            }
        }
        Ok(())
    }

    /// An error if a model was loaded that has one tensor for head and embeddings, which differ.
    pub(super) fn check_head_was_asked(&self) -> Result<()> {
        let Some(tie) = self.parted() else { return Ok(()) };
        let asked = |module: &str| self.was_asked(module);
        if !asked(&tie.table) || asked(&tie.head) {
            return Ok(());
        }
        let reason = format!(
            "the base model ties it to `{}`, and with this adapter the two differ; load the model with `{KEY}` = false, and \
             `{}` comes from here",
            tie.table,
            tie.head_weight()
        );
        Err(self.cannot_merge(&ModulePath::from(tie.head.as_str()), reason))
    }

    /// The head that needs a weight of its own, which the base model does not have.
    #[cfg(feature = "models")]
    pub(crate) fn own_head_of_tied(&self) -> Option<String> {
        self.parted().map(|tie| tie.head.clone())
    }

    /// A module of the base model that the adapter added last changes, if `is_one` says that it is one.
    fn changed_module(&self, is_one: impl Fn(&str) -> bool) -> Option<String> {
        let layers = self.adapters.last().into_iter().flat_map(|adapter| adapter.all_layers());
        let layers = layers.map(|layer| layer.module.as_str());
        let copies = self.adapters.last().into_iter().flat_map(|adapter| adapter.copied_names());
        let copies = copies.filter_map(|name| name.strip_suffix(".weight"));
        layers.chain(copies).find(|module| is_one(module)).map(str::to_owned)
    }
}

impl<B: SimpleBackend + 'static> MergedWeights<B> {
    /// Refuses to merge into head or embeddings of a model that may tie the two, or may not.
    pub(super) fn check_tying_is_known(&self) -> Result<()> {
        if self.facts().is_encoder_decoder()
            && let Some(module) = self.changed_module(is_shared_table)
        {
            let reason = "encoder and decoder have the same weight, each in an embedding of its own, on which the adapter does not \
                          act; train it on those, or merge with a model";
            return Err(self.cannot_merge(&ModulePath::from(module.as_str()), reason.to_owned()));
        }
        let Tying::Unknown { reason, pair } = self.tying.as_ref() else { return Ok(()) };
        let Some(module) = self.changed_module(|module| is_head(module) || is_table(module)) else {
            return Ok(());
        };
        if let Some(pair) = pair
            && !self.are_equal(&pair.table_weight(), &pair.head_weight())?
        {
            return Ok(());
        }
        let reason = format!(
            "the model's head and its embeddings may be one tensor, and {reason}; merge with a model in memory instead"
        );
        Err(self.cannot_merge(&ModulePath::from(module.as_str()), reason))
    }

    /// Refuses an adapter of a head that the base model does not have and does not tie to its embeddings.
    pub(super) fn check_head_is_there(&self, adapter: &StoredAdapter, names: &NameMap) -> Result<()> {
        let is_missing = |module: &String| {
            let is_tied = self.tie().is_some_and(|tie| tie.head == *module);
            is_head(module) && !is_tied && !self.base.contains_tensor(&format!("{module}.weight"))
        };
        if adapter.method().selection().ties {
            return Ok(());
        }
        let mut modules = adapter.layer_keys().into_keys().map(|path| names.place(path).module);
        let Some(module) = modules.find(is_missing) else { return Ok(()) };
        if let Tying::Unknown { reason, .. } = self.tying.as_ref() {
            let reason = format!(
                "the base model has no `{module}.weight`, and {reason}; merge with a model in memory instead"
            );
            let adapter = adapter.name().to_owned();
            return Err(Error::CannotMerge { adapter, path: ModulePath::from(module.as_str()), reason });
        }
        let reason = format!(
            "the base model has no `{module}.weight`. If its head has the weight of its embeddings, the `config.json` next to its \
             weights has to say so by `{KEY}`"
        );
        let adapter = adapter.name().to_owned();
        Err(Error::CannotMerge { adapter, path: ModulePath::from(module.as_str()), reason })
    }

    /// An error if files have two tensors for what the base model's config says is one.
    pub(super) fn check_tied_values(&self) -> Result<()> {
        self.check_shared_values()?;
        let Some(tie) = self.parted().filter(|tie| self.base.contains_tensor(&tie.head_weight())) else {
            return Ok(());
        };
        if self.are_equal(&tie.table_weight(), &tie.head_weight())? {
            return Ok(());
        }
        let reason = format!(
            "the base model's `config.json` ties it to `{}`, and its files have another tensor for each; correct `{KEY}` there",
            tie.table
        );
        Err(self.cannot_merge(&ModulePath::from(tie.head.as_str()), reason))
    }

    /// An error if an adapter has another value for the base model's table than for its head.
    fn check_shared_values(&self) -> Result<()> {
        let Some(tie) = self.tie().filter(|_| self.parted().is_none()) else { return Ok(()) };
        // Those before it were checked when they were added.
        if let Some(adapter) = self.adapters.last() {
            let [table, head] =
                [tie.table_weight(), tie.head_weight()].map(|name| adapter.replacements_of(&name));
            let values = table.last().zip(head.last()).map(|(table, head)| (&table.key, &head.key));
            // Rows of tokens that both have.
            let [table, head] = [&tie.table, &tie.head].map(|module| adapter.layers_of(module));
            let rows = table.iter().zip(head).filter(|(table, _)| adapter.has_tokens(table));
            let rows = rows.flat_map(|(table, head)| table.keys.iter().zip(&head.keys));
            for (table, head) in values.into_iter().chain(rows) {
                if !equal(&adapter.peek(table)?, &adapter.peek(head)?)? {
                    let reason = format!(
                        "its file has another tensor than for `{}`, to which the base model ties it",
                        tie.table
                    );
                    return Err(self.cannot_merge(&ModulePath::from(tie.head.as_str()), reason));
                }
            }
        }
        Ok(())
    }

    fn are_equal(&self, first: &str, second: &str) -> Result<bool> {
        let read = |name: &str| self.base.get_unchecked(name, DType::F32, &Device::Cpu);
        equal(&read(first)?, &read(second)?)
    }

    /// Counts the values of a shared tensor as used that an adapter's file has under the head's name.
    pub(super) fn note_shared_values(&self, name: &str) {
        let Some(tie) = self.tie().filter(|tie| self.parted().is_none() && name == tie.table_weight()) else {
            return;
        };
        for adapter in &self.adapters {
            let values = adapter.replacements_of(&tie.head_weight()).iter();
            adapter.note(values.map(|value| value.key.as_str()));
            let layers = adapter.layers_of(&tie.head).iter();
            adapter.note(layers.flat_map(|layer| layer.keys.iter().map(String::as_str)));
        }
    }

    /// The tensor that a tied head begins with: the base model's table, or the values of it that an adapter's file has.
    pub(super) fn shared_table(&self, tie: &Tie, dtype: DType, device: &Device) -> Result<Tensor> {
        match self.shared_value(tie) {
            Some((adapter, key)) => Ok(adapter.read(key, device)?.to_dtype(dtype)?),
            None => Ok(self.base.get_unchecked(&tie.table_weight(), dtype, device)?),
        }
    }
}

impl<B> MergedWeights<B> {
    /// The shape of the value that an adapter's file has of the shared tensor.
    pub(super) fn shared_shape(&self, tie: &Tie) -> Option<Vec<usize>> {
        let (adapter, key) = self.shared_value(tie)?;
        Some(adapter.stored_as(key)?.0.to_vec())
    }

    /// The value of the base model's shared tensor that an adapter's file has, by its key.
    fn shared_value(&self, tie: &Tie) -> Option<(&WeightedAdapter, &str)> {
        let names = [tie.table_weight(), tie.head_weight()];
        names.iter().flat_map(|name| self.adapters.iter().map(move |own| (name, own))).find_map(
            |(name, adapter)| {
                let mut own = adapter.replacements_of(name).iter();
                let value = own.rfind(|value| !value.is_copy && value.rows.is_none())?;
                Some((adapter.as_ref(), value.key.as_str()))
            },
        )
    }
}

fn equal(first: &Tensor, second: &Tensor) -> Result<bool> {
    if first.dims() != second.dims() {
        return Ok(false);
    }
    let differs = first.to_dtype(DType::F32)?.ne(&second.to_dtype(DType::F32)?)?;
    Ok(differs.to_dtype(DType::F32)?.sum_all()?.to_scalar::<f32>()? == 0.0)
}

fn renamed(tie: &Tie) -> String {
    format!(
        "its tensors are those of a linear layer, and `{}` is the model's embedding. The head `{}` has the same weight in the \
         base model; under that name the adapter merges into a head of its own",
        tie.table, tie.head
    )
}
