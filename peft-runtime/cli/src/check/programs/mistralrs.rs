//! mistral.rs with its dynamic adapters.

use super::table::{Program, RankLimit, Rule, refused, taken};
use crate::check::feature::Feature;

const CONFIG: &str = "mistralrs-quant/src/lora/mod.rs 0.9.2, `validate_dynamic`";
const LOADER: &str = "mistralrs-quant/src/lora/dynamic/loader.rs 0.9.2";
const FILES: &str = "mistralrs-core/src/adapter/runtime.rs 0.9.2";
const LEFT_OVER: &str = "refuses tensors that are not factors of its linear layers";
const BASE: &str = "refuses inits that changed the base weights";

pub const PROGRAM: Program =
    Program { name: "mistralrs", version: "0.9.2", rules: &RULES, rest: None, rank: Some(RANK) };

const RANK: RankLimit = RankLimit { option: "--lora-max-rank", default: 256, largest: None, source: FILES };

const RULES: [Rule; 61] = [
    taken(Feature::PeftFolder, FILES),
    refused(Feature::Pickle, "opens `adapter_model.safetensors` only", FILES),
    refused(Feature::OtherFileName, "opens `adapter_model.safetensors` only", FILES),
    refused(Feature::Mlx, "opens `adapter_model.safetensors` only", FILES),
    refused(Feature::Gguf, "opens `adapter_model.safetensors` only", FILES),
    refused(Feature::ImageFile, "needs `adapter_config.json`", FILES),
    taken(Feature::Lora, CONFIG),
    refused(Feature::AdaLora, "takes only `peft_type` `LORA`", CONFIG),
    refused(Feature::Ia3, "takes only `peft_type` `LORA`", CONFIG),
    refused(Feature::Loha, "takes only `peft_type` `LORA`", CONFIG),
    refused(Feature::Lokr, "takes only `peft_type` `LORA`", CONFIG),
    refused(Feature::OtherMethod, "takes only `peft_type` `LORA`", CONFIG),
    refused(Feature::UnknownMethod, "takes only `peft_type` `LORA`", CONFIG),
    refused(Feature::Dora, "has no DoRA", CONFIG),
    taken(Feature::RsLora, CONFIG),
    refused(Feature::LoraBias, "takes no adapter with biases", CONFIG),
    refused(Feature::BaseBias, "takes no adapter with biases", CONFIG),
    refused(Feature::FullCopies, "takes no `modules_to_save`", CONFIG),
    refused(Feature::NormCopies, "takes no `modules_to_save`", CONFIG),
    refused(Feature::SavedEmbeddings, LEFT_OVER, LOADER),
    refused(Feature::SavedWeights, LEFT_OVER, LOADER),
    refused(Feature::TrainableTokens, "takes no `trainable_token_indices`", CONFIG),
    taken(Feature::Experts, CONFIG),
    refused(
        Feature::BareParameters,
        "takes `experts.gate_up_proj` and `experts.down_proj` as parameters only",
        CONFIG,
    ),
    taken(Feature::MixedRanks, CONFIG),
    taken(Feature::AlphaPattern, CONFIG),
    refused(Feature::InitFoundAgain, BASE, CONFIG),
    refused(Feature::InitRandomised, BASE, CONFIG),
    refused(Feature::InitCorda, BASE, CONFIG),
    refused(Feature::InitLoraGa, BASE, CONFIG),
    refused(Feature::Embedding, LEFT_OVER, LOADER),
    refused(Feature::Head, "takes no adapter on `lm_head`", LOADER),
    refused(Feature::TiedHead, "takes no adapter on `lm_head`", LOADER),
    refused(Feature::Convolution, LEFT_OVER, LOADER),
    refused(Feature::LayerReplication, "takes no `layer_replication`", CONFIG),
    refused(Feature::Alora, "takes no `alora_invocation_tokens`", CONFIG),
    refused(Feature::Qalora, "takes no `use_qalora`", CONFIG),
    taken(Feature::FanInFanOut, LOADER),
    refused(Feature::WeightTying, "takes no `ensure_weight_tying`", CONFIG),
    refused(Feature::OtherVariant, "takes no other variants of LoRA", CONFIG),
    taken(Feature::NoPrefix, LOADER),
    refused(Feature::NestedPrefix, LEFT_OVER, LOADER),
    refused(Feature::WrapperPrefix, LEFT_OVER, LOADER),
    taken(Feature::AdapterName, LOADER),
    taken(Feature::OtherAdapterName, LOADER),
    refused(Feature::NotFloat, "computes with floating-point factors only", LOADER),
    refused(Feature::Strangers, LEFT_OVER, LOADER),
    refused(Feature::HalfPairs, "needs both factors of a module", LOADER),
    refused(Feature::Inconsistent, "compares the shapes of factors with the config and the model", LOADER),
    refused(Feature::RenamedCopies, LEFT_OVER, LOADER),
    refused(Feature::MissingCopies, "takes no `modules_to_save`", CONFIG),
    refused(Feature::MissingTokens, "takes no `trainable_token_indices`", CONFIG),
    taken(Feature::MissingParts, CONFIG),
    refused(Feature::Undeclared, LEFT_OVER, LOADER),
    refused(Feature::NullPatterns, "reads only objects in their place", CONFIG),
    refused(Feature::NullBias, "reads only a string in its place", CONFIG),
    refused(Feature::UnusableSizes, "reads only numbers in their place", CONFIG),
    taken(Feature::UnusableFields, CONFIG),
    refused(Feature::Untargeted, "refuses factors of modules that `target_modules` does not select", LOADER),
    refused(Feature::NoTargets, "refuses factors of modules that `target_modules` does not select", LOADER),
    taken(Feature::RescaledExperts, LOADER),
];
