//! Adapters as plain LoRA: for the base model as it was, with their scaling in the factors.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use serde_json::{Value, json};

use super::layers::NAME;
use super::skeleton::Skeleton;
use super::{BaseWeights, StoredAdapter};
use crate::ModulePath;
use crate::adapter::{AdaLora, Adapter, PlainFactors};
use crate::config::{AdaLoraConfig, ConfigFields, LoraConfig, PeftConfig};
use crate::error::{Error, Result};
use crate::layer::Slot;
use crate::module::leaves;
use crate::store::keys::with_prefix;

/// The fields of AdaLoRA's config that LoRA's does not have, or means otherwise.
const ADALORA_FIELDS: [&str; 10] = [
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

/// The end of the key of A on every layer but an embedding.
const LAYER_A: &str = "lora_A.weight";

impl StoredAdapter {
    /// The adapter as plain LoRA, which every reader of LoRA takes: alpha is the rank, and the true scaling of each layer is
    /// in its B.
    ///
    /// AdaLoRA's singular values go into A. An adapter whose init changed the base weights (PiSSA, OLoRA, LoftQ) gets twice
    /// the rank and is then for the base model as it was, which is needed for that; with LoftQ the result is exact at full
    /// rank with alpha equal to the rank alone. Tensors that are none of the factors stay as they are.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for IA3 and DoRA, which are no low-rank updates, and where the base model is needed and not
    /// given.
    pub fn to_plain_lora(&self, base: Option<&BaseWeights>) -> Result<Self> {
        let config = match self.config() {
            PeftConfig::Lora(config) => {
                self.check_plain(config, base)?;
                config.clone()
            }
            PeftConfig::AdaLora(config) => as_lora(config)?,
            PeftConfig::Ia3(_) => {
                return Err(self.not_plain("IA3 scales inputs and outputs, which no low-rank update does"));
            }
        };
        let mut skeleton = Skeleton::of(&[self], base)?;
        skeleton.load(self, &self.explicit_config(), NAME)?;
        let mut layers: Vec<(ModulePath, PlainFactors)> = Vec::new();
        for (path, leaf) in leaves(&skeleton) {
            let adapter = leaf.stack().and_then(|stack| stack.slot(NAME)).and_then(Slot::adapter);
            let Some(adapter) = adapter else { continue };
            if let Some(factors) = plain_factors(adapter.as_ref()).map_err(Error::on_layer(&path))? {
                layers.push((path, factors));
            }
        }
        let ranks = layers
            .iter()
            .filter_map(|(path, factors)| Some((path.as_str(), factors.a.1.dims().first().copied()?)));
        let ranks: BTreeMap<&str, usize> = ranks.collect();
        let plain = config.plain(&ranks);
        let restores = config.init().changes_base();
        let mut tensors = self.tensors(&Device::Cpu)?;
        for (path, factors) in &layers {
            if restores && factors.a.0 == LAYER_A {
                // What the init had left of the weight: the plain adapter is for all of it.
                tensors.remove(&with_prefix(&path.parameter("base_layer.weight")));
            }
            let rank = ranks.get(path.as_str()).copied().unwrap_or_default();
            put(&mut tensors, path, factors, scaling_left(&plain, rank)).map_err(Error::on_layer(path))?;
        }
        Self::new(self.name(), plain, tensors)
    }

    fn check_plain(&self, config: &LoraConfig, base: Option<&BaseWeights>) -> Result<()> {
        if config.use_dora() {
            return Err(self.not_plain("DoRA's lengths are no low-rank update; merge it into the base model"));
        }
        if config.init().changes_base() && base.is_none() {
            let init = config.init().describe();
            return Err(self.not_plain(&format!(
                "its init `{init}` changed the base weights, and what it took out is found there; give the base model"
            )));
        }
        Ok(())
    }

    fn not_plain(&self, reason: &str) -> Error {
        let (adapter, reason) = (self.name().to_owned(), reason.to_owned());
        Error::Unsupported { operation: "make plain LoRA of", adapter, reason }
    }
}

fn plain_factors(adapter: &dyn Adapter) -> candle_core::Result<Option<PlainFactors>> {
    if let Some(lora) = adapter.as_lora() {
        return lora.plain_factors().map(Some);
    }
    adapter.as_adalora().map(AdaLora::plain_factors).transpose()
}

/// The scaling that readers of `config` apply at this rank.
fn scaling_left(config: &LoraConfig, rank: usize) -> f64 {
    config.scaling(rank.max(1), config.alpha())
}

/// Puts the factors of one layer in the place of what it had, divided by the scaling that readers apply.
fn put(
    tensors: &mut BTreeMap<String, Tensor>,
    path: &ModulePath,
    factors: &PlainFactors,
    scaling_left: f64,
) -> candle_core::Result<()> {
    for end in ["lora_A", "lora_B", "lora_E"] {
        tensors.remove(&with_prefix(&path.parameter(end)));
    }
    let scale = factors.scaling / scaling_left;
    let mut insert = |end: &str, tensor: Tensor| {
        tensors.insert(with_prefix(&path.parameter(end)), tensor);
    };
    insert(factors.a.0, factors.a.1.clone());
    insert(factors.b.0, (&factors.b.1 * scale)?);
    if let Some((end, bias)) = &factors.bias {
        insert(end, (bias * scale)?);
    }
    Ok(())
}

/// The config of the same modules, for LoRA.
fn as_lora(config: &AdaLoraConfig) -> Result<LoraConfig> {
    let mut value: Value = serde_json::from_str(&config.to_json()?)?;
    if let Value::Object(fields) = &mut value {
        for field in ADALORA_FIELDS {
            fields.remove(field);
        }
        fields.insert("peft_type".to_owned(), json!(LoraConfig::PEFT_TYPE));
        fields.insert("r".to_owned(), json!(config.init_rank()));
        fields.insert("init_lora_weights".to_owned(), json!(true));
    }
    LoraConfig::from_json(&value.to_string())
}
