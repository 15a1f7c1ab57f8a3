//! Python PEFT.

use super::table::{Program, Rule, ignored, refused, taken};
use crate::check::feature::Feature;

const LOAD: &str = "peft/utils/save_and_load.py 0.21.2";
const CONFIG: &str = "peft/config.py 0.21.2";
const LORA: &str = "peft/tuners/lora/layer.py 0.21.2";
const LORA_CONFIG: &str = "peft/tuners/lora/config.py 0.21.2";
const MODEL: &str = "peft/tuners/tuners_utils.py 0.21.2";
const FUSION: &str = "peft/utils/transformers_weight_conversion.py 0.21.2";
const MISSING: &str = "loads other keys only and warns of missing ones; the adapter stays as it was drawn";

pub const PROGRAM: Program =
    Program { name: "peft", version: "0.21.2", rules: &RULES, rest: None, rank: None };

const RULES: [Rule; 61] = [
    taken(Feature::PeftFolder, LOAD),
    taken(Feature::Pickle, LOAD),
    refused(Feature::OtherFileName, "looks for `adapter_model.safetensors` and `adapter_model.bin`", LOAD),
    refused(Feature::Mlx, "looks for `adapter_model.safetensors` and `adapter_model.bin`", LOAD),
    refused(Feature::Gguf, "reads no GGUF", LOAD),
    refused(Feature::ImageFile, "needs `adapter_config.json`", CONFIG),
    taken(Feature::Lora, CONFIG),
    taken(Feature::AdaLora, CONFIG),
    taken(Feature::Ia3, CONFIG),
    taken(Feature::Loha, CONFIG),
    taken(Feature::Lokr, CONFIG),
    taken(Feature::OtherMethod, CONFIG),
    refused(Feature::UnknownMethod, "has no method of that name", CONFIG),
    taken(Feature::Dora, LORA),
    taken(Feature::RsLora, LORA),
    taken(Feature::LoraBias, LORA),
    taken(Feature::BaseBias, LORA),
    taken(Feature::FullCopies, LOAD),
    taken(Feature::NormCopies, LOAD),
    taken(Feature::SavedEmbeddings, LOAD),
    taken(Feature::SavedWeights, LOAD),
    taken(Feature::TrainableTokens, LOAD),
    taken(Feature::Experts, LORA),
    taken(Feature::BareParameters, LORA),
    taken(Feature::MixedRanks, LORA),
    taken(Feature::AlphaPattern, LORA),
    taken(Feature::InitFoundAgain, LORA),
    ignored(
        Feature::InitRandomised,
        "searches anew when it loads, and takes something else out of the base weights",
        LORA,
    ),
    refused(Feature::InitCorda, "needs the data that the adapter was made with, also to load it", LORA),
    ignored(Feature::InitLoraGa, "does not take out of the base weights again what the init took", LORA),
    taken(Feature::Embedding, LORA),
    taken(Feature::Head, LORA),
    taken(Feature::TiedHead, LORA),
    taken(Feature::Convolution, LORA),
    taken(Feature::LayerReplication, LORA),
    taken(Feature::Alora, LORA),
    taken(Feature::Qalora, LORA),
    taken(Feature::FanInFanOut, LORA),
    taken(Feature::WeightTying, LORA),
    taken(Feature::OtherVariant, LORA),
    ignored(Feature::NoPrefix, MISSING, LOAD),
    ignored(Feature::NestedPrefix, MISSING, LOAD),
    ignored(Feature::WrapperPrefix, MISSING, LOAD),
    taken(Feature::AdapterName, LOAD),
    ignored(
        Feature::OtherAdapterName,
        "finds them only if it loads the adapter under that name, and not under `default`",
        LOAD,
    ),
    taken(Feature::NotFloat, LOAD),
    ignored(Feature::Strangers, "leaves out what belongs to no module, without a word", LOAD),
    ignored(Feature::HalfPairs, "warns, and keeps the other factor as it was drawn", LOAD),
    refused(Feature::Inconsistent, "cannot put tensors into its layers that have other shapes", LOAD),
    refused(
        Feature::RenamedCopies,
        "looks for the tensors of `modules_to_save` under the module's own path",
        LOAD,
    ),
    refused(
        Feature::MissingCopies,
        "stops when the file does not have the modules of `modules_to_save`",
        LOAD,
    ),
    refused(
        Feature::MissingTokens,
        "stops when the file does not have the rows of `trainable_token_indices`",
        LOAD,
    ),
    ignored(Feature::MissingParts, "warns, and makes them anew", LOAD),
    ignored(Feature::Undeclared, "has no place for them while the setting is off, and leaves them out", LOAD),
    refused(Feature::NullPatterns, "looks for keys in them", LORA),
    refused(Feature::NullBias, "takes `none`, `all` and names that end in `_only`", MODEL),
    refused(Feature::UnusableSizes, "divides one by the other", LORA),
    refused(Feature::UnusableFields, "does not take such a value", LORA_CONFIG),
    ignored(Feature::Untargeted, "adapts the selected modules only, and leaves out the other tensors", MODEL),
    refused(Feature::NoTargets, "refuses a config that selects no module", MODEL),
    ignored(
        Feature::RescaledExperts,
        "fuses the experts with twice the rank and alpha, and does not take over patterns",
        FUSION,
    ),
];
