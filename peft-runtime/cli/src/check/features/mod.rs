//! What is in an adapter that programs treat differently.

mod completeness;
mod fields;
mod mlx;
mod tensors;

use std::collections::BTreeSet;

use serde_json::Value;

use crate::check::adapter_file::AdapterFile;
use crate::check::feature::Feature;
use crate::check::keys::{Key, PREFIX, Part};

/// Something that was found, and where.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    pub feature: Feature,
    /// What was found, in words.
    pub what: String,
    /// The keys of the tensors that are it; empty where it is about all of them, or only in the config.
    pub tensors: Vec<String>,
}

/// Variants of LoRA that only PEFT has, by the fields of their configs.
const VARIANTS: [&str; 6] =
    ["use_bdlora", "arrow_config", "monteclora_config", "kasa_config", "velora_config", "megatron_config"];
/// The methods that PEFT 0.21.2 has besides those with a feature of their own.
const OTHER_METHODS: &str = "PROMPT_TUNING MULTITASK_PROMPT_TUNING P_TUNING PREFIX_TUNING ADAMSS BOFT ADAPTION_PROMPT BEFT \
    LILY OFT POLY LN_TUNING VERA FROD PVERA FOURIERFT GLORA XLORA HRA VBLORA UNILORA CPT MISS \
    RANDLORA ROAD TRAINABLE_TOKENS HIRA SHIRA C3A WAVEFT OSF DELORA GRALORA CARTRIDGE TINYLORA PSOFT \
    PEANUT SHADOW SUPERTUNING DEFT";
/// The dtypes of factors, under safetensors' names.
const FLOATS: [&str; 4] = ["F64", "F32", "F16", "BF16"];

/// Everything that is found in an adapter; the format comes first, and then the method.
pub fn find(adapter: &AdapterFile) -> Vec<Found> {
    let mut search = Search {
        adapter,
        keys: adapter.tensors.iter().map(|tensor| (tensor.key.clone(), Key::parse(&tensor.key))).collect(),
        found: Vec::new(),
    };
    search.add(adapter.format, format_words(adapter.format), Vec::new());
    match adapter.format {
        Feature::Mlx => search.mlx(),
        Feature::ImageFile => {}
        _ => search.pefts(),
    }
    search.dtypes();
    search.found
}

/// The same for a base model whose output layer is its embedding.
pub fn tie(found: &mut Vec<Found>) {
    let heads = found.iter().find(|found| found.feature == Feature::Head);
    let what = "factors of an output layer that is tied to the embedding".to_owned();
    let tied = heads.map(|head| Found { feature: Feature::TiedHead, what, tensors: head.tensors.clone() });
    found.extend(tied);
}

/// The same for a base model that has all experts in one parameter: the layers whose scaling changes when they are fused.
pub fn rescale(found: &mut Vec<Found>, layers: &[String]) {
    if !layers.is_empty() {
        let what = "rsLoRA or `alpha_pattern` on single experts".to_owned();
        found.push(Found { feature: Feature::RescaledExperts, what, tensors: layers.to_vec() });
    }
}

fn format_words(format: Feature) -> &'static str {
    match format {
        Feature::Pickle => "`adapter_model.bin`, a pickle",
        Feature::OtherFileName => "a safetensors file that is not called `adapter_model.safetensors`",
        Feature::Mlx => "the folder of mlx-lm",
        Feature::Gguf => "a GGUF file",
        Feature::ImageFile => "a file without `adapter_config.json`",
        _ => "PEFT's folder",
    }
}

struct Search<'a> {
    adapter: &'a AdapterFile,
    keys: Vec<(String, Key)>,
    found: Vec<Found>,
}

impl Search<'_> {
    /// What adapters of PEFT's have.
    fn pefts(&mut self) {
        self.method();
        self.variants();
        self.init();
        self.parameters();
        self.factors();
        self.sizes();
        self.prefixes();
        if self.adapter.format != Feature::Gguf {
            self.fields();
            self.completeness();
        }
    }

    fn add(&mut self, feature: Feature, what: impl Into<String>, tensors: Vec<String>) {
        self.found.push(Found { feature, what: what.into(), tensors });
    }

    /// Adds it if there are tensors of it, or if the config says so.
    fn add_if(&mut self, feature: Feature, what: &str, tensors: Vec<String>, in_config: bool) {
        if in_config || !tensors.is_empty() {
            self.add(feature, what, tensors);
        }
    }

    /// The file's names of the tensors with such a key.
    fn tensors(&self, is_one: impl Fn(&Key) -> bool) -> Vec<String> {
        self.keys.iter().filter(|(_, key)| is_one(key)).map(|(name, _)| name.clone()).collect()
    }

    /// Whether a field has entries.
    fn is_filled(&self, field: &str) -> bool {
        match self.adapter.field(field) {
            Some(Value::Array(values)) => !values.is_empty(),
            Some(Value::Object(values)) => !values.is_empty(),
            Some(Value::Bool(on)) => *on,
            value => value.is_some(),
        }
    }

    /// Whether a variant is on: an empty config has default settings, where it does not count as nothing.
    fn is_active(&self, field: &str) -> bool {
        match field {
            "megatron_config" | "monteclora_config" => self.is_filled(field),
            _ => self.adapter.field(field).is_some_and(|value| value != &Value::Bool(false)),
        }
    }

    fn is_lora(&self) -> bool {
        self.found.iter().any(|found| found.feature == Feature::Lora)
    }

    fn method(&mut self) {
        if self.adapter.format == Feature::Gguf {
            return self.add(Feature::Lora, "LoRA", Vec::new());
        }
        let peft_type =
            self.adapter.field("peft_type").and_then(Value::as_str).unwrap_or_default().to_owned();
        let feature = match peft_type.as_str() {
            "LORA" => Feature::Lora,
            "ADALORA" => Feature::AdaLora,
            "IA3" => Feature::Ia3,
            "LOHA" => Feature::Loha,
            "LOKR" => Feature::Lokr,
            other if OTHER_METHODS.split(' ').any(|known| known == other) => Feature::OtherMethod,
            _ => Feature::UnknownMethod,
        };
        self.add(feature, format!("`peft_type` is `{peft_type}`"), Vec::new());
    }

    fn variants(&mut self) {
        let lengths = self.tensors(|key| key.part == Part::Magnitude);
        self.add_if(Feature::Dora, "DoRA (`use_dora`)", lengths, self.adapter.is_on("use_dora"));
        let ranks: BTreeSet<usize> = self.ranks().into_values().collect();
        if self.adapter.is_on("use_rslora") && ranks.iter().any(|rank| *rank != 1) {
            self.add(Feature::RsLora, "rank-stabilised scaling (`use_rslora`)", Vec::new());
        }
        let biases = self.tensors(|key| key.part == Part::LoraBias);
        self.add_if(Feature::LoraBias, "a bias of B (`lora_bias`)", biases, self.adapter.is_on("lora_bias"));
        if let Some(tokens) = self.adapter.field("alora_invocation_tokens") {
            self.add(Feature::Alora, format!("aLoRA, which waits for the tokens {tokens}"), Vec::new());
        }
        for (feature, field, what) in [
            (Feature::Qalora, "use_qalora", "QALoRA (`use_qalora`)"),
            (Feature::FanInFanOut, "fan_in_fan_out", "weights stored as [in, out] (`fan_in_fan_out`)"),
            (
                Feature::WeightTying,
                "ensure_weight_tying",
                "one adapter for embedding and tied output (`ensure_weight_tying`)",
            ),
        ] {
            self.add_if(feature, what, Vec::new(), self.adapter.is_on(field));
        }
        if self.is_filled("layer_replication") {
            self.add(Feature::LayerReplication, "repeated blocks (`layer_replication`)", Vec::new());
        }
        for field in VARIANTS {
            if self.is_active(field) {
                self.add(Feature::OtherVariant, format!("`{field}`"), Vec::new());
            }
        }
    }

    fn init(&mut self) {
        let Some(init) = self.adapter.field("init_lora_weights").and_then(Value::as_str) else { return };
        let feature = match init.to_ascii_lowercase().as_str() {
            "pissa" | "olora" | "loftq" => Feature::InitFoundAgain,
            "corda" => Feature::InitCorda,
            "lora_ga" => Feature::InitLoraGa,
            name if name.starts_with("pissa_niter_") => Feature::InitRandomised,
            _ => return,
        };
        let what = format!("the init `{init}`, which changed the base weights");
        self.add(feature, what, Vec::new());
    }

    fn prefixes(&mut self) {
        if self.adapter.format == Feature::Gguf {
            return;
        }
        let bare = self.tensors(|key| !key.has_prefix);
        self.add_if(Feature::NoPrefix, "keys without `base_model.model.`", bare, false);
        let nested = self.tensors(|key| key.wrapper == Some(PREFIX));
        self.add_if(Feature::NestedPrefix, "keys with `base_model.model.` twice", nested, false);
        let wrapper = self.keys.iter().filter_map(|(_, key)| key.wrapper).find(|wrapper| *wrapper != PREFIX);
        if let Some(wrapper) = wrapper {
            let what = format!("keys with `{wrapper}` in front of the path");
            let tensors = self.tensors(|key| key.wrapper == Some(wrapper));
            self.add(Feature::WrapperPrefix, what, tensors);
        }
        fn named(key: &Key) -> Option<&str> {
            key.adapter.as_deref().filter(|_| key.part != Part::Parameter)
        }
        let default = self.tensors(|key| named(key) == Some("default"));
        self.add_if(Feature::AdapterName, "keys with the adapter's name", default, false);
        let other = self.keys.iter().find_map(|(_, key)| named(key).filter(|name| *name != "default"));
        if let Some(other) = other {
            let tensors = self.tensors(|key| named(key) == Some(other));
            self.add(Feature::OtherAdapterName, format!("keys with the adapter's name `{other}`"), tensors);
        }
    }

    fn dtypes(&mut self) {
        let is_float = |dtype: &str| FLOATS.contains(&dtype);
        let others = self.adapter.tensors.iter().filter(|tensor| !is_float(&tensor.dtype));
        let others: Vec<String> = others.map(|tensor| tensor.key.clone()).collect();
        self.add_if(Feature::NotFloat, "tensors that are not F32, F16, BF16 or F64", others, false);
    }

    /// The largest rank.
    fn largest_rank(&self) -> Option<usize> {
        self.ranks().into_values().max()
    }
}

/// The largest rank of an adapter's factors.
pub fn largest_rank(adapter: &AdapterFile) -> Option<usize> {
    let keys = adapter.tensors.iter().map(|tensor| (tensor.key.clone(), Key::parse(&tensor.key))).collect();
    Search { adapter, keys, found: Vec::new() }.largest_rank()
}
