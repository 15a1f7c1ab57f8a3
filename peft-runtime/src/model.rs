//! [`PeftModel`]: everything a model with named modules can do with adapters.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Tensor, Var};

use crate::adapter::AdapterMethod;
use crate::config::CombineOptions;
use crate::display::{self, LayerStatus, ModelStatus};
use crate::error::{ConfigError, Error, Result};
use crate::inject::{self, InjectOptions, InjectionReport};
use crate::manage::{self, MergeOptions, RequantizeReport};
use crate::method::LoraConfig;
use crate::method::lora::eva::initialise_eva;
use crate::module::{Injectable, leaves};
use crate::store::{self, LoadOptions, LoadReport, SaveOptions};

/// What a model with named modules can do with adapters; every [`Injectable`] type has it.
///
/// A call that returns an error leaves the model as it was.
pub trait PeftModel: Injectable {
    /// Puts a fresh adapter called `name` into the model and freezes everything else.
    ///
    /// The model's first adapter becomes active, later ones wait for [`set_adapter`](Self::set_adapter): a fresh
    /// adapter does not change the output.
    ///
    /// # Errors
    /// [`Error::Plan`] with every fault found: names that match nothing, layers the method cannot adapt, invalid values.
    fn inject_adapter(&mut self, config: &dyn AdapterMethod, name: &str) -> Result<InjectionReport> {
        self.inject_adapter_with(config, name, InjectOptions::new())
    }

    /// [`inject_adapter`](Self::inject_adapter) with options.
    ///
    /// # Errors
    /// As [`inject_adapter`](Self::inject_adapter).
    fn inject_adapter_with(
        &mut self,
        config: &dyn AdapterMethod,
        name: &str,
        options: InjectOptions,
    ) -> Result<InjectionReport> {
        inject::inject_adapter(self, config, name, options)
    }

    /// Gives the adapter `name`, injected with [`with_eva`](LoraConfig::with_eva), the directions in which the inputs of its
    /// layers vary most, and moves ranks to the layers where they explain most: <https://arxiv.org/abs/2410.07170>.
    ///
    /// `forward` runs the model on one batch of `batches`; the adapters do not act meanwhile. Only linear layers are
    /// changed; those that end without a rank lose the adapter. The adapter's variables are new ones: an optimiser that was
    /// made before holds others, and is made anew.
    ///
    /// # Errors
    /// [`Error::UnknownAdapter`], [`Error::Merged`], [`Error::Unsupported`] if the adapter does not start as EVA does or a
    /// layer was never reached, an error of `forward`, or one that says that the batches have too few rows.
    fn initialise_eva<B>(
        &mut self,
        name: &str,
        batches: impl IntoIterator<Item = B>,
        forward: impl FnMut(&Self, B) -> candle_core::Result<Tensor>,
    ) -> Result<InjectionReport> {
        initialise_eva(self, name, batches, forward)
    }

    /// Injects an adapter with the tensors in `state`: its layers and ranks are read off the keys and shapes, everything
    /// else (alpha, for example) is as in `config`.
    ///
    /// # Errors
    /// As [`inject_adapter`](Self::inject_adapter), and [`Error::Tensors`] if a key belongs to no layer.
    fn inject_adapter_from_state_dict(
        &mut self,
        state: &BTreeMap<String, Tensor>,
        config: &dyn AdapterMethod,
        name: &str,
    ) -> Result<InjectionReport> {
        store::inject_adapter_from_state_dict(self, state, config, name)
    }

    /// The config that `#[peft(lora(…))]` declares, if the model has that attribute.
    fn declared_config() -> Option<LoraConfig>
    where
        Self: Sized,
    {
        LoraConfig::declared(&Self::DECLARED, Self::SCHEMA)
    }

    /// Injects the config that the model declares.
    ///
    /// # Errors
    /// [`ConfigError::NotDeclared`], and as [`inject_adapter`](Self::inject_adapter).
    fn inject_declared(&mut self, name: &str) -> Result<InjectionReport>
    where
        Self: Sized,
    {
        let config = Self::declared_config()
            .ok_or(Error::Config(ConfigError::NotDeclared { model: Self::SCHEMA.name() }))?;
        self.inject_adapter(&config, name)
    }

    /// The names of the model's adapters.
    fn adapter_names(&self) -> Vec<String> {
        manage::adapter_names(&leaves(self))
    }

    /// The settings of an adapter.
    ///
    /// # Errors
    /// [`Error::UnknownAdapter`].
    fn adapter_config(&self, name: &str) -> Result<Arc<dyn AdapterMethod>> {
        manage::method_of(self, name)
    }

    /// The names of the active adapters, in the order in which they act.
    fn active_adapters(&self) -> Vec<String> {
        manage::active_adapters(self)
    }

    /// Makes one adapter the only active one; what is merged is unmerged first.
    ///
    /// # Errors
    /// [`Error::UnknownAdapter`].
    fn set_adapter(&mut self, name: &str) -> Result<()> {
        manage::set_active(self, &[name])
    }

    /// Makes exactly these adapters active, in this order; what is merged is unmerged first.
    ///
    /// # Errors
    /// [`Error::UnknownAdapter`], or [`Error::CopiesCollide`] if two of them train a copy of the same module.
    fn set_adapters(&mut self, names: &[&str]) -> Result<()> {
        manage::set_active(self, names)
    }

    /// Lets adapters act again after [`disable_adapters`](Self::disable_adapters).
    fn enable_adapters(&mut self) {
        manage::set_enabled(self, true);
    }

    /// Lets the model compute what it computed without adapters, also where they are merged.
    fn disable_adapters(&mut self) {
        manage::set_enabled(self, false);
    }

    /// Turns dropout on: that of adapters, and the model's own where it is an [`nn::Dropout`](crate::nn::Dropout). A model
    /// starts in evaluation mode; its first adapter finds it in the mode it is in.
    fn train(&mut self) {
        manage::set_training(self, true);
    }

    /// Turns dropout off.
    fn eval(&mut self) {
        manage::set_training(self, false);
    }

    /// Says whether an adapter's tensors are part of the graph: those of an injected adapter are, those of a loaded one
    /// only if it was loaded for training.
    ///
    /// # Errors
    /// [`Error::UnknownAdapter`].
    fn set_trainable(&mut self, name: &str, trainable: bool) -> Result<()> {
        manage::set_trainable(self, name, trainable)
    }

    /// The variables that train, in model order: those of the active adapters, and never one of the base model, except
    /// biases that a config asks for.
    fn trainable_parameters(&self) -> Vec<(String, Var)> {
        manage::trainable_parameters(self)
    }

    /// Multiplies an adapter's scaling by `factor` on every layer. Files do not keep it.
    ///
    /// # Errors
    /// [`Error::UnknownAdapter`], [`Error::Merged`], or [`Error::Unsupported`] for a method without a scaling.
    fn scale_adapter(&mut self, name: &str, factor: f64) -> Result<()> {
        manage::scale_adapter(self, name, factor)
    }

    /// Merges adapters into the weights, so that a forward pass costs what the base model's costs.
    ///
    /// The layers' own weights are kept next to the merged ones until
    /// [`unmerge_adapters`](Self::unmerge_adapters). Active adapters that are not merged do not act on merged layers.
    ///
    /// # Errors
    /// [`Error::UnknownAdapter`], [`Error::CannotMerge`], or [`Error::NotFinite`] if that is checked.
    fn merge_adapters(&mut self, options: &MergeOptions) -> Result<()> {
        manage::merge_adapters(self, options)
    }

    /// Lets the layers' own weights act again, bit for bit.
    ///
    /// # Errors
    /// If a layer refuses its own parameters.
    fn unmerge_adapters(&mut self) -> Result<()> {
        manage::unmerge_adapters(self)
    }

    /// Merges adapters for good and makes every layer a plain one again.
    ///
    /// # Errors
    /// As [`merge_adapters`](Self::merge_adapters).
    fn merge_and_unload(&mut self, options: &MergeOptions) -> Result<()> {
        manage::merge_and_unload(self, options)
    }

    /// Merges adapters for good, also into layers whose weights are quantized: those are dense for the length of the sum, one
    /// at a time, and then quantized to the type that they had. The report has the error that this costs, layer by layer.
    ///
    /// # Errors
    /// As [`merge_adapters`](Self::merge_adapters); the model is then as it was.
    fn merge_and_requantize(&mut self, options: &MergeOptions) -> Result<RequantizeReport> {
        manage::merge_and_requantize(self, options)
    }

    /// Takes all adapters off. What is merged stays merged, and the full copies of active adapters stay.
    ///
    /// # Errors
    /// If a layer refuses its own parameters.
    fn unload(&mut self) -> Result<()> {
        manage::unload(self)
    }

    /// Deletes an adapter. If it was the only active one, each layer's first other adapter by name becomes active.
    ///
    /// # Errors
    /// [`Error::UnknownAdapter`] or [`Error::Merged`].
    fn delete_adapter(&mut self, name: &str) -> Result<()> {
        manage::delete_adapter(self, name)
    }

    /// Makes a new adapter out of several, each with a weight; it is frozen, and not active.
    ///
    /// # Errors
    /// [`Error::UnknownAdapter`]; [`Error::Unsupported`] if the adapters do not go together; [`Error::CopiesCollide`] if
    /// more than one of them trains a copy of the same module; [`Error::Plan`] if the name is taken.
    fn add_weighted_adapter(
        &mut self,
        adapters: &[(&str, f64)],
        name: &str,
        options: &CombineOptions,
    ) -> Result<InjectionReport> {
        manage::add_weighted_adapter(self, adapters, name, options)
    }

    /// Gives an adapter another name.
    ///
    /// # Errors
    /// [`Error::UnknownAdapter`], or [`Error::Plan`] if the new name is taken or none that an adapter can have.
    fn rename_adapter(&mut self, name: &str, new_name: &str) -> Result<()> {
        manage::rename_adapter(self, name, new_name)
    }

    /// Runs `f` with row `i` of every batch computed by the adapter `rows[i]`, or by none for `__base__`.
    ///
    /// The model is shared: several threads may route differently at the same time.
    ///
    /// # Errors
    /// [`Error::UnknownAdapter`], or [`Error::Routing`] in training mode or where adapters are merged.
    fn with_adapter_rows<S: AsRef<str>, T>(&self, rows: &[S], f: impl FnOnce(&Self) -> T) -> Result<T> {
        manage::with_adapter_rows(self, rows, f)
    }

    /// The adapter's tensors under the keys PEFT's files have; copies, which later training does not change.
    ///
    /// # Errors
    /// [`Error::UnknownAdapter`].
    fn adapter_state_dict(&self, name: &str) -> Result<BTreeMap<String, Tensor>> {
        store::adapter_state_dict(self, name)
    }

    /// Gives an adapter the values in `state`, which has to hold exactly its keys, with or without PEFT's prefix.
    ///
    /// # Errors
    /// [`Error::UnknownAdapter`], [`Error::Merged`], or [`Error::Tensors`] with all that is missing, unexpected or has
    /// another shape.
    fn load_adapter_state_dict(&mut self, state: &BTreeMap<String, Tensor>, name: &str) -> Result<()> {
        store::load_adapter_state_dict(self, state, name)
    }

    /// The base model's own parameters under the names they had before any injection; quantized weights are not among
    /// them.
    fn base_state_dict(&self) -> BTreeMap<String, Tensor> {
        store::base_state_dict(self)
    }

    /// Gives the base model's own parameters other values, under the names they had before any injection. Of tied
    /// parameters one name is enough.
    ///
    /// # Errors
    /// [`Error::BaseTensors`] with all that is missing, unexpected or has another shape; [`Error::Merged`].
    fn load_base_state_dict(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        store::load_base_state_dict(self, state)
    }

    /// The base model's parameters as they act now: those of layers with merged adapters have them in, and a full copy that
    /// acts stands in for its module.
    fn merged_state_dict(&self) -> BTreeMap<String, Tensor> {
        store::merged_state_dict(self)
    }

    /// Writes an adapter as PEFT does: config, weights and model card; returns the folder.
    ///
    /// An adapter that is not called `default` gets a subfolder of its name.
    ///
    /// # Errors
    /// [`Error::UnknownAdapter`], or [`Error::Io`]; the files that were there are then untouched.
    fn save_pretrained(&self, folder: impl AsRef<Path>, name: &str) -> Result<PathBuf> {
        self.save_pretrained_with(folder, name, SaveOptions::new())
    }

    /// Writes an adapter as [`save_pretrained`](Self::save_pretrained) does, with options.
    ///
    /// # Errors
    /// As [`save_pretrained`](Self::save_pretrained); [`Error::Unsupported`] if the adapter has no such form.
    fn save_pretrained_with(
        &self,
        folder: impl AsRef<Path>,
        name: &str,
        options: SaveOptions,
    ) -> Result<PathBuf> {
        store::save_pretrained(self, folder.as_ref(), name, options)
    }

    /// Loads the adapter in `folder`, or in its subfolder `name`, for inference.
    ///
    /// It may be in any format that [`StoredAdapter::open`](crate::StoredAdapter::open) reads, and a file instead of a folder.
    /// Modules that are only wrapped otherwise than in the model (`model`, `language_model`, …) are found.
    ///
    /// # Errors
    /// An error that names the file if it cannot be read, if the config does not fit the model, or if the tensors are not
    /// exactly those the adapter needs; [`AdapterFileError`](crate::error::AdapterFileError) if the file is no adapter, or needs
    /// more of its base model than the model tells, such as the number of heads.
    fn load_adapter(&mut self, folder: impl AsRef<Path>, name: &str) -> Result<LoadReport> {
        self.load_adapter_with(folder, name, LoadOptions::new())
    }

    /// Loads the adapter in `folder`, or in its subfolder `name`.
    ///
    /// # Errors
    /// As [`load_adapter`](Self::load_adapter).
    fn load_adapter_with(
        &mut self,
        folder: impl AsRef<Path>,
        name: &str,
        options: LoadOptions,
    ) -> Result<LoadReport> {
        store::load_adapter(self, folder.as_ref(), name, options)
    }

    /// Puts the adapter in `folder`, or in its subfolder `name`, in the place of the adapter called `name`. It may have
    /// other ranks, another scaling, other layers; it is active and trainable as the one before was. Its variables are new
    /// ones: an optimiser that was made before holds others, and is made anew.
    ///
    /// [Swapping while serving](crate#swapping-while-serving) shows it under a lock.
    ///
    /// # Errors
    /// [`Error::UnknownAdapter`], [`Error::Merged`], and as [`load_adapter`](Self::load_adapter); the adapter that was
    /// there then stays.
    fn hotswap_adapter(&mut self, folder: impl AsRef<Path>, name: &str) -> Result<LoadReport> {
        store::hotswap_adapter(self, folder.as_ref(), name)
    }

    /// What each layer with a place for adapters has of them, in model order.
    fn layer_status(&self) -> Vec<LayerStatus> {
        display::layer_status(self)
    }

    /// What the model has of adapters, and what its layers disagree on.
    ///
    /// # Errors
    /// [`Error::NoAdapters`].
    fn model_status(&self) -> Result<ModelStatus> {
        display::model_status(self)
    }

    /// The module tree as PyTorch and PEFT print it.
    fn module_tree(&self) -> String {
        display::module_tree(self)
    }

    /// PEFT's line of trainable parameters.
    fn trainable_summary(&self) -> String {
        display::trainable_summary(self)
    }
}

impl<M: Injectable> PeftModel for M {}
