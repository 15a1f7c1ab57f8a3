//! LoRA: y += s·B(A(dropout(x))). <https://arxiv.org/abs/2106.09685>

use std::sync::Arc;

use candle_core::{Tensor, Var};

use super::{
    Adapter, AdapterMethod, AdapterTensor, Call, Component, Geometry, Init, LinearParameters, LowRank,
    MergeError, Selection, Site, TensorSource,
};
use crate::ModulePath;
use crate::config::{Bias, Chosen, CommonFields, ConfigFields, LoraConfig, LoraInit, PatternMap};
use crate::error::{Error, Fault, Result};
use crate::ops::{add_promoted, promoted};
use crate::schema::{Family, LayerKind};
use crate::select::TargetModules;

/// The LoRA state of one layer: A `[rank, in]` and B `[out, rank]`, for a convolution with the kernel's dimensions.
#[derive(Clone, Debug)]
pub struct Lora {
    keys: Keys,
    rank: usize,
    a: Var,
    b: Var,
    b_bias: Option<Var>,
    scaling: f64,
    dropout: f64,
    geometry: Geometry,
}

/// The names of the factors: embeddings have names of their own.
#[derive(Clone, Copy, Debug)]
struct Keys {
    a: &'static str,
    b: &'static str,
}

const LAYER_KEYS: Keys = Keys { a: "lora_A.weight", b: "lora_B.weight" };
const EMBEDDING_KEYS: Keys = Keys { a: "lora_embedding_A", b: "lora_embedding_B" };
const BIAS_KEY: &str = "lora_B.bias";

impl Lora {
    fn terms(&self, call: &Call<'_>) -> LowRank {
        LowRank { a: call.tensor(&self.a), b: call.tensor(&self.b), scaling: self.scaling }
    }

    fn is_embedding(&self) -> bool {
        self.geometry.family() == Family::Embedding
    }

    fn acts_with_dropout(&self, call: &Call<'_>) -> bool {
        // An embedding's input are indices: nothing to drop, as in PEFT.
        call.training && self.dropout > 0.0 && !self.is_embedding()
    }
}

impl Adapter for Lora {
    fn tensors(&self) -> Vec<AdapterTensor<'_>> {
        let mut tensors =
            vec![AdapterTensor::new(self.keys.a, &self.a), AdapterTensor::new(self.keys.b, &self.b)];
        tensors.extend(self.b_bias.as_ref().map(|bias| AdapterTensor::new(BIAS_KEY, bias)));
        tensors
    }

    fn adapt_output(&self, call: &Call<'_>, input: &Tensor, output: Tensor) -> candle_core::Result<Tensor> {
        let terms = self.terms(call);
        let residual = if self.acts_with_dropout(call) {
            let input = call.dropout(&input.to_dtype(terms.a.dtype())?, self.dropout)?;
            self.geometry.low_rank(&input, &terms)?
        } else {
            self.geometry.low_rank(input, &terms)?
        };
        let output = add_promoted(&output, &residual)?;
        match &self.b_bias {
            None => Ok(output),
            Some(bias) => {
                let bias = self.geometry.over_output(&(call.tensor(bias) * self.scaling)?)?;
                output.broadcast_add(&bias.to_dtype(output.dtype())?)
            }
        }
    }

    fn low_rank(&self, call: &Call<'_>) -> Option<LowRank> {
        (!self.acts_with_dropout(call) && self.b_bias.is_none()).then(|| self.terms(call))
    }

    fn merge(
        &self,
        _: &Site<'_>,
        parameters: LinearParameters,
    ) -> std::result::Result<LinearParameters, MergeError> {
        if let Geometry::Conv { settings, .. } = &self.geometry
            && settings.groups > 1
        {
            let reason = format!("no convolution with {} groups computes the same", settings.groups);
            return Err(MergeError::Impossible(reason));
        }
        let terms =
            LowRank { a: self.a.as_detached_tensor(), b: self.b.as_detached_tensor(), scaling: self.scaling };
        let weight = sum_in(&parameters.weight, &self.geometry.low_rank_delta(&terms)?)?;
        let bias = match (&self.b_bias, parameters.bias) {
            (None, bias) => bias,
            (Some(delta), Some(bias)) => Some(sum_in(&bias, &(delta.as_detached_tensor() * self.scaling)?)?),
            (Some(_), None) => {
                let reason = "the layer has no bias that could take up that of `lora_B`".to_owned();
                return Err(MergeError::Impossible(reason));
            }
        };
        Ok(LinearParameters { weight, bias })
    }

    fn scaling(&self) -> Option<f64> {
        Some(self.scaling)
    }

    fn with_scaling(&self, scaling: f64) -> Option<Arc<dyn Adapter>> {
        Some(Arc::new(Self { scaling, ..self.clone() }))
    }

    fn components(&self) -> Vec<Component> {
        let dropout = if self.dropout > 0.0 {
            format!("Dropout(p={}, inplace=False)", self.dropout)
        } else {
            "Identity()".to_owned()
        };
        let (on_layer, on_embedding) = if self.is_embedding() { (false, true) } else { (true, false) };
        let down = || describe_down(&self.geometry, self.rank);
        let up = || describe_up(&self.geometry, self.rank, self.b_bias.is_some());
        vec![
            Component::modules("lora_dropout", Some(dropout)),
            Component::modules("lora_A", on_layer.then(down)),
            Component::modules("lora_B", on_layer.then(up)),
            Component::tensors("lora_embedding_A", on_embedding.then_some(&*self.a)),
            Component::tensors("lora_embedding_B", on_embedding.then_some(&*self.b)),
            Component::modules("lora_magnitude_vector", None),
        ]
    }

    fn tree_prefix(&self) -> Option<&'static str> {
        Some("lora")
    }
}

/// The sum in the promoted dtype, rounded to that of `value`.
fn sum_in(value: &Tensor, delta: &Tensor) -> candle_core::Result<Tensor> {
    let dtype = promoted(value.dtype(), delta.dtype());
    (value.to_dtype(dtype)? + delta.to_dtype(dtype)?)?.to_dtype(value.dtype())
}

fn describe_down(geometry: &Geometry, rank: usize) -> String {
    match geometry {
        Geometry::Conv { in_channels, kernel, settings, .. } => {
            let each = |value: usize| tuple(&vec![value; kernel.len()]);
            let padding = match settings.padding {
                0 => String::new(),
                padding => format!(", padding={}", each(padding)),
            };
            format!(
                "Conv{}d({in_channels}, {rank}, kernel_size={}, stride={}{padding}, bias=False)",
                kernel.len(),
                tuple(kernel),
                each(settings.stride)
            )
        }
        other => format!("Linear(in_features={}, out_features={rank}, bias=False)", other.in_features()),
    }
}

fn describe_up(geometry: &Geometry, rank: usize, has_bias: bool) -> String {
    let bias = if has_bias { "True" } else { "False" };
    match geometry {
        Geometry::Conv { out_channels, kernel, settings, .. } => {
            let ones = tuple(&vec![1; kernel.len()]);
            let groups = match settings.groups {
                1 => String::new(),
                groups => format!(", groups={groups}"),
            };
            let bias = if has_bias { String::new() } else { ", bias=False".to_owned() };
            format!(
                "Conv{}d({rank}, {out_channels}, kernel_size={ones}, stride={ones}{groups}{bias})",
                kernel.len()
            )
        }
        other => format!("Linear(in_features={rank}, out_features={}, bias={bias})", other.out_features()),
    }
}

/// Sizes as Python prints a tuple.
pub(crate) fn tuple(sizes: &[usize]) -> String {
    match sizes {
        [one] => format!("({one},)"),
        many => {
            let many: Vec<String> = many.iter().map(ToString::to_string).collect();
            format!("({})", many.join(", "))
        }
    }
}

impl LoraConfig {
    /// The rank and alpha of the layer at `path`.
    fn size_at(&self, path: &ModulePath) -> std::result::Result<(usize, f64), Fault> {
        let rank = pattern_value("rank_pattern", self.rank_pattern(), path, self.rank())?;
        let alpha = pattern_value("alpha_pattern", self.alpha_pattern(), path, self.alpha())?;
        Ok((rank, alpha))
    }
}

fn pattern_value<T: Copy + PartialEq>(
    field: &'static str,
    patterns: &PatternMap<T>,
    path: &ModulePath,
    default: T,
) -> std::result::Result<T, Fault> {
    match patterns.choose(field, path.as_str())? {
        Chosen::Value(value) => Ok(value),
        Chosen::Default => Ok(default),
        Chosen::Ambiguous { written_first, sorted_first } => Err(Fault::Config {
            field,
            reason: format!(
                "`{written_first}` and `{sorted_first}` both match `{path}` with different values, and a saved file, \
                 whose keys are sorted, would let the other one win"
            ),
        }),
    }
}

impl AdapterMethod for LoraConfig {
    fn peft_type(&self) -> &'static str {
        Self::PEFT_TYPE
    }

    fn selection(&self) -> Selection<'_> {
        Selection {
            targets: self.targets(),
            exclude: self.exclude_modules(),
            modules_to_save: self.modules_to_save(),
            layers_to_transform: self.layers_to_transform(),
            layers_pattern: self.layers_pattern(),
        }
    }

    fn faults(&self) -> Vec<(&'static str, String)> {
        ConfigFields::faults(self)
    }

    fn check(&self, path: &ModulePath, kind: LayerKind, geometry: &Geometry) -> Option<Fault> {
        let rank = match self.size_at(path) {
            Ok((rank, _)) => rank,
            Err(fault) => return Some(fault),
        };
        let reason = unsupported(geometry, rank, self.lora_bias())?;
        Some(Fault::UnsupportedLayer { path: path.clone(), kind: kind.name, method: "LoRA", reason })
    }

    fn build(&self, site: &Site<'_>, source: &mut dyn TensorSource) -> Result<Arc<dyn Adapter>> {
        let (rank, alpha) = self
            .size_at(site.path)
            .map_err(|fault| Error::Config { field: "rank_pattern", reason: fault.to_string() })?;
        let geometry = site.geometry;
        let (keys, init_a, init_b) = self.inits(geometry, rank);
        let a = source.tensor(keys.a, &geometry.down_shape(rank), init_a)?;
        let b = source.tensor(keys.b, &geometry.up_shape(rank), init_b)?;
        let b_bias = if self.lora_bias() {
            let init = match self.init() {
                LoraInit::Random => Init::kaiming(rank),
                _ => Init::Constant(0.0),
            };
            Some(source.tensor(BIAS_KEY, &[geometry.out_features()], init)?)
        } else {
            None
        };
        let scaling = self.scaling(rank, alpha);
        let geometry = geometry.clone();
        Ok(Arc::new(Lora { keys, rank, a, b, b_bias, scaling, dropout: self.dropout(), geometry }))
    }

    fn resolved(&self, targets: TargetModules, transposed: bool) -> Arc<dyn AdapterMethod> {
        Arc::new(self.resolved(targets, transposed))
    }

    fn to_json(&self) -> Result<String> {
        self.to_json()
    }

    fn bias(&self) -> Bias {
        self.bias()
    }

    fn seed(&self) -> u64 {
        self.seed()
    }

    fn rank(&self, path: &ModulePath) -> Option<usize> {
        self.size_at(path).ok().map(|(rank, _)| rank)
    }

    fn common(&self) -> Option<&CommonFields> {
        Some(self.common())
    }

    fn as_lora(&self) -> Option<&LoraConfig> {
        Some(self)
    }
}

impl LoraConfig {
    fn inits(&self, geometry: &Geometry, rank: usize) -> (Keys, Init<'static>, Init<'static>) {
        #[expect(clippy::cast_precision_loss, reason = "a rank is far below 2^53")]
        let per_rank = 1.0 / rank.max(1) as f64;
        let zeros = Init::Constant(0.0);
        match (geometry.family(), self.init()) {
            (Family::Embedding, LoraInit::Random) => (EMBEDDING_KEYS, Init::Normal(1.0), Init::Normal(1.0)),
            (Family::Embedding, _) => (EMBEDDING_KEYS, zeros, Init::Normal(1.0)),
            (_, LoraInit::Gaussian) => (LAYER_KEYS, Init::Normal(per_rank), zeros),
            (_, LoraInit::Random) => {
                let groups = match geometry {
                    Geometry::Conv { settings, .. } => settings.groups.max(1),
                    _ => 1,
                };
                (LAYER_KEYS, Init::kaiming(geometry.fan_in()), Init::kaiming(rank / groups))
            }
            (_, LoraInit::Default) => (LAYER_KEYS, Init::kaiming(geometry.fan_in()), zeros),
        }
    }
}

/// Why LoRA cannot adapt a layer of that shape, if it cannot.
fn unsupported(geometry: &Geometry, rank: usize, lora_bias: bool) -> Option<String> {
    match geometry {
        Geometry::Opaque => {
            Some("it has no weight matrix; `modules_to_save` can train it in full".to_owned())
        }
        Geometry::Embedding { .. } if lora_bias => {
            Some("an embedding has no place for `lora_bias`".to_owned())
        }
        Geometry::Conv { kernel, settings, .. }
            if settings.dilation != 1 && kernel.iter().any(|size| *size > 1) =>
        {
            Some(format!(
                "PEFT's LoRA convolution ignores the layer's dilation of {}, so that its output has another size",
                settings.dilation
            ))
        }
        Geometry::Conv { settings, .. } if rank % settings.groups.max(1) != 0 => {
            Some(format!("rank {rank} is no multiple of the layer's {} groups", settings.groups))
        }
        _ => None,
    }
}
