//! What a method is: the one door for methods of this crate and of others.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::adapter_config::AdapterConfig;
use super::key_ends::{split_at_end, split_at_marker};
use crate::adapter::{
    Adapter, AdapterMethod, Built, Combination, Combined, Geometry, KeyedShapes, LayerSettings, LayerShapes,
    PlainLora, Selection, Shared, Site, TensorSource,
};
use crate::config::{Bias, CombineOptions};
use crate::declared::Declared;
use crate::error::{ConfigError, Error, Fault, Result};
use crate::path::ModulePath;
use crate::schema::LayerKind;
use crate::select::TargetModules;

/// An adapter method: the settings of its own, and what it does with them.
///
/// The type holds the fields that only this method has in its `adapter_config.json`; [`AdapterConfig`] adds the fields that
/// all methods have, and is what users inject. [`register`](super::register) makes the method known to everything that reads
/// files, and to the command line of a program that calls `peft_cli::run` after it.
///
/// Required are a name, what a layer gets, how its adapter is made, and what its tensors say about the layer. Every other
/// function has a default, which is right for a method that has no such thing: no combination, no default targets, no form
/// as plain LoRA. The documentation of the module [`method`](crate::method) has an example.
pub trait Method: Any + Clone + Debug + PartialEq + Send + Serialize + DeserializeOwned + Sync {
    /// The value of `peft_type` in files.
    const PEFT_TYPE: &'static str;

    /// What messages call the method.
    const NAME: &'static str;

    /// How the ends of the method's keys begin: `lora_` of `layers.0.q_proj.lora_A.weight`.
    const KEY_PREFIX: &'static str;

    /// Whether files have `layers_to_transform` and `layers_pattern`; a method that has them is also
    /// [`FiltersBlocks`](super::FiltersBlocks).
    const FILTERS_BLOCKS: bool = false;

    /// Whether the adapters have a scaling, which a weight can be multiplied into.
    const HAS_SCALING: bool = false;

    /// Whether a long list of targets is saved as the ends of their paths, as PEFT does where nothing else in the file repeats
    /// the names.
    const SHORTENS_TARGETS: bool = true;

    /// Fields of PEFT's file that are not implemented, each with the value it has when it is off. A file in which one is on
    /// is refused.
    fn unimplemented_fields() -> Vec<(&'static str, Value)> {
        Vec::new()
    }

    /// Whether a field of [`unimplemented_fields`](Self::unimplemented_fields) says nothing though it is set, because of what
    /// the other fields of the file say.
    fn is_idle(field: &str, value: &Value, fields: &Map<String, Value>) -> bool {
        let _ = (field, value, fields);
        false
    }

    /// Fields that PEFT's file has and the method does not read, each with PEFT's default.
    fn ignored_fields() -> Vec<(&'static str, Value)> {
        Vec::new()
    }

    /// All that is wrong with the values, by field.
    fn faults(config: &AdapterConfig<Self>) -> Vec<(&'static str, String)> {
        let _ = config;
        Vec::new()
    }

    /// What the layer at `path` gets.
    ///
    /// # Errors
    /// Why the method cannot adapt a layer of that shape; [`Fault::unsupported_layer`] makes the usual one.
    fn plan_layer(
        config: &AdapterConfig<Self>,
        path: &ModulePath,
        kind: LayerKind,
        geometry: &Geometry,
    ) -> Result<LayerSettings, Fault>;

    /// The adapter of one layer with the settings that were planned for it, and with tensors from `source`.
    ///
    /// # Errors
    /// If the tensors cannot be had.
    fn build(
        config: &AdapterConfig<Self>,
        site: &Site<'_>,
        settings: &LayerSettings,
        source: &mut dyn TensorSource,
    ) -> Result<Built>;

    /// The geometry of the layer that has tensors of these shapes and, where it is known, a weight of this shape: for adapters
    /// that are read without their model. [`Geometry::of_weight`] is enough where the tensors say nothing about the layer.
    ///
    /// `transposed` says how a square weight of a linear layer lies. What neither shows is left at its least, which merging
    /// and combining do not look at. `None` if the tensors are not the method's.
    fn geometry(
        config: &AdapterConfig<Self>,
        shapes: &LayerShapes,
        weight: Option<&[usize]>,
        transposed: bool,
    ) -> Option<Geometry>;

    /// The modules that PEFT adapts in models of transformers' type `model_type` where neither config nor model names any.
    fn default_targets(model_type: &str) -> Option<TargetModules> {
        let _ = model_type;
        None
    }

    /// The config with the modules that the model declares or its type is known for, where it names none; `None` if it does.
    fn with_declared(
        config: &AdapterConfig<Self>,
        declared: &Declared,
        model_type: Option<&str>,
    ) -> Option<AdapterConfig<Self>> {
        let known = || model_type.and_then(Self::default_targets);
        config.with_default_targets(|| declared.target_modules().or_else(known))
    }

    /// The selection of the config, with what the method adds to its modules.
    fn selection<'c>(config: &'c AdapterConfig<Self>, selection: Selection<'c>) -> Selection<'c> {
        let _ = config;
        selection
    }

    /// The config with the targets that were found, as it is kept and saved.
    fn resolved(config: AdapterConfig<Self>) -> AdapterConfig<Self> {
        config
    }

    /// The config with the embedding where it names one of two layers that have one weight, and what the output layer gets from
    /// the embedding; `None` if it names neither.
    ///
    /// # Errors
    /// Why the two cannot share what they get.
    fn tied(
        config: &AdapterConfig<Self>,
        embedding: &ModulePath,
        head: &ModulePath,
    ) -> Result<Option<(AdapterConfig<Self>, Shared)>, Fault> {
        let _ = (config, embedding, head);
        Ok(None)
    }

    /// Notes whether the adapted linear layers store their weights transposed, if files say so.
    fn set_transposed(&mut self, transposed: bool) {
        let _ = transposed;
    }

    /// Whether the adapted linear layers store their weights as `[in, out]`.
    fn is_transposed(&self) -> bool {
        false
    }

    /// Which biases of the base model train as well.
    fn bias(&self) -> Bias {
        Bias::None
    }

    /// Whether making the adapters changes the base model's weights.
    fn changes_base(&self) -> bool {
        false
    }

    /// Why an adapter cannot be saved as it is, if it cannot.
    fn unsavable(&self) -> Option<String> {
        None
    }

    /// The config that is written for these adapters; `None` if it is this one.
    fn for_file(
        config: &AdapterConfig<Self>,
        adapters: &[(&ModulePath, &dyn Adapter)],
    ) -> Option<AdapterConfig<Self>> {
        let _ = (config, adapters);
        None
    }

    /// The patterns of the config that match none of the adapted layers at `paths`, each with its field.
    ///
    /// # Errors
    /// If a pattern cannot be matched.
    fn unmatched_patterns(
        config: &AdapterConfig<Self>,
        paths: &[&str],
    ) -> Result<Vec<(&'static str, String)>, Fault> {
        let _ = (config, paths);
        Ok(Vec::new())
    }

    /// The config for tensors of these keys and shapes: their ranks, and what else they show. The modules are added.
    ///
    /// # Errors
    /// If the tensors contradict the config.
    fn for_tensors(config: &AdapterConfig<Self>, keyed: &KeyedShapes<'_>) -> Result<AdapterConfig<Self>> {
        let _ = keyed;
        Ok(config.clone())
    }

    /// One adapter out of several, of which the first has this config; [`AdapterConfig::for_combination`] makes the config for
    /// the modules of all.
    ///
    /// # Errors
    /// If the method has no weighted combination, or the adapters do not go together.
    fn combine(config: &AdapterConfig<Self>, request: &Combination<'_>) -> Result<Combined> {
        let _ = config;
        request.refuse_all(format!("{} has no weighted combination", Self::NAME))
    }

    /// What of a combination with these options starts again from the base model's weight, in words, if the tensor with this
    /// end of a key does.
    fn restarts_from_base(key: &str, options: &CombineOptions) -> Option<&'static str> {
        let _ = (key, options);
        None
    }

    /// The ends of all keys that the method has: `lora_A.weight` of `layers.0.q_proj.lora_A.weight`.
    ///
    /// With them, a module whose name begins with [`KEY_PREFIX`](Self::KEY_PREFIX) is not taken for a part of the method, and
    /// the name that an adapter had where it was trained is found in a key and left out. Without them, an end begins at the
    /// last segment that begins with the prefix.
    fn key_ends() -> &'static [&'static str] {
        &[]
    }

    /// Ends of keys of tensors that whole models have and that say nothing about the adapter: readers leave them out.
    fn inert_key_ends() -> &'static [&'static str] {
        &[]
    }

    /// A key taken apart into the path of the layer and the end that names the tensor; `None` if it is not the method's.
    fn split_key(key: &str) -> Option<(&str, &str)> {
        match Self::key_ends() {
            [] => split_at_marker(key, Self::KEY_PREFIX),
            ends => split_at_end(key, ends),
        }
    }

    /// The one name of a tensor that files have under several.
    fn canonical_key(key: &str) -> &str {
        key
    }

    /// The adapter of the rows that `tokens` have in an embedding.
    ///
    /// # Errors
    /// If the method has no such adapters, or the tensors cannot be had.
    fn build_tokens(site: &Site<'_>, tokens: &[u32], source: &mut dyn TensorSource) -> Result<Built> {
        let _ = (tokens, source);
        Err(Error::Config(ConfigError::NoTokenAdapters { method: Self::NAME, path: site.path.clone() }))
    }

    /// The config with what a model would have told, read off the layers of a file and the ends of their keys.
    fn without_model(
        config: &AdapterConfig<Self>,
        layers: &BTreeMap<&str, Vec<&str>>,
    ) -> AdapterConfig<Self> {
        let _ = layers;
        config.clone()
    }

    /// The config to read a file's tensors with where there are no base weights.
    fn without_base(config: &AdapterConfig<Self>) -> AdapterConfig<Self> {
        config.clone()
    }

    /// The config of an adapter that computes the same on the base weights as they were before this one changed them; `None`
    /// if the method has no such form.
    fn for_original_base(config: &AdapterConfig<Self>) -> Option<Arc<dyn AdapterMethod>> {
        let _ = config;
        None
    }

    /// An error if an adapter has no form as plain LoRA; `has_base` says whether the base weights are known.
    ///
    /// # Errors
    /// Why it has none.
    fn check_plain_lora(config: &AdapterConfig<Self>, has_base: bool) -> Result<(), String> {
        let _ = (config, has_base);
        Err(format!("{} is not a low-rank update", Self::NAME))
    }

    /// The settings of plain LoRA with these ranks, by path; `None` if the method has no such form.
    ///
    /// # Errors
    /// If the config cannot be written.
    fn plain_lora(config: &AdapterConfig<Self>, ranks: &BTreeMap<&str, usize>) -> Result<Option<PlainLora>> {
        let _ = (config, ranks);
        Ok(None)
    }
}
