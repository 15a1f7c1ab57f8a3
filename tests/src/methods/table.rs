//! The rows.

use peft_runtime::method::LoftqConfig;
use peft_runtime::prelude::*;

use super::{Draws, Method, Start, Target, WeightChange};
use crate::specimen::Kind;

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
