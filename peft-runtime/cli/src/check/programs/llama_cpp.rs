//! llama.cpp: its own GGUF file, and what `convert_lora_to_gguf.py` makes of PEFT's folder.

use super::table::{Program, Rule, ignored, refused, taken};
use crate::check::feature::Feature;

const CONVERTER: &str = "convert_lora_to_gguf.py at 0b03adaa";
const ADAPTER: &str = "src/llama-adapter.cpp at 0b03adaa";
const UNEXPECTED: &str = "stops at tensors that are neither `lora_A` nor `lora_B`";
const NOT_READ: &str =
    "does not read the init; the factors are for changed base weights, and act on the original ones";

pub const PROGRAM: Program =
    Program { name: "llama.cpp", version: "0b03adaa", rules: &RULES, rest: None, rank: None };

const RULES: [Rule; 61] = [
    taken(Feature::PeftFolder, CONVERTER),
    taken(Feature::Pickle, CONVERTER),
    refused(
        Feature::OtherFileName,
        "looks for `adapter_model.safetensors` and `adapter_model.bin`",
        CONVERTER,
    ),
    refused(Feature::Mlx, "looks for `adapter_model.safetensors` and `adapter_model.bin`", CONVERTER),
    taken(Feature::Gguf, ADAPTER),
    refused(Feature::ImageFile, "needs `adapter_config.json`", CONVERTER),
    taken(Feature::Lora, CONVERTER),
    refused(Feature::AdaLora, UNEXPECTED, CONVERTER),
    refused(Feature::Ia3, UNEXPECTED, CONVERTER),
    refused(Feature::Loha, UNEXPECTED, CONVERTER),
    refused(Feature::Lokr, UNEXPECTED, CONVERTER),
    refused(Feature::OtherMethod, UNEXPECTED, CONVERTER),
    refused(Feature::UnknownMethod, UNEXPECTED, CONVERTER),
    refused(Feature::Dora, UNEXPECTED, CONVERTER),
    ignored(Feature::RsLora, "reads `lora_alpha` only: it scales by alpha over the rank", CONVERTER),
    refused(Feature::LoraBias, UNEXPECTED, CONVERTER),
    refused(Feature::BaseBias, UNEXPECTED, CONVERTER),
    refused(Feature::FullCopies, "stops at weights that were trained in full", "ggml-org/llama.cpp#9948"),
    ignored(Feature::NormCopies, "writes them, and does not read them when it loads the adapter", ADAPTER),
    refused(Feature::SavedEmbeddings, "stops at the weights of embeddings", "ggml-org/llama.cpp#9948"),
    ignored(Feature::SavedWeights, "leaves out the base weights of an adapter", CONVERTER),
    refused(Feature::TrainableTokens, UNEXPECTED, CONVERTER),
    refused(Feature::Experts, "finds no names for factors of fused experts", CONVERTER),
    refused(Feature::BareParameters, "finds no names for factors of bare parameters", CONVERTER),
    taken(Feature::MixedRanks, ADAPTER),
    ignored(Feature::AlphaPattern, "has one alpha for all tensors, and reads `lora_alpha` only", CONVERTER),
    ignored(Feature::InitFoundAgain, NOT_READ, CONVERTER),
    ignored(Feature::InitRandomised, NOT_READ, CONVERTER),
    ignored(Feature::InitCorda, NOT_READ, CONVERTER),
    ignored(Feature::InitLoraGa, NOT_READ, CONVERTER),
    taken(Feature::Embedding, CONVERTER),
    taken(Feature::Head, CONVERTER),
    refused(
        Feature::TiedHead,
        "has no output layer of its own in such a model",
        "ggml-org/llama.cpp#9065, convert_lora_to_gguf.py",
    ),
    refused(Feature::Convolution, "has adapters only on matrices", CONVERTER),
    ignored(Feature::LayerReplication, "does not repeat the blocks of the base model", CONVERTER),
    taken(Feature::Alora, CONVERTER),
    refused(Feature::Qalora, "does not pool the inputs, for which A is too short", ADAPTER),
    ignored(
        Feature::FanInFanOut,
        "transposes the updates of GPT-2's layers together with their weights, which are the other way round",
        "convert_hf_to_gguf.py at 0b03adaa, `GPT2Model`",
    ),
    ignored(Feature::WeightTying, "does not read the switch: the output layer stays as it is", CONVERTER),
    ignored(Feature::OtherVariant, "does not read the field", CONVERTER),
    taken(Feature::NoPrefix, CONVERTER),
    taken(Feature::NestedPrefix, CONVERTER),
    refused(Feature::WrapperPrefix, "finds no names for such paths", CONVERTER),
    refused(Feature::AdapterName, UNEXPECTED, CONVERTER),
    refused(Feature::OtherAdapterName, UNEXPECTED, CONVERTER),
    refused(Feature::NotFloat, "writes floating-point factors only", CONVERTER),
    refused(Feature::Strangers, UNEXPECTED, CONVERTER),
    refused(Feature::HalfPairs, "needs both factors of a module", CONVERTER),
    ignored(
        Feature::Inconsistent,
        "does not compare the factors with the config, which is then wrong about them",
        CONVERTER,
    ),
    refused(Feature::RenamedCopies, UNEXPECTED, CONVERTER),
    taken(Feature::MissingCopies, CONVERTER),
    taken(Feature::MissingTokens, CONVERTER),
    taken(Feature::MissingParts, CONVERTER),
    refused(Feature::Undeclared, UNEXPECTED, CONVERTER),
    taken(Feature::NullPatterns, CONVERTER),
    taken(Feature::NullBias, CONVERTER),
    refused(Feature::UnusableSizes, "writes `lora_alpha` as a number", CONVERTER),
    taken(Feature::UnusableFields, CONVERTER),
    taken(Feature::Untargeted, CONVERTER),
    taken(Feature::NoTargets, CONVERTER),
    taken(Feature::RescaledExperts, CONVERTER),
];
