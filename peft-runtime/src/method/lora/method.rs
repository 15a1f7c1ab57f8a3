//! LoRA as a method.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::config::{LoraConfig, LoraSettings};
use super::default_targets::default_targets;
use super::init::LoraInit;
use super::unimplemented::{is_idle_lora_field, unimplemented_lora_fields};
use super::{BIAS_KEY, EMBEDDING_KEYS, LAYER_KEYS, combination, dora, tying};
use crate::adapter::{
    AdapterMethod, Built, Combination, Combined, Geometry, KeyedShapes, LayerSettings, LayerShapes,
    PlainLora, Selection, Shared, Site, TensorSource, convolution_of, linear_of,
};
use crate::config::{Bias, CombineOptions, ConfigFault, ModuleFields, unmatched_sizes};
use crate::declared::Declared;
use crate::error::{Fault, Result};
use crate::method::{AdapterConfig, FiltersBlocks, Method, TrainableTokens};
use crate::path::ModulePath;
use crate::schema::LayerKind;
use crate::select::TargetModules;

impl FiltersBlocks for LoraSettings {}

impl Method for LoraSettings {
    const PEFT_TYPE: &'static str = "LORA";
    const NAME: &'static str = "LoRA";
    const KEY_PREFIX: &'static str = "lora_";
    const FILTERS_BLOCKS: bool = true;
    const HAS_SCALING: bool = true;

    fn unimplemented_fields() -> Vec<(&'static str, Value)> {
        unimplemented_lora_fields()
    }

    fn is_idle(field: &str, value: &Value, fields: &Map<String, Value>) -> bool {
        is_idle_lora_field(field, value, fields)
    }

    fn faults(config: &LoraConfig) -> Vec<ConfigFault> {
        config.settings.faults()
    }

    fn selection<'c>(config: &'c LoraConfig, selection: Selection<'c>) -> Selection<'c> {
        Selection {
            tokens: config.trainable_tokens(),
            parameters: config.target_parameters(),
            replication: config.layer_replication(),
            ties: config.weight_tying(),
            ..selection
        }
    }

    fn tied(
        config: &LoraConfig,
        embedding: &ModulePath,
        head: &ModulePath,
    ) -> Result<Option<(LoraConfig, Shared)>, Fault> {
        tying::tied(config, embedding, head)
    }

    fn with_declared(
        config: &LoraConfig,
        declared: &Declared,
        model_type: Option<&str>,
    ) -> Option<LoraConfig> {
        if config.targets().is_some() {
            return None;
        }
        if !config.target_parameters().is_empty() {
            // Only parameters, as in PEFT.
            return Some(config.clone().with_targets(Vec::<String>::new()));
        }
        let targets = declared.target_modules().or_else(|| model_type.and_then(default_targets));
        let modules = ModuleFields { targets, ..config.modules.clone() };
        Some(AdapterConfig { modules, ..config.clone() })
    }

    fn default_targets(model_type: &str) -> Option<TargetModules> {
        default_targets(model_type)
    }

    fn plan_layer(
        config: &LoraConfig,
        path: &ModulePath,
        kind: LayerKind,
        geometry: &Geometry,
    ) -> Result<LayerSettings, Fault> {
        let (rank, scaling) = config.plan(path, kind, geometry)?;
        Ok(LayerSettings::new().with_size(rank, scaling).with_changed_bias(config.lora_bias()))
    }

    fn build(
        config: &LoraConfig,
        site: &Site<'_>,
        settings: &LayerSettings,
        source: &mut dyn TensorSource,
    ) -> Result<Built> {
        let size = (settings.rank.unwrap_or_default(), settings.scaling.unwrap_or_default());
        config.build_layer(site, size, source)
    }

    fn build_tokens(site: &Site<'_>, tokens: &[u32], source: &mut dyn TensorSource) -> Result<Built> {
        TrainableTokens::build(site, tokens, source)
    }

    fn set_transposed(&mut self, transposed: bool) {
        self.fan_in_fan_out = transposed;
    }

    fn is_transposed(&self) -> bool {
        self.fan_in_fan_out
    }

    fn bias(&self) -> Bias {
        self.bias
    }

    fn changes_base(&self) -> bool {
        self.init.changes_base()
    }

    fn unsavable(&self) -> Option<String> {
        let randomised = matches!(self.init, LoraInit::PissaIterations(_));
        randomised.then(|| {
            "what its randomised init took out of the base weights cannot be found again; save it as plain LoRA"
                .to_owned()
        })
    }

    fn unmatched_patterns(config: &LoraConfig, paths: &[&str]) -> Result<Vec<(&'static str, String)>, Fault> {
        unmatched_sizes(&config.settings.rank_pattern, &config.settings.alpha_pattern, paths)
    }

    fn for_tensors(config: &LoraConfig, keyed: &KeyedShapes<'_>) -> Result<LoraConfig> {
        let ranks = keyed.sizes(&[LAYER_KEYS.a, EMBEDDING_KEYS.a], 0);
        let (has_lengths, has_bias) = (keyed.any(dora::KEY), keyed.any(BIAS_KEY));
        Ok(config.clone().with_dora(has_lengths).with_lora_bias(has_bias).with_ranks(&ranks))
    }

    fn combine(_: &LoraConfig, request: &Combination<'_>) -> Result<Combined> {
        combination::combine(request)
    }

    fn restarts_from_base(key: &str, options: &CombineOptions) -> Option<&'static str> {
        match key {
            TrainableTokens::KEY => Some("the rows"),
            dora::KEY if options.restarts => Some("the magnitudes"),
            _ => None,
        }
    }

    fn key_ends() -> &'static [&'static str] {
        &[
            LAYER_KEYS.a,
            LAYER_KEYS.b,
            BIAS_KEY,
            EMBEDDING_KEYS.a,
            EMBEDDING_KEYS.b,
            dora::KEY,
            dora::LAYER_KEY,
            TrainableTokens::KEY,
        ]
    }

    fn inert_key_ends() -> &'static [&'static str] {
        &[TrainableTokens::ORIGINAL_KEY]
    }

    fn canonical_key(key: &str) -> &str {
        // PEFT has written DoRA's magnitudes under two names.
        match key.strip_suffix(dora::LAYER_KEY) {
            Some(path) if path.ends_with('.') => &key[..path.len() + dora::KEY.len()],
            _ => key,
        }
    }

    fn geometry(
        _: &LoraConfig,
        shapes: &LayerShapes,
        weight: Option<&[usize]>,
        transposed: bool,
    ) -> Option<Geometry> {
        let shape = |key: &str| shapes.get(key).map(Vec::as_slice);
        if let (Some(&[_, vocabulary]), Some(&[features, _])) =
            (shape(EMBEDDING_KEYS.a), shape(EMBEDDING_KEYS.b))
        {
            return Some(Geometry::Embedding { vocabulary, features, padding: None });
        }
        match (shape(LAYER_KEYS.a), shape(LAYER_KEYS.b)) {
            (Some(&[_, in_features]), Some(&[out_features, _])) => {
                Some(linear_of(in_features, out_features, weight, transposed))
            }
            (Some(&[rank, in_channels, ref kernel @ ..]), Some(&[out_channels, group_ranks, ..])) => {
                Some(convolution_of(in_channels, out_channels, kernel, rank / group_ranks.max(1)))
            }
            _ => TrainableTokens::geometry(shapes, weight),
        }
    }

    fn without_model(config: &LoraConfig, layers: &BTreeMap<&str, Vec<&str>>) -> LoraConfig {
        let trainable_token_indices = TrainableTokens::by_name(config.trainable_tokens(), layers);
        let named = config.with_settings(LoraSettings { trainable_token_indices, ..config.settings.clone() });
        let adapted = layers.iter().filter(|(_, ends)| !ends.contains(&TrainableTokens::KEY));
        tying::untied(named, adapted.map(|(path, _)| *path))
    }

    fn without_base(config: &LoraConfig) -> LoraConfig {
        let config = config.clone();
        // A file's factors do not come from the base weights.
        if config.init().changes_base() { config.with_init(LoraInit::Default) } else { config }
    }

    fn for_original_base(config: &LoraConfig) -> Option<Arc<dyn AdapterMethod>> {
        Some(Arc::new(config.doubled()))
    }

    fn check_plain_lora(config: &LoraConfig, has_base: bool) -> Result<(), String> {
        if config.use_dora() {
            return Err(
                "DoRA's magnitudes are not a low-rank update; merge it into the base model".to_owned()
            );
        }
        if config.init().changes_base() && !has_base {
            return Err(format!(
                "its init `{}` changed the base weights, and what it took out is found there; give the base model",
                config.init().describe()
            ));
        }
        Ok(())
    }

    fn plain_lora(config: &LoraConfig, ranks: &BTreeMap<&str, usize>) -> Result<Option<PlainLora>> {
        let plain = config.plain(ranks);
        Ok(Some(PlainLora { alpha: plain.alpha(), method: Arc::new(plain) }))
    }
}

#[cfg(test)]
mod tests {
    use crate::adapter::Geometry;
    use crate::method::testing::{linear, shapes};
    use crate::method::{LoraConfig, LoraSettings, Method};

    #[test]
    fn keys_are_taken_apart_where_the_method_begins() {
        assert_eq!(LoraSettings::split_key("a.b.lora_A.weight"), Some(("a.b", "lora_A.weight")));
        assert_eq!(LoraSettings::split_key("a.lora_B.bias"), Some(("a", "lora_B.bias")));
        let tokens = "e.token_adapter.trainable_tokens_delta";
        assert_eq!(LoraSettings::split_key(tokens), Some(("e", "token_adapter.trainable_tokens_delta")));
        assert_eq!(LoraSettings::split_key("classifier.weight"), None);
        assert_eq!(LoraSettings::split_key("net.lora_head.weight"), None);
        assert_eq!(
            LoraSettings::split_key("net.lora_A.lora_A.weight"),
            Some(("net.lora_A", "lora_A.weight"))
        );
        assert_eq!(LoraSettings::split_key("e.token_adapter.base_layer.weight"), None);
    }

    #[test]
    fn the_weight_tells_how_it_lies_unless_it_is_square() {
        let lora = shapes(&[("lora_A.weight", &[2, 5]), ("lora_B.weight", &[7, 2])]);
        assert_eq!(LoraSettings::geometry(&LoraConfig::default(), &lora, None, true), linear(5, 7, true));
        assert_eq!(
            LoraSettings::geometry(&LoraConfig::default(), &lora, Some(&[7, 5]), true),
            linear(5, 7, false)
        );
        assert_eq!(
            LoraSettings::geometry(&LoraConfig::default(), &lora, Some(&[5, 7]), false),
            linear(5, 7, true)
        );
        // Part of a fused weight: the other side is longer.
        assert_eq!(
            LoraSettings::geometry(&LoraConfig::default(), &lora, Some(&[21, 5]), true),
            linear(5, 7, false)
        );
        let square = shapes(&[("lora_A.weight", &[2, 5]), ("lora_B.weight", &[5, 2])]);
        assert_eq!(
            LoraSettings::geometry(&LoraConfig::default(), &square, Some(&[5, 5]), true),
            linear(5, 5, true)
        );
        assert_eq!(LoraSettings::geometry(&LoraConfig::default(), &shapes(&[]), Some(&[5, 7]), false), None);
    }

    #[test]
    fn groups_follow_from_the_factors() {
        let lora = shapes(&[("lora_A.weight", &[4, 6, 3, 3]), ("lora_B.weight", &[8, 2, 1, 1])]);
        let Some(Geometry::Conv { in_channels, out_channels, kernel, settings }) =
            LoraSettings::geometry(&LoraConfig::default(), &lora, None, false)
        else {
            panic!("no convolution");
        };
        assert_eq!((in_channels, out_channels, kernel.as_slice(), settings.groups), (6, 8, &[3, 3][..], 2));
    }
}
