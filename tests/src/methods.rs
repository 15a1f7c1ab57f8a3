//! The adapter methods, with one config each, the layer kinds they work on, and what holds for them.

use peft_runtime::adapter::AdapterMethod;
use peft_runtime::config::LoftqConfig;
use peft_runtime::prelude::*;

use crate::specimen::Kind;

/// How the output of a fresh adapter compares with that of the base model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// The same bits: what is added is zero, or what is multiplied is one.
    Exact,
    /// The same up to rounding: a part of the weight, or the bias, is taken away and added again.
    Close,
}

/// What making the adapter does to the layer's weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weight {
    /// Nothing.
    Kept,
    /// It loses the product of the factors, which deleting the adapter gives back.
    TakenFrom,
    /// It is quantised for good.
    Quantised,
}

/// A method under a law.
pub struct Method {
    /// What it is, for messages.
    pub name: &'static str,
    /// Its config, with `layer` as target.
    pub config: Box<dyn AdapterMethod>,
    /// What a fresh adapter does to the output.
    pub start: Start,
    /// What it does to the weight.
    pub weight: Weight,
    /// Whether what several such adapters do to the output adds up.
    pub additive: bool,
    /// Whether there is a weight that computes the same.
    pub merges: bool,
    /// Whether it can be saved in the form it has.
    pub saves: bool,
    /// Whether another adapter of the same config may come beside it.
    pub pairs: bool,
    /// Whether dropout acts on it in training mode.
    pub drops: bool,
    /// Whether biases of the base model train along.
    pub trains_biases: bool,
    /// Whether its backward pass takes the norm of the weight for a constant, so that only the gradient of the lengths
    /// is that of the function.
    pub constant_norm: bool,
}

impl Method {
    fn new(kind: Kind, name: &'static str, config: impl AdapterMethod) -> Self {
        Self {
            name,
            config: Box::new(config),
            start: Start::Exact,
            weight: Weight::Kept,
            additive: true,
            merges: kind.merges(),
            saves: true,
            pairs: true,
            drops: false,
            trains_biases: false,
            constant_norm: false,
        }
    }
}

fn lora() -> LoraConfig {
    LoraConfig::new(4, 6.0).with_targets(["layer"])
}

fn lora_methods(kind: Kind) -> Vec<Method> {
    let mut methods = vec![
        Method::new(kind, "lora", lora()),
        Method::new(kind, "lora with rank stabilisation", lora().with_rslora(true)),
        Method::new(kind, "lora with gaussian init", lora().with_init(LoraInit::Gaussian)),
        Method {
            drops: !kind.is_embedding(),
            ..Method::new(kind, "lora with dropout", lora().with_dropout(0.3))
        },
        Method {
            pairs: false,
            trains_biases: true,
            ..Method::new(kind, "lora with the base's biases", lora().with_bias(Bias::All))
        },
    ];
    if matches!(kind, Kind::Linear | Kind::Transposed | Kind::Conv1d | Kind::Conv2d) {
        methods.push(Method::new(kind, "lora with a bias", lora().with_lora_bias(true)));
    }
    methods
}

fn dora_methods(kind: Kind) -> Vec<Method> {
    let dora = |name, config: LoraConfig, drops| Method {
        start: Start::Close,
        additive: false,
        constant_norm: true,
        drops,
        ..Method::new(kind, name, config.with_dora(true))
    };
    vec![
        dora("dora", lora(), false),
        dora("dora with dropout", lora().with_dropout(0.3), !kind.is_embedding()),
    ]
}

/// Inits that work the factors out from the weight, or both factors together; they are for linear layers.
fn worked_out_methods(kind: Kind) -> Vec<Method> {
    if !matches!(kind, Kind::Linear | Kind::LinearNoBias | Kind::Transposed) {
        return Vec::new();
    }
    let close = |name, config: LoraConfig| Method { start: Start::Close, ..Method::new(kind, name, config) };
    let taken =
        |name, init: LoraInit| Method { weight: Weight::TakenFrom, ..close(name, lora().with_init(init)) };
    // With all ranks there are, and a scaling of 1, the factors make up for the quantisation in full.
    let loftq = LoraConfig::new(6, 6.0).with_targets(["layer"]).with_loftq(LoftqConfig::default());
    vec![
        taken("pissa", LoraInit::Pissa),
        Method { saves: false, ..taken("pissa by iterations", LoraInit::PissaIterations(4)) },
        taken("olora", LoraInit::Olora),
        close("orthogonal", lora().with_init(LoraInit::Orthogonal)),
        Method { weight: Weight::Quantised, pairs: false, ..close("loftq", loftq) },
    ]
}

fn adalora_methods(kind: Kind) -> Vec<Method> {
    if !matches!(kind, Kind::Linear | Kind::LinearNoBias | Kind::Transposed | Kind::Conv2d) {
        return Vec::new();
    }
    let adalora = || AdaLoraConfig::new(4, 2, 10).with_alpha(16.0).with_targets(["layer"]);
    vec![
        Method::new(kind, "adalora", adalora()),
        Method { drops: true, ..Method::new(kind, "adalora with dropout", adalora().with_dropout(0.3)) },
    ]
}

fn ia3_methods(kind: Kind) -> Vec<Method> {
    if kind.is_embedding() || kind == Kind::Conv1d {
        return Vec::new();
    }
    // A scaled weight has a place in groups, too.
    let ia3 = |name, feedforward: Vec<&str>| Method {
        additive: false,
        merges: true,
        ..Method::new(kind, name, Ia3Config::new().with_targets(["layer"]).with_feedforward(feedforward))
    };
    vec![ia3("ia3 on the output", Vec::new()), ia3("ia3 on the input", vec!["layer"])]
}

/// All methods that work on a layer kind.
pub fn methods(kind: Kind) -> Vec<Method> {
    let families = [
        lora_methods(kind),
        dora_methods(kind),
        worked_out_methods(kind),
        adalora_methods(kind),
        ia3_methods(kind),
    ];
    families.into_iter().flatten().collect()
}

/// Every method on every layer kind that it works on.
pub fn every_pair() -> Vec<(Kind, Method)> {
    Kind::ALL
        .into_iter()
        .flat_map(|kind| methods(kind).into_iter().map(move |method| (kind, method)))
        .collect()
}
