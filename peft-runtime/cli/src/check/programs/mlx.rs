//! mlx-lm, which reads only what it writes itself.

use super::table::{Program, Rule, ignored, refused, taken};
use crate::check::feature::Feature;

const LOAD: &str = "mlx_lm/tuner/utils.py 0.32.0, `load_adapters`";

pub const PROGRAM: Program =
    Program { name: "mlx", version: "0.32.0", rules: &RULES, rest: Some(OWN), rank: None };

const OWN: &str =
    "reads only its own `adapters.safetensors` and a config with `num_layers` and `lora_parameters`";

const RULES: [Rule; 5] = [
    taken(Feature::Mlx, LOAD),
    refused(Feature::PeftFolder, OWN, LOAD),
    refused(Feature::MixedRanks, "has one rank for all modules", LOAD),
    ignored(Feature::HalfPairs, "keeps the other factor as it was drawn, or zero", LOAD),
    refused(Feature::Strangers, "refuses tensors that are not its factors", LOAD),
];
