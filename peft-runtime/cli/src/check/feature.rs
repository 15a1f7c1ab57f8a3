//! What programs that read adapters treat differently.

/// Something in an adapter that a program may take, ignore or refuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Feature {
    /// `adapter_config.json` and `adapter_model.safetensors`.
    PeftFolder,
    /// `adapter_model.bin`.
    Pickle,
    /// A safetensors file of PEFT's under another name.
    OtherFileName,
    /// The folder that mlx-lm writes.
    Mlx,
    /// llama.cpp's adapter file.
    Gguf,
    /// A file of kohya, ComfyUI, diffusers or LyCORIS.
    ImageFile,
    /// `peft_type` is `LORA`.
    Lora,
    AdaLora,
    Ia3,
    Loha,
    Lokr,
    /// Any other `peft_type` of PEFT's.
    OtherMethod,
    /// A `peft_type` that PEFT does not have, or none.
    UnknownMethod,
    Dora,
    RsLora,
    /// A bias of B.
    LoraBias,
    /// Biases of the base model.
    BaseBias,
    /// Modules that were trained in full.
    FullCopies,
    /// The same of a normalisation.
    NormCopies,
    /// Weights of the base model under an adapter (`base_layer.weight`), which PEFT saved with it.
    SavedWeights,
    /// Weights of embeddings and output layers that PEFT saved with the adapter.
    SavedEmbeddings,
    TrainableTokens,
    /// Factors of a mixture's experts.
    Experts,
    /// Factors of other bare parameters.
    BareParameters,
    /// Ranks that differ from module to module.
    MixedRanks,
    /// Alphas that differ from module to module.
    AlphaPattern,
    /// An init that took something out of the base weights and finds it again: PiSSA, OLoRA, LoftQ.
    InitFoundAgain,
    /// PiSSA by a random search.
    InitRandomised,
    /// CorDA, which needs the data that it was made with.
    InitCorda,
    /// LoRA-GA, which needs the gradients that it was made with.
    InitLoraGa,
    /// Factors of an embedding.
    Embedding,
    /// Factors of the output layer.
    Head,
    /// The same where the base model has the embedding in its place.
    TiedHead,
    /// Factors of a convolution.
    Convolution,
    LayerReplication,
    Alora,
    Qalora,
    FanInFanOut,
    /// One adapter for embedding and tied output layer.
    WeightTying,
    /// Other variants of LoRA: BD-LoRA, Arrow, MonteCLoRA, KaSA, VeLoRA, Megatron.
    OtherVariant,
    /// Keys without `base_model.model.`.
    NoPrefix,
    /// Keys with `base_model.model.` twice.
    NestedPrefix,
    /// Keys with the prefix of another wrapper: `_orig_mod.`, `module.`.
    WrapperPrefix,
    /// Keys with the adapter's name in them, which is `default`.
    AdapterName,
    /// Keys with another name of the adapter in them.
    OtherAdapterName,
    /// Tensors that are not of a floating-point type.
    NotFloat,
    /// Tensors that belong to nothing.
    Strangers,
    /// A factor without the other one.
    HalfPairs,
    /// Tensors that do not have the sizes that the config says.
    Inconsistent,
    /// Modules that were trained in full, only under keys with `modules_to_save` in them.
    RenamedCopies,
    /// Modules that the config has as trained in full, without their tensors.
    MissingCopies,
    /// Rows of embeddings that the config has as trained, without their tensors.
    MissingTokens,
    /// Other tensors that the config asks for and the file does not have.
    MissingParts,
    /// Tensors of settings that are off in the config.
    Undeclared,
    /// `rank_pattern` or `alpha_pattern` that are null.
    NullPatterns,
    /// `bias` that is null.
    NullBias,
    /// A rank or alpha that is not a number.
    UnusableSizes,
    /// Other fields with values that PEFT refuses.
    UnusableFields,
    /// Factors of modules that the config does not select.
    Untargeted,
    /// A config that selects no module of the adapter.
    NoTargets,
    /// Factors of single experts whose scaling changes when PEFT fuses them.
    RescaledExperts,
    /// A rank above the limit that the program is started with.
    LargeRank,
}

impl Feature {
    /// All of them.
    #[cfg(test)]
    pub const ALL: [Self; 62] = [
        Self::PeftFolder,
        Self::Pickle,
        Self::OtherFileName,
        Self::Mlx,
        Self::Gguf,
        Self::ImageFile,
        Self::Lora,
        Self::AdaLora,
        Self::Ia3,
        Self::Loha,
        Self::Lokr,
        Self::OtherMethod,
        Self::UnknownMethod,
        Self::Dora,
        Self::RsLora,
        Self::LoraBias,
        Self::BaseBias,
        Self::FullCopies,
        Self::NormCopies,
        Self::SavedWeights,
        Self::SavedEmbeddings,
        Self::TrainableTokens,
        Self::Experts,
        Self::BareParameters,
        Self::MixedRanks,
        Self::AlphaPattern,
        Self::InitFoundAgain,
        Self::InitRandomised,
        Self::InitCorda,
        Self::InitLoraGa,
        Self::Embedding,
        Self::Head,
        Self::TiedHead,
        Self::Convolution,
        Self::LayerReplication,
        Self::Alora,
        Self::Qalora,
        Self::FanInFanOut,
        Self::WeightTying,
        Self::OtherVariant,
        Self::NoPrefix,
        Self::NestedPrefix,
        Self::WrapperPrefix,
        Self::AdapterName,
        Self::OtherAdapterName,
        Self::NotFloat,
        Self::Strangers,
        Self::HalfPairs,
        Self::Inconsistent,
        Self::RenamedCopies,
        Self::MissingCopies,
        Self::MissingTokens,
        Self::MissingParts,
        Self::Undeclared,
        Self::NullPatterns,
        Self::NullBias,
        Self::UnusableSizes,
        Self::UnusableFields,
        Self::Untargeted,
        Self::NoTargets,
        Self::RescaledExperts,
        Self::LargeRank,
    ];

    /// The name that JSON has.
    pub fn name(self) -> String {
        let mut name = String::new();
        for c in format!("{self:?}").chars() {
            if c.is_ascii_uppercase() && !name.is_empty() {
                name.push('-');
            }
            name.push(c.to_ascii_lowercase());
        }
        name
    }
}
