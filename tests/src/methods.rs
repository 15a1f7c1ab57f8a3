//! The adapter methods, as a table: a method that has its rows here is under every law.
//!
//! A row says how to make the config, on which layer kinds the method works, and what holds for it. The laws, the properties
//! of files and the tests of single subjects iterate over [`METHODS`] or [`every_pair`].

use peft_runtime::adapter::AdapterMethod;
use peft_runtime::method::LoftqConfig;
use peft_runtime::prelude::*;

use crate::specimen::Kind;

/// How the output of a fresh adapter compares with that of the base model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// The same bits: what is added is zero, or what is multiplied is one.
    Exact,
    /// The same up to rounding: a part of the weight, or the bias, is taken away and added again.
    Close,
    /// Another output: all values are drawn.
    Random,
}

/// What the random numbers of initial values depend on, apart from the layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Draws {
    /// Nothing is drawn.
    Nothing,
    /// On the seed.
    BySeed,
    /// On the seed and the adapter's name.
    BySeedAndName,
}

/// What making the adapter does to the layer's weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightChange {
    /// Nothing.
    Kept,
    /// It loses the product of the factors, which deleting the adapter gives back.
    TakenFrom,
    /// It is quantised for good.
    Quantised,
}

/// The layers that a config is for, and its seed.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// Their names.
    pub layers: &'a [&'a str],
    /// What initial values are drawn with.
    pub seed: u64,
}

/// A method with its settings.
#[derive(Clone, Copy)]
pub struct Method {
    /// What it is, for messages.
    pub name: &'static str,
    /// Makes its config.
    config: fn(Target<'_>) -> Box<dyn AdapterMethod>,
    /// The layer kinds that it works on.
    pub kinds: &'static [Kind],
    /// What a fresh adapter does to the output.
    pub start: Start,
    /// What is drawn for a fresh adapter.
    pub draws: Draws,
    /// What it does to the weight.
    pub weight: WeightChange,
    /// Whether what several such adapters do to the output adds up.
    pub additive: bool,
    /// Whether there is a weight that computes the same for a convolution in groups; there is one for all other layers.
    merges_groups: bool,
    /// Whether it works on a linear layer whose weight is quantized; otherwise that is refused.
    pub quantized: bool,
    /// Whether it can be saved in the form it has.
    pub saves: bool,
    /// Whether the model may have another adapter of the same config.
    pub pairs: bool,
    /// Whether it has dropout, which acts in training mode.
    dropout: bool,
    /// Whether biases of the base model train along.
    pub trains_biases: bool,
    /// Whether its backward pass takes the norm of the weight for a constant, so that only the gradient of the lengths
    /// is that of the function.
    pub constant_norm: bool,
}

impl Method {
    /// Its config for a target.
    pub fn config_for(&self, target: Target<'_>) -> Box<dyn AdapterMethod> {
        (self.config)(target)
    }

    /// Its config for the layer of a [`Specimen`](crate::specimen::Specimen).
    pub fn config(&self) -> Box<dyn AdapterMethod> {
        self.config_for(Target { layers: &["layer"], seed: 0 })
    }

    /// Whether there is a weight of the layer that computes the same.
    pub fn merges(&self, kind: Kind) -> bool {
        self.merges_groups || kind != Kind::GroupedConv2d
    }

    /// Whether dropout acts on it in training mode: indices have nothing to drop.
    pub fn drops(&self, kind: Kind) -> bool {
        self.dropout && !kind.is_embedding()
    }
}

impl std::fmt::Debug for Method {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

fn lora(target: Target<'_>) -> LoraConfig {
    LoraConfig::new(4, 6.0).with_targets(target.layers).with_seed(target.seed)
}

fn adalora(target: Target<'_>) -> AdaLoraConfig {
    AdaLoraConfig::new(4, 2, 10).with_alpha(16.0).with_targets(target.layers).with_seed(target.seed)
}

fn ia3(target: Target<'_>) -> Ia3Config {
    Ia3Config::new().with_targets(target.layers).with_feedforward(Vec::<&str>::new()).with_seed(target.seed)
}

/// With a rank at which W, and not an update of low rank, is what the linear specimen multiplies with.
fn loha(target: Target<'_>) -> LohaConfig {
    LohaConfig::new(2, 12.0).with_targets(target.layers).with_seed(target.seed)
}

/// With a rank at which W₂ of every specimen is a product.
fn lokr(target: Target<'_>) -> LokrConfig {
    LokrConfig::new(1, 6.0).with_targets(target.layers).with_seed(target.seed)
}

/// Plain LoRA, from whose row the others differ.
const LORA: Method = Method {
    name: "lora",
    config: |on| Box::new(lora(on)),
    kinds: &Kind::ALL,
    start: Start::Exact,
    draws: Draws::BySeedAndName,
    weight: WeightChange::Kept,
    additive: true,
    merges_groups: false,
    quantized: true,
    saves: true,
    pairs: true,
    dropout: false,
    trains_biases: false,
    constant_norm: false,
};

const DORA: Method = Method {
    name: "dora",
    config: |on| Box::new(lora(on).with_dora(true)),
    start: Start::Close,
    additive: false,
    constant_norm: true,
    ..LORA
};

/// Inits that compute the factors from the weight are for linear layers.
const PISSA: Method = Method {
    name: "pissa",
    config: |on| Box::new(lora(on).with_init(LoraInit::Pissa)),
    kinds: &Kind::LINEAR,
    start: Start::Close,
    draws: Draws::Nothing,
    weight: WeightChange::TakenFrom,
    quantized: false,
    ..LORA
};

const ADALORA: Method = Method {
    name: "adalora",
    config: |on| Box::new(adalora(on)),
    kinds: &[Kind::Linear, Kind::LinearNoBias, Kind::Transposed, Kind::Conv2d],
    ..LORA
};

const IA3: Method = Method {
    name: "ia3 on the output",
    config: |on| Box::new(ia3(on)),
    kinds: &[Kind::Linear, Kind::LinearNoBias, Kind::Transposed, Kind::Conv2d, Kind::GroupedConv2d],
    draws: Draws::Nothing,
    additive: false,
    // A scaled weight has a place in groups, too.
    merges_groups: true,
    ..LORA
};

const LOHA: Method = Method {
    name: "loha",
    config: |on| Box::new(loha(on)),
    kinds: &Kind::OUTPUTS_FIRST,
    // ΔW has the shape of the weight, in groups too.
    merges_groups: true,
    ..LORA
};

const LOKR: Method = Method { name: "lokr", config: |on| Box::new(lokr(on)), ..LOHA };

/// Every method.
pub const METHODS: &[Method] = &[
    LORA,
    Method {
        name: "lora with rank stabilisation",
        config: |on| Box::new(lora(on).with_rslora(true)),
        ..LORA
    },
    Method {
        name: "lora with gaussian init",
        config: |on| Box::new(lora(on).with_init(LoraInit::Gaussian)),
        ..LORA
    },
    Method {
        name: "lora with random factors",
        config: |on| Box::new(lora(on).with_init(LoraInit::Random)),
        start: Start::Random,
        ..LORA
    },
    Method {
        name: "lora with dropout",
        config: |on| Box::new(lora(on).with_dropout(0.3)),
        dropout: true,
        ..LORA
    },
    Method {
        name: "lora with the base's biases",
        config: |on| Box::new(lora(on).with_bias(Bias::All)),
        pairs: false,
        trains_biases: true,
        ..LORA
    },
    Method {
        name: "lora with a bias",
        config: |on| Box::new(lora(on).with_lora_bias(true)),
        kinds: &Kind::BIASED,
        ..LORA
    },
    DORA,
    Method {
        name: "dora with dropout",
        config: |on| Box::new(lora(on).with_dora(true).with_dropout(0.3)),
        dropout: true,
        ..DORA
    },
    PISSA,
    Method {
        name: "pissa by iterations",
        config: |on| Box::new(lora(on).with_init(LoraInit::PissaIterations(4))),
        draws: Draws::BySeed,
        saves: false,
        ..PISSA
    },
    Method { name: "olora", config: |on| Box::new(lora(on).with_init(LoraInit::Olora)), ..PISSA },
    Method {
        name: "orthogonal",
        config: |on| Box::new(lora(on).with_init(LoraInit::Orthogonal)),
        draws: Draws::BySeed,
        weight: WeightChange::Kept,
        quantized: true,
        ..PISSA
    },
    Method {
        name: "loftq",
        // With all ranks there are, and a scaling of 1, the factors make up for the quantisation in full.
        config: |on| {
            let config = LoraConfig::new(6, 6.0).with_targets(on.layers).with_seed(on.seed);
            Box::new(config.with_loftq(LoftqConfig::default()))
        },
        weight: WeightChange::Quantised,
        pairs: false,
        ..PISSA
    },
    ADALORA,
    Method {
        name: "adalora with dropout",
        config: |on| Box::new(adalora(on).with_dropout(0.3)),
        dropout: true,
        ..ADALORA
    },
    Method {
        name: "adalora with random factors",
        // With a smaller scaling, so that outputs have the size of the others'.
        config: |on| Box::new(adalora(on).with_alpha(2.0).with_init(false)),
        start: Start::Random,
        ..ADALORA
    },
    IA3,
    Method { name: "ia3 on the input", config: |on| Box::new(ia3(on).with_feedforward(on.layers)), ..IA3 },
    Method {
        name: "ia3 with a random vector",
        config: |on| Box::new(ia3(on).with_init(false)),
        start: Start::Random,
        draws: Draws::BySeedAndName,
        ..IA3
    },
    LOHA,
    Method {
        name: "loha of rank 1",
        // Here an update of low rank takes less work than ΔW.
        config: |on| Box::new(LohaConfig::new(1, 6.0).with_targets(on.layers).with_seed(on.seed)),
        ..LOHA
    },
    Method {
        name: "loha with cores",
        config: |on| {
            let config = LohaConfig::new(2, 60.0).with_targets(on.layers).with_seed(on.seed);
            Box::new(config.with_effective_conv2d(true))
        },
        kinds: &Kind::CONV,
        ..LOHA
    },
    Method {
        name: "loha with random factors",
        config: |on| Box::new(loha(on).with_init(false)),
        start: Start::Random,
        ..LOHA
    },
    Method {
        name: "loha with dropout of rows",
        config: |on| Box::new(loha(on).with_rank_dropout(0.5)),
        dropout: true,
        ..LOHA
    },
    LOKR,
    Method {
        name: "lokr with whole matrices",
        config: |on| Box::new(LokrConfig::new(4, 8.0).with_targets(on.layers).with_seed(on.seed)),
        ..LOKR
    },
    Method {
        name: "lokr with both matrices products",
        config: |on| Box::new(lokr(on).with_decompose_both(true).with_decompose_factor(4)),
        ..LOKR
    },
    Method {
        name: "lokr with a core",
        config: |on| Box::new(lokr(on).with_effective_conv2d(true)),
        kinds: &Kind::CONV,
        ..LOKR
    },
    Method {
        name: "lokr that starts as in LyCORIS",
        config: |on| Box::new(lokr(on).with_init(LokrInit::Lycoris)),
        ..LOKR
    },
    Method {
        name: "lokr with random matrices",
        config: |on| Box::new(lokr(on).with_init(LokrInit::Random)),
        start: Start::Random,
        ..LOKR
    },
    Method {
        name: "lokr with dropout of rows",
        config: |on| Box::new(lokr(on).with_rank_dropout(0.5)),
        dropout: true,
        ..LOKR
    },
    Method {
        name: "lokr with scaled dropout of rows",
        config: |on| Box::new(lokr(on).with_rank_dropout(0.5).with_rank_dropout_scale(true)),
        dropout: true,
        ..LOKR
    },
];

/// Every method on every layer kind that it works on.
pub fn every_pair() -> impl Iterator<Item = (Kind, Method)> {
    let methods_on = |kind: Kind| METHODS.iter().filter(move |method| method.kinds.contains(&kind));
    Kind::ALL.into_iter().flat_map(move |kind| methods_on(kind).map(move |method| (kind, *method)))
}
