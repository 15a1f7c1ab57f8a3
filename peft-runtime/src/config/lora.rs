//! The config of LoRA: <https://arxiv.org/abs/2106.09685>.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Value, json};

use super::common::{
    Bias, CommonFields, ConfigFault, ConfigFields, as_number, finite_fault, probability_fault, rank_fault,
};
use super::{PatternMap, from_json, to_json};
use crate::error::Result;
use crate::select::{LayerIndices, TargetModules};

pub(super) const PEFT_TYPE: &str = "LORA";

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
    /// The leading singular values of the weight, which loses them: <https://arxiv.org/abs/2404.02948>.
    Pissa,
    /// The same by a randomised search with this many power iterations.
    PissaIterations(usize),
    /// The leading columns of the weight's QR decomposition, which it loses: <https://arxiv.org/abs/2406.01775>.
    Olora,
    /// Random factors whose product is zero; the rank has to be even.
    Orthogonal,
    /// Factors that make up for quantising the weight: <https://arxiv.org/abs/2310.08659>.
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
    /// How often quantising and factorising alternate.
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
    /// Whether the factors are drawn and not worked out from a weight.
    pub(crate) fn draws_factors(self) -> bool {
        matches!(self, Self::Default | Self::Gaussian | Self::Random)
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

/// The config of a LoRA adapter: `ΔW = s·B·A` with `s = alpha / rank`, or `alpha / √rank` with rank stabilisation.
///
/// ```
/// use peft_runtime::LoraConfig;
///
/// let config = LoraConfig::new(8, 16.0).with_dropout(0.05).with_targets(["q_proj", "v_proj"]);
/// assert_eq!(config.rank(), 8);
/// assert_eq!(LoraConfig::from_json(&config.to_json()?)?, config);
/// # Ok::<(), peft_runtime::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoraConfig {
    #[serde(rename = "r", default = "default_rank")]
    rank: usize,
    #[serde(rename = "lora_alpha", default = "default_alpha", serialize_with = "as_number")]
    alpha: f64,
    #[serde(rename = "lora_dropout", default)]
    dropout: f64,
    #[serde(rename = "target_modules", default)]
    targets: Option<TargetModules>,
    #[serde(rename = "exclude_modules", default)]
    exclude: Option<TargetModules>,
    #[serde(default)]
    modules_to_save: Option<Vec<String>>,
    #[serde(default)]
    layers_to_transform: Option<LayerIndices>,
    #[serde(default)]
    layers_pattern: Option<OneOrMany>,
    #[serde(default)]
    rank_pattern: PatternMap<usize>,
    #[serde(default, serialize_with = "as_numbers")]
    alpha_pattern: PatternMap<f64>,
    #[serde(default)]
    bias: Bias,
    #[serde(default)]
    lora_bias: bool,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
    #[serde(default, deserialize_with = "loftq_or_nothing", serialize_with = "as_loftq")]
    loftq_config: Option<LoftqConfig>,
    #[serde(rename = "init_lora_weights", default)]
    init: LoraInit,
    #[serde(default)]
    fan_in_fan_out: bool,
    #[serde(skip)]
    seed: u64,
    #[serde(flatten)]
    common: CommonFields,
}

/// A string or a list of strings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    fn as_slice(&self) -> &[String] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => many,
        }
    }
}

fn default_rank() -> usize {
    8
}

fn default_alpha() -> f64 {
    8.0
}

fn as_numbers<S: Serializer>(patterns: &PatternMap<f64>, serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Number(#[serde(serialize_with = "as_number")] f64);

    serializer.collect_map(patterns.iter().map(|(pattern, value)| (pattern, Number(*value))))
}

impl Default for LoraConfig {
    /// PEFT's defaults: rank 8, alpha 8.
    fn default() -> Self {
        Self::new(default_rank(), default_alpha())
    }
}

impl LoraConfig {
    /// A config with the given rank and alpha and PEFT's defaults for the rest.
    ///
    /// Values are checked when the config is used: see [`Fault::Config`](crate::error::Fault::Config).
    pub fn new(rank: usize, alpha: f64) -> Self {
        Self {
            rank,
            alpha,
            dropout: 0.0,
            targets: None,
            exclude: None,
            modules_to_save: None,
            layers_to_transform: None,
            layers_pattern: None,
            rank_pattern: PatternMap::default(),
            alpha_pattern: PatternMap::default(),
            bias: Bias::None,
            lora_bias: false,
            use_rslora: false,
            use_dora: false,
            loftq_config: None,
            init: LoraInit::Default,
            fan_in_fan_out: false,
            seed: 0,
            common: CommonFields::default(),
        }
    }

    /// Drops elements of the adapter's input with this probability while training; 0 by default.
    #[must_use]
    pub fn with_dropout(mut self, probability: f64) -> Self {
        self.dropout = probability;
        self
    }

    /// The modules to adapt; without it, those that the model declares with `#[peft(target = "…")]`.
    #[must_use]
    pub fn with_targets(mut self, targets: impl Into<TargetModules>) -> Self {
        self.targets = Some(targets.into());
        self
    }

    /// Modules to leave alone although they are targets.
    #[must_use]
    pub fn with_exclude_modules(mut self, modules: impl Into<TargetModules>) -> Self {
        self.exclude = Some(modules.into());
        self
    }

    /// Modules that train in full, as a copy that belongs to the adapter (a classifier head, for example).
    #[must_use]
    pub fn with_modules_to_save<S: Into<String>>(mut self, modules: impl IntoIterator<Item = S>) -> Self {
        self.modules_to_save = Some(modules.into_iter().map(Into::into).collect());
        self
    }

    /// Adapts only the blocks with these numbers.
    #[must_use]
    pub fn with_layers_to_transform(mut self, layers: impl IntoIterator<Item = usize>) -> Self {
        self.layers_to_transform = Some(LayerIndices::Many(layers.into_iter().collect()));
        self
    }

    /// The names of the block lists that `layers_to_transform` counts in.
    #[must_use]
    pub fn with_layers_pattern<S: Into<String>>(mut self, containers: impl IntoIterator<Item = S>) -> Self {
        self.layers_pattern = Some(OneOrMany::Many(containers.into_iter().map(Into::into).collect()));
        self
    }

    /// Other ranks for the modules that a pattern matches.
    #[must_use]
    pub fn with_rank_pattern(mut self, patterns: impl Into<PatternMap<usize>>) -> Self {
        self.rank_pattern = patterns.into();
        self
    }

    /// Other alphas for the modules that a pattern matches.
    #[must_use]
    pub fn with_alpha_pattern(mut self, patterns: impl Into<PatternMap<f64>>) -> Self {
        self.alpha_pattern = patterns.into();
        self
    }

    /// Which biases of the base model train as well.
    #[must_use]
    pub fn with_bias(mut self, bias: Bias) -> Self {
        self.bias = bias;
        self
    }

    /// Gives B a bias of its own.
    #[must_use]
    pub fn with_lora_bias(mut self, lora_bias: bool) -> Self {
        self.lora_bias = lora_bias;
        self
    }

    /// Scales by `alpha / √rank` instead of `alpha / rank`: <https://arxiv.org/abs/2312.03732>.
    #[must_use]
    pub fn with_rslora(mut self, use_rslora: bool) -> Self {
        self.use_rslora = use_rslora;
        self
    }

    /// Splits the weight into direction and length: <https://arxiv.org/abs/2402.09353>.
    #[must_use]
    pub fn with_dora(mut self, use_dora: bool) -> Self {
        self.use_dora = use_dora;
        self
    }

    /// Starts as LoftQ does, with these settings.
    #[must_use]
    pub fn with_loftq(mut self, loftq: LoftqConfig) -> Self {
        self.init = LoraInit::Loftq;
        self.loftq_config = Some(loftq);
        self
    }

    /// How the factors start.
    #[must_use]
    pub fn with_init(mut self, init: LoraInit) -> Self {
        self.init = init;
        self
    }

    /// The seed of the initial factors and of dropout; 0 by default. It is not written to files.
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// The task type that the file names, one of PEFT's.
    #[must_use]
    pub fn with_task_type(mut self, task_type: impl Into<String>) -> Self {
        self.common.task_type = Some(task_type.into());
        self
    }

    /// The base model that the file names.
    #[must_use]
    pub fn with_base_model(mut self, name_or_path: impl Into<String>) -> Self {
        self.common.base_model_name_or_path = Some(name_or_path.into());
        self
    }

    /// Reads the text of an `adapter_config.json`.
    ///
    /// # Errors
    /// If the text is not JSON, a switch that is on is not supported, or a value is invalid.
    pub fn from_json(text: &str) -> Result<Self> {
        from_json(text)
    }

    /// The text of the `adapter_config.json`: every field of PEFT 0.21.2, keys sorted.
    ///
    /// # Errors
    /// If a value has no JSON form.
    pub fn to_json(&self) -> Result<String> {
        to_json(self)
    }

    /// The rank where no pattern says otherwise.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Alpha where no pattern says otherwise.
    pub fn alpha(&self) -> f64 {
        self.alpha
    }

    /// The probability of dropout.
    pub fn dropout(&self) -> f64 {
        self.dropout
    }

    /// The modules to adapt, if the config names them.
    pub fn targets(&self) -> Option<&TargetModules> {
        self.targets.as_ref()
    }

    /// Modules to leave alone.
    pub fn exclude_modules(&self) -> Option<&TargetModules> {
        self.exclude.as_ref()
    }

    /// Modules that train in full.
    pub fn modules_to_save(&self) -> &[String] {
        self.modules_to_save.as_deref().unwrap_or_default()
    }

    /// Ranks by pattern.
    pub fn rank_pattern(&self) -> &PatternMap<usize> {
        &self.rank_pattern
    }

    /// Alphas by pattern.
    pub fn alpha_pattern(&self) -> &PatternMap<f64> {
        &self.alpha_pattern
    }

    /// Which biases of the base model train.
    pub fn bias(&self) -> Bias {
        self.bias
    }

    /// Whether B has a bias.
    pub fn lora_bias(&self) -> bool {
        self.lora_bias
    }

    /// Whether the scaling is rank-stabilised.
    pub fn use_rslora(&self) -> bool {
        self.use_rslora
    }

    /// Whether the weight is split into direction and length.
    pub fn use_dora(&self) -> bool {
        self.use_dora
    }

    /// How LoftQ quantises.
    pub fn loftq(&self) -> LoftqConfig {
        self.loftq_config.unwrap_or_default()
    }

    /// How the factors start.
    pub fn init(&self) -> LoraInit {
        self.init
    }

    /// The seed of the initial factors and of dropout.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The fields that describe the adapter.
    pub fn common(&self) -> &CommonFields {
        &self.common
    }

    /// The scaling of a layer with this rank and alpha.
    pub fn scaling(&self, rank: usize, alpha: f64) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a rank is far below 2^53")]
        let rank = rank as f64;
        if self.use_rslora { alpha / rank.sqrt() } else { alpha / rank }
    }

    pub(crate) fn layers_to_transform(&self) -> Option<&LayerIndices> {
        self.layers_to_transform.as_ref()
    }

    pub(crate) fn layers_pattern(&self) -> Option<&[String]> {
        self.layers_pattern.as_ref().map(OneOrMany::as_slice)
    }

    /// The config as it is written once the model has said which modules it means and how their weights lie.
    pub(crate) fn resolved(&self, targets: TargetModules, fan_in_fan_out: bool) -> Self {
        Self { targets: Some(targets), fan_in_fan_out, ..self.clone() }
    }
}

impl ConfigFields for LoraConfig {
    const PEFT_TYPE: &'static str = PEFT_TYPE;

    fn unimplemented_fields() -> Vec<(&'static str, Value)> {
        vec![
            ("alora_invocation_tokens", Value::Null),
            ("arrow_config", Value::Null),
            ("corda_config", Value::Null),
            ("ensure_weight_tying", json!(false)),
            ("kasa_config", Value::Null),
            ("layer_replication", Value::Null),
            ("lora_ga_config", Value::Null),
            ("megatron_config", Value::Null),
            ("megatron_core", json!("megatron.core")),
            ("monteclora_config", Value::Null),
            ("qalora_group_size", json!(16)),
            ("target_parameters", Value::Null),
            ("trainable_token_indices", Value::Null),
            ("use_bdlora", Value::Null),
            ("use_qalora", json!(false)),
            ("velora_config", Value::Null),
        ]
    }

    fn common_mut(&mut self) -> &mut CommonFields {
        &mut self.common
    }

    fn faults(&self) -> Vec<ConfigFault> {
        let mut faults = self.common.faults();
        faults.extend(rank_fault("r", self.rank));
        faults.extend(finite_fault("lora_alpha", self.alpha));
        faults.extend(probability_fault("lora_dropout", self.dropout));
        faults.extend(self.rank_pattern.faults("rank_pattern", |rank| rank_fault("rank_pattern", *rank)));
        faults.extend(
            self.alpha_pattern.faults("alpha_pattern", |alpha| finite_fault("alpha_pattern", *alpha)),
        );
        faults.extend(self.layer_faults());
        if self.lora_bias && !matches!(self.init, LoraInit::Default | LoraInit::Random) {
            let reason =
                format!("a bias on B needs the default or the random init, not `{}`", self.init.describe());
            faults.push(("lora_bias", reason));
        }
        if self.lora_bias && self.use_dora {
            faults.push(("lora_bias", "a bias on B and `use_dora` exclude each other".to_owned()));
        }
        let loftq = self.loftq();
        if self.init == LoraInit::Loftq && (!matches!(loftq.bits, 4 | 8) || loftq.iterations == 0) {
            let reason = "`loftq_bits` is 4 or 8, and `loftq_iter` at least 1".to_owned();
            faults.push(("loftq_config", reason));
        }
        faults
    }
}

impl LoraConfig {
    fn layer_faults(&self) -> Option<ConfigFault> {
        let has_pattern = self.layers_pattern().is_some_and(|names| !names.is_empty());
        match (&self.targets, &self.layers_to_transform) {
            (Some(TargetModules::Regex(_) | TargetModules::AllLinear), Some(_)) => Some((
                "layers_to_transform",
                "it goes with a list of target names; a pattern can name the blocks itself".to_owned(),
            )),
            (_, None) if has_pattern => {
                Some(("layers_pattern", "it does nothing without `layers_to_transform`".to_owned()))
            }
            _ => None,
        }
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
            Value::Null | Value::Bool(false) => Some(Self::Random),
            Value::String(name) => Self::parse(name),
            _ => None,
        };
        init.ok_or_else(|| {
            serde::de::Error::custom(format!(
                "`init_lora_weights` = {value} is not supported; supported are true, false, \"gaussian\", \"pissa\", \
                 \"pissa_niter_N\", \"olora\", \"orthogonal\", \"loftq\" and \"eva\""
            ))
        })
    }
}

/// `{}` and null mean that nothing is set.
fn loftq_or_nothing<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<LoftqConfig>, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::Null => Ok(None),
        Value::Object(fields) if fields.is_empty() => Ok(None),
        value => serde_json::from_value(value).map(Some).map_err(serde::de::Error::custom),
    }
}

fn as_loftq<S: Serializer>(loftq: &Option<LoftqConfig>, serializer: S) -> Result<S::Ok, S::Error> {
    match loftq {
        Some(loftq) => loftq.serialize(serializer),
        None => serializer.collect_map(std::iter::empty::<((), ())>()),
    }
}
