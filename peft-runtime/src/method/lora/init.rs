//! How LoRA's factors start.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use crate::config::is_unset;

/// How the factors of a fresh LoRA adapter are drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum LoraInit {
    /// A uniform in ±1/√fan_in, B zero: the fresh adapter changes nothing. PEFT's `true`.
    #[default]
    Default,
    /// A normal with standard deviation 1/rank, B zero. PEFT's `"gaussian"`.
    Gaussian,
    /// A and B both random: the fresh adapter changes the output. PEFT's `false`, meant for tests.
    Random,
    /// The leading singular values of the weight, which are removed from it: <https://arxiv.org/abs/2404.02948>.
    Pissa,
    /// The same, by a randomised SVD with this many power iterations.
    PissaIterations(usize),
    /// The leading columns of the weight's QR decomposition, which are removed from it:
    /// <https://arxiv.org/abs/2406.01775>.
    Olora,
    /// Random factors whose product is zero; the rank has to be even.
    Orthogonal,
    /// Factors that compensate for quantising the weight: <https://arxiv.org/abs/2310.08659>.
    Loftq,
    /// Directions of the layer's inputs, set by `initialise_eva`: <https://arxiv.org/abs/2410.07170>.
    Eva,
}

/// How LoftQ quantises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoftqConfig {
    /// 4 (normal float) or 8 bits.
    #[serde(rename = "loftq_bits", default = "default_loftq_bits")]
    pub bits: usize,
    /// How many times quantising and factorising alternate.
    #[serde(rename = "loftq_iter", default = "default_loftq_iterations")]
    pub iterations: usize,
}

impl Default for LoftqConfig {
    fn default() -> Self {
        Self { bits: default_loftq_bits(), iterations: default_loftq_iterations() }
    }
}

fn default_loftq_bits() -> usize {
    4
}

fn default_loftq_iterations() -> usize {
    1
}

impl LoraInit {
    /// Whether the factors are drawn rather than computed from a weight.
    pub(crate) fn draws_factors(self) -> bool {
        matches!(self, Self::Default | Self::Gaussian | Self::Random)
    }

    /// Whether making the adapter changes the base model's weights.
    pub(crate) fn changes_base(self) -> bool {
        matches!(self, Self::Pissa | Self::PissaIterations(_) | Self::Olora | Self::Loftq)
    }

    /// The value in `adapter_config.json`.
    pub(crate) fn describe(self) -> String {
        match self {
            Self::Default => "true".to_owned(),
            Self::Random => "false".to_owned(),
            Self::Gaussian => "gaussian".to_owned(),
            Self::Pissa => "pissa".to_owned(),
            Self::PissaIterations(iterations) => format!("pissa_niter_{iterations}"),
            Self::Olora => "olora".to_owned(),
            Self::Orthogonal => "orthogonal".to_owned(),
            Self::Loftq => "loftq".to_owned(),
            Self::Eva => "eva".to_owned(),
        }
    }

    fn parse(name: &str) -> Option<Self> {
        let lower = name.to_ascii_lowercase();
        Some(match lower.as_str() {
            "gaussian" => Self::Gaussian,
            "pissa" => Self::Pissa,
            "olora" => Self::Olora,
            "orthogonal" => Self::Orthogonal,
            "loftq" => Self::Loftq,
            "eva" => Self::Eva,
            other => Self::PissaIterations(other.strip_prefix("pissa_niter_")?.parse().ok()?),
        })
    }
}

impl Serialize for LoraInit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Default => serializer.serialize_bool(true),
            Self::Random => serializer.serialize_bool(false),
            other => serializer.serialize_str(&other.describe()),
        }
    }
}

impl<'de> Deserialize<'de> for LoraInit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let init = match &value {
            Value::Bool(true) => Some(Self::Default),
            value if is_unset(value) => Some(Self::Random),
            Value::String(name) => Self::parse(name),
            _ => None,
        };
        init.ok_or_else(|| {
            serde::de::Error::custom(format!(
                "{value} is not supported; supported are true, false, \"gaussian\", \"pissa\", \
                 \"pissa_niter_N\", \"olora\", \"orthogonal\", \"loftq\" and \"eva\""
            ))
        })
    }
}

pub(super) fn as_loftq<S: Serializer>(loftq: &Option<LoftqConfig>, serializer: S) -> Result<S::Ok, S::Error> {
    match loftq {
        Some(loftq) => loftq.serialize(serializer),
        None => serializer.collect_map(std::iter::empty::<((), ())>()),
    }
}
