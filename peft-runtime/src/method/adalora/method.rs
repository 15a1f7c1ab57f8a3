//! AdaLoRA as a method.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, RwLock};

use candle_core::Var;
use serde_json::{Map, Value, json};

use super::config::{AdaLoraConfig, AdaLoraSettings};
use super::default_targets::default_targets;
use super::{A, AdaLora, B, E, RANK_NUMBER};
use crate::adapter::{
    Adapter, Built, Geometry, Init, KeyedShapes, LayerSettings, LayerShapes, PlainLora, Selection, Site,
    TensorSource, convolution_of, linear_of,
};
use crate::config::{Bias, ConfigFault};
use crate::error::{Fault, Result, StateDictError};
use crate::method::lora::{LoraConfig, LoraSettings, is_idle_lora_field, unimplemented_lora_fields};
use crate::method::{FiltersBlocks, Method, TrainableTokens};
use crate::path::ModulePath;
use crate::schema::LayerKind;
use crate::select::TargetModules;

/// The fields of the file that LoRA's does not have, or that mean something else there.
const OWN_FIELDS: [&str; 10] = [
    "beta1",
    "beta2",
    "deltaT",
    "init_r",
    "orth_reg_weight",
    "rank_pattern",
    "target_r",
    "tfinal",
    "tinit",
    "total_step",
];

impl FiltersBlocks for AdaLoraSettings {}

impl Method for AdaLoraSettings {
    const PEFT_TYPE: &'static str = "ADALORA";
    const NAME: &'static str = "AdaLoRA";
    const KEY_PREFIX: &'static str = "lora_";
    const FILTERS_BLOCKS: bool = true;
    const HAS_SCALING: bool = true;

    fn key_ends() -> &'static [&'static str] {
        &[A, B, E, TrainableTokens::KEY]
    }

    fn inert_key_ends() -> &'static [&'static str] {
        &[RANK_NUMBER, TrainableTokens::ORIGINAL_KEY]
    }

    fn unimplemented_fields() -> Vec<(&'static str, Value)> {
        let mut fields = unimplemented_lora_fields();
        fields.extend([
            ("ensure_weight_tying", json!(false)),
            ("target_parameters", Value::Null),
            ("use_dora", json!(false)),
        ]);
        fields
    }

    fn is_idle(field: &str, value: &Value, fields: &Map<String, Value>) -> bool {
        is_idle_lora_field(field, value, fields)
    }

    fn ignored_fields() -> Vec<(&'static str, Value)> {
        vec![
            ("alpha_pattern", json!({})),
            ("eva_config", Value::Null),
            ("loftq_config", json!({})),
            ("lora_bias", json!(false)),
            ("r", json!(8)),
            ("use_rslora", json!(false)),
        ]
    }

    fn faults(config: &AdaLoraConfig) -> Vec<ConfigFault> {
        config.settings.faults()
    }

    fn selection<'c>(config: &'c AdaLoraConfig, selection: Selection<'c>) -> Selection<'c> {
        let replication = config.settings.layer_replication.as_deref().unwrap_or_default();
        Selection { tokens: config.trainable_tokens(), replication, ..selection }
    }

    fn build_tokens(site: &Site<'_>, tokens: &[u32], source: &mut dyn TensorSource) -> Result<Built> {
        TrainableTokens::build(site, tokens, source)
    }

    fn without_model(config: &AdaLoraConfig, layers: &BTreeMap<&str, Vec<&str>>) -> AdaLoraConfig {
        let trainable_token_indices = TrainableTokens::by_name(config.trainable_tokens(), layers);
        config.with_settings(AdaLoraSettings { trainable_token_indices, ..config.settings.clone() })
    }

    fn default_targets(model_type: &str) -> Option<TargetModules> {
        default_targets(model_type)
    }

    fn plan_layer(
        config: &AdaLoraConfig,
        path: &ModulePath,
        kind: LayerKind,
        geometry: &Geometry,
    ) -> Result<LayerSettings, Fault> {
        let reason = match geometry {
            Geometry::Linear { .. } => None,
            Geometry::Conv { kernel, settings, .. } if kernel.len() == 2 && settings.groups == 1 => None,
            Geometry::Conv { settings, .. } if settings.groups > 1 => {
                Some(format!("its {} groups leave the product no place in the kernel", settings.groups))
            }
            _ => Some("AdaLoRA adapts linear layers and two-dimensional convolutions".to_owned()),
        };
        match reason {
            Some(reason) => Err(Fault::unsupported_layer(path, kind, Self::NAME, reason)),
            None => Ok(LayerSettings::new().with_size(config.init_rank(), config.scaling())),
        }
    }

    fn build(
        config: &AdaLoraConfig,
        site: &Site<'_>,
        settings: &LayerSettings,
        source: &mut dyn TensorSource,
    ) -> Result<Built> {
        let geometry = site.geometry.clone();
        let kept = config.kept_ranks(site.path.as_str()).map(<[bool]>::to_vec);
        let rank = match (&kept, source.is_fresh()) {
            (Some(kept), false) => kept.iter().filter(|keep| **keep).count(),
            _ => config.init_rank(),
        };
        let small = || if config.starts_as_zeros() { Init::Normal(0.02) } else { Init::Normal(1.0) };
        let init_e = if config.starts_as_zeros() { Init::Constant(0.0) } else { Init::Normal(1.0) };
        let a = source.tensor(A, &[rank, geometry.fan_in()], small())?;
        let b = source.tensor(B, &[geometry.out_features(), rank], small())?;
        let e = source.tensor(E, &[rank, 1], init_e)?;
        #[expect(clippy::cast_precision_loss, reason = "a rank is far below 2^53")]
        let left = if rank == 0 { 0.0 } else { config.init_rank() as f32 };
        let rank_number = Var::new(&[left], site.device)?;
        let scaling = settings.scaling.unwrap_or_else(|| config.scaling());
        let kept = Arc::new(RwLock::new(kept.filter(|_| !source.is_fresh())));
        let adapter = AdaLora { a, b, e, rank_number, scaling, dropout: config.dropout(), geometry, kept };
        Ok(Built::new(Arc::new(adapter)))
    }

    fn geometry(
        _: &AdaLoraConfig,
        shapes: &LayerShapes,
        weight: Option<&[usize]>,
        transposed: bool,
    ) -> Option<Geometry> {
        let shape = |key: &str| shapes.get(key).map(Vec::as_slice);
        let (Some(&[_, fan_in]), Some(&[out_features, _])) = (shape(A), shape(B)) else {
            return TrainableTokens::geometry(shapes, weight);
        };
        Some(match weight {
            Some(&[out_channels, in_channels, ref kernel @ ..]) if !kernel.is_empty() => {
                convolution_of(in_channels, out_channels, kernel, 1)
            }
            _ => linear_of(fan_in, out_features, weight, transposed),
        })
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

    fn for_file(config: &AdaLoraConfig, adapters: &[(&ModulePath, &dyn Adapter)]) -> Option<AdaLoraConfig> {
        // A config on its own says itself what is kept.
        if adapters.is_empty() {
            return None;
        }
        let kept = |(path, adapter): &(&ModulePath, &dyn Adapter)| {
            Some((path.as_str().to_owned(), adapter.downcast_ref::<AdaLora>()?.kept_ranks()?))
        };
        Some(config.with_kept_ranks(adapters.iter().filter_map(kept).collect()))
    }

    fn unmatched_patterns(
        config: &AdaLoraConfig,
        paths: &[&str],
    ) -> Result<Vec<(&'static str, String)>, Fault> {
        let paths: BTreeSet<&str> = paths.iter().copied().collect();
        let unmatched = config.kept_paths().filter(|path| !paths.contains(path));
        Ok(unmatched.map(|path| ("rank_pattern", path.to_owned())).collect())
    }

    fn for_tensors(config: &AdaLoraConfig, keyed: &KeyedShapes<'_>) -> Result<AdaLoraConfig> {
        let ranks = keyed.sizes(&[E], 0);
        if let Some((path, rank)) = ranks.iter().find(|(_, rank)| **rank > config.init_rank()) {
            let (path, rank, most) = ((*path).to_owned(), *rank, config.init_rank());
            return Err(StateDictError::RankOverConfig { path, rank, field: "init_r", most }.into());
        }
        let kept = ranks.iter().filter(|(_, rank)| **rank < config.init_rank()).map(|(path, rank)| {
            ((*path).to_owned(), (0..config.init_rank()).map(|position| position < *rank).collect())
        });
        Ok(config.with_kept_ranks(kept.collect()))
    }

    fn check_plain_lora(_: &AdaLoraConfig, _: bool) -> Result<(), String> {
        Ok(())
    }

    fn plain_lora(config: &AdaLoraConfig, ranks: &BTreeMap<&str, usize>) -> Result<Option<PlainLora>> {
        LoraSettings::plain_lora(&as_lora(config)?, ranks)
    }
}

/// The config of the same modules, for LoRA.
fn as_lora(config: &AdaLoraConfig) -> Result<LoraConfig> {
    let mut value: Value = serde_json::from_str(&config.to_json()?)?;
    if let Value::Object(fields) = &mut value {
        for field in OWN_FIELDS {
            fields.remove(field);
        }
        fields.insert("peft_type".to_owned(), json!(LoraSettings::PEFT_TYPE));
        fields.insert("r".to_owned(), json!(config.init_rank()));
        fields.insert("init_lora_weights".to_owned(), json!(true));
    }
    LoraConfig::from_json(&value.to_string())
}
