//! vLLM.

use super::table::{Program, RankLimit, Rule, ignored, refused, taken};
use crate::check::feature::Feature;

const MODEL: &str = "vllm/lora/lora_model.py at 0306474e";
const HELPER: &str = "vllm/lora/peft_helper.py at e745baff";
const NAMES: &str = "vllm/lora/utils.py, `parse_fine_tuned_lora_name`";
const LINEAR: &str = "vllm/lora/utils.py, `get_supported_lora_modules`";
const ISSUE: &str = "vllm-project/vllm#34186, #41754";
const UNKNOWN_KEYS: &str =
    "knows only `lora_A`, `lora_B` and `lora_embedding_A`, `lora_embedding_B` as ends of keys";
const NOT_READ: &str =
    "does not read the init; the factors are for changed base weights, and act on the original ones";

pub const PROGRAM: Program = Program {
    name: "vllm",
    version: "lora_model.py at 0306474e",
    rules: &RULES,
    rest: None,
    rank: Some(RANK),
};

const RANK: RankLimit = RankLimit {
    option: "--max-lora-rank",
    default: 16,
    largest: Some(512),
    source: "vllm/config/lora.py at 01230b40",
};

const RULES: [Rule; 61] = [
    taken(Feature::PeftFolder, MODEL),
    taken(Feature::Pickle, MODEL),
    refused(Feature::OtherFileName, "looks for `adapter_model.safetensors`, `.bin` and `.pt`", MODEL),
    refused(Feature::Mlx, "looks for `adapter_model.safetensors`, `.bin` and `.pt`", MODEL),
    refused(Feature::Gguf, "looks for `adapter_model.safetensors`, `.bin` and `.pt`", MODEL),
    refused(Feature::ImageFile, "needs `adapter_config.json`", HELPER),
    taken(Feature::Lora, HELPER),
    refused(Feature::AdaLora, UNKNOWN_KEYS, NAMES),
    refused(Feature::Ia3, "needs `r` and `lora_alpha` in the config", HELPER),
    refused(Feature::Loha, "needs `lora_alpha` in the config", HELPER),
    refused(Feature::Lokr, "needs `lora_alpha` in the config", HELPER),
    refused(Feature::OtherMethod, UNKNOWN_KEYS, NAMES),
    refused(Feature::UnknownMethod, UNKNOWN_KEYS, NAMES),
    refused(Feature::Dora, "has no DoRA", HELPER),
    taken(Feature::RsLora, HELPER),
    refused(Feature::LoraBias, UNKNOWN_KEYS, NAMES),
    refused(Feature::BaseBias, "takes no adapter with biases", HELPER),
    refused(Feature::FullCopies, "takes no `modules_to_save`", HELPER),
    refused(Feature::NormCopies, "takes no `modules_to_save`", HELPER),
    refused(Feature::SavedEmbeddings, UNKNOWN_KEYS, "vllm-project/vllm#2816, vllm/lora/utils.py"),
    ignored(Feature::SavedWeights, "leaves out the base weights of an adapter", MODEL),
    refused(Feature::TrainableTokens, UNKNOWN_KEYS, NAMES),
    taken(Feature::Experts, MODEL),
    refused(Feature::BareParameters, "has adapters only on linear layers, embeddings and experts", LINEAR),
    ignored(
        Feature::MixedRanks,
        "does not read `rank_pattern`: it scales every module by `lora_alpha` over the one `r`",
        HELPER,
    ),
    ignored(
        Feature::AlphaPattern,
        "does not read `alpha_pattern`: it scales every module by the one `lora_alpha`",
        HELPER,
    ),
    ignored(Feature::InitFoundAgain, NOT_READ, HELPER),
    ignored(Feature::InitRandomised, NOT_READ, HELPER),
    ignored(Feature::InitCorda, NOT_READ, HELPER),
    ignored(Feature::InitLoraGa, NOT_READ, HELPER),
    taken(Feature::Embedding, MODEL),
    taken(Feature::Head, LINEAR),
    taken(Feature::TiedHead, LINEAR),
    refused(Feature::Convolution, "has adapters only on linear layers, embeddings and experts", LINEAR),
    ignored(Feature::LayerReplication, "does not repeat the blocks of the base model", HELPER),
    ignored(
        Feature::Alora,
        "does not read the invocation tokens: the adapter acts from the first token on",
        HELPER,
    ),
    refused(Feature::Qalora, "does not pool the inputs, for which A is too short", HELPER),
    taken(Feature::FanInFanOut, MODEL),
    ignored(Feature::WeightTying, "does not read the switch: the output layer stays as it is", HELPER),
    ignored(Feature::OtherVariant, "does not read the field", HELPER),
    taken(Feature::NoPrefix, NAMES),
    taken(Feature::NestedPrefix, NAMES),
    ignored(
        Feature::WrapperPrefix,
        "looks at the last name of a path only, and finds no module at the whole of it",
        ISSUE,
    ),
    refused(Feature::AdapterName, UNKNOWN_KEYS, NAMES),
    refused(Feature::OtherAdapterName, UNKNOWN_KEYS, NAMES),
    refused(Feature::NotFloat, "computes with floating-point factors only", MODEL),
    refused(Feature::Strangers, UNKNOWN_KEYS, NAMES),
    refused(Feature::HalfPairs, "needs both factors of a module", MODEL),
    ignored(
        Feature::Inconsistent,
        "does not compare the factors with the config, which is then wrong about them",
        MODEL,
    ),
    refused(Feature::RenamedCopies, UNKNOWN_KEYS, NAMES),
    refused(Feature::MissingCopies, "takes no `modules_to_save`", HELPER),
    taken(Feature::MissingTokens, HELPER),
    taken(Feature::MissingParts, HELPER),
    refused(Feature::Undeclared, UNKNOWN_KEYS, NAMES),
    taken(Feature::NullPatterns, HELPER),
    refused(Feature::NullBias, "takes only `none`", HELPER),
    refused(Feature::UnusableSizes, "divides one by the other", HELPER),
    taken(Feature::UnusableFields, HELPER),
    taken(Feature::Untargeted, MODEL),
    taken(Feature::NoTargets, MODEL),
    taken(Feature::RescaledExperts, MODEL),
];
