//! Every config as the rest of the library knows it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::adapter_config::AdapterConfig;
use super::settings::Method;
use super::tokens::TrainableTokens;
use crate::adapter::{
    Adapter, AdapterMethod, Built, Combination, Combined, Geometry, KeyedShapes, LayerSettings, LayerShapes,
    PlainLora, Selection, Site, TensorSource, TiedMethod,
};
use crate::config::{Bias, CombineOptions, CommonFields};
use crate::declared::Declared;
use crate::error::{Fault, Result};
use crate::path::ModulePath;
use crate::schema::LayerKind;
use crate::select::TargetModules;

impl<M: Method> AdapterMethod for AdapterConfig<M> {
    fn peft_type(&self) -> &'static str {
        M::PEFT_TYPE
    }

    fn name(&self) -> &'static str {
        M::NAME
    }

    fn share(&self) -> Arc<dyn AdapterMethod> {
        Arc::new(self.clone())
    }

    fn selection(&self) -> Selection<'_> {
        let selection = Selection {
            targets: self.targets(),
            exclude: self.exclude_modules(),
            modules_to_save: self.modules_to_save(),
            layers_to_transform: self.blocks.layers_to_transform.as_ref(),
            layers_pattern: self.blocks.containers(),
            ..Selection::default()
        };
        M::selection(self, selection)
    }

    fn faults(&self) -> Vec<(&'static str, String)> {
        let mut faults = self.common.faults();
        faults.extend(M::faults(self));
        faults.extend(self.blocks.fault(self.targets()));
        faults
    }

    fn plan_layer(
        &self,
        path: &ModulePath,
        kind: LayerKind,
        geometry: &Geometry,
    ) -> Result<LayerSettings, Fault> {
        M::plan_layer(self, path, kind, geometry)
    }

    fn build(
        &self,
        site: &Site<'_>,
        settings: &LayerSettings,
        source: &mut dyn TensorSource,
    ) -> Result<Built> {
        M::build(self, site, settings, source)
    }

    fn build_tokens(&self, site: &Site<'_>, tokens: &[u32], source: &mut dyn TensorSource) -> Result<Built> {
        M::build_tokens(site, tokens, source)
    }

    fn resolved(&self, targets: TargetModules, transposed: bool) -> Arc<dyn AdapterMethod> {
        let mut resolved = self.clone();
        resolved.modules.targets = Some(targets);
        resolved.settings.set_transposed(transposed);
        Arc::new(M::resolved(resolved))
    }

    fn tied(&self, embedding: &ModulePath, head: &ModulePath) -> Result<Option<TiedMethod>, Fault> {
        let tied = M::tied(self, embedding, head)?;
        Ok(tied.map(|(config, shared)| -> TiedMethod { (Arc::new(config), shared) }))
    }

    fn shortens_targets(&self) -> bool {
        M::SHORTENS_TARGETS
    }

    fn with_declared(&self, declared: &Declared, model_type: Option<&str>) -> Option<Arc<dyn AdapterMethod>> {
        let config = M::with_declared(self, declared, model_type)?;
        Some(Arc::new(config))
    }

    fn unmatched_patterns(&self, paths: &[&str]) -> Result<Vec<(&'static str, String)>, Fault> {
        M::unmatched_patterns(self, paths)
    }

    fn for_tensors(&self, keyed: &KeyedShapes<'_>) -> Result<Arc<dyn AdapterMethod>> {
        let config = M::for_tensors(self, keyed)?;
        Ok(Arc::new(config.for_modules(keyed.paths(), keyed.modules.clone())))
    }

    fn to_json(&self, adapters: &[(&ModulePath, &dyn Adapter)]) -> Result<String> {
        M::for_file(self, adapters).as_ref().unwrap_or(self).to_json()
    }

    fn combine(&self, request: &Combination<'_>) -> Result<Combined> {
        M::combine(self, request)
    }

    fn bias(&self) -> Bias {
        self.settings.bias()
    }

    fn seed(&self) -> u64 {
        self.seed
    }

    fn common(&self) -> &CommonFields {
        &self.common
    }

    fn has_scaling(&self) -> bool {
        M::HAS_SCALING
    }

    fn changes_base(&self) -> bool {
        self.settings.changes_base()
    }

    fn unsavable(&self) -> Option<String> {
        self.settings.unsavable()
    }

    fn is_transposed(&self) -> bool {
        self.settings.is_transposed()
    }

    fn key_prefix(&self) -> &'static str {
        M::KEY_PREFIX
    }

    fn key_ends(&self) -> &'static [&'static str] {
        M::key_ends()
    }

    fn inert_key_ends(&self) -> &'static [&'static str] {
        M::inert_key_ends()
    }

    fn split_key<'k>(&self, key: &'k str) -> Option<(&'k str, &'k str)> {
        M::split_key(key)
    }

    fn canonical_key<'k>(&self, key: &'k str) -> &'k str {
        M::canonical_key(key)
    }

    fn geometry(&self, shapes: &LayerShapes, weight: Option<&[usize]>, transposed: bool) -> Option<Geometry> {
        M::geometry(self, shapes, weight, transposed)
    }

    fn restarts_from_base(&self, key: &str, options: &CombineOptions) -> Option<&'static str> {
        M::restarts_from_base(key, options)
    }

    fn without_model(&self, layers: &BTreeMap<&str, Vec<&str>>) -> Arc<dyn AdapterMethod> {
        let known = M::without_model(self, layers);
        if !AdapterMethod::selection(&known).parameters.is_empty() {
            return Arc::new(known);
        }
        // The file's own layers stand for those that a model's type has by default.
        let is_adapted = |ends: &[&str]| ends.iter().any(|end| !TrainableTokens::has_key(end));
        let adapted = layers.iter().filter(|(_, ends)| is_adapted(ends));
        let paths: BTreeSet<String> = adapted.map(|(path, _)| (*path).to_owned()).collect();
        let own = || (!paths.is_empty()).then_some(TargetModules::Names(paths));
        Arc::new(known.with_default_targets(own).unwrap_or(known))
    }

    fn without_base(&self) -> Arc<dyn AdapterMethod> {
        Arc::new(M::without_base(self))
    }

    fn for_original_base(&self) -> Option<Arc<dyn AdapterMethod>> {
        M::for_original_base(self)
    }

    fn check_plain_lora(&self, has_base: bool) -> Result<(), String> {
        M::check_plain_lora(self, has_base)
    }

    fn plain_lora(&self, ranks: &BTreeMap<&str, usize>) -> Result<Option<PlainLora>> {
        M::plain_lora(self, ranks)
    }
}
