//! The parts of a file, each for one model of a pipeline: the image model, and the text encoders.

/// What sort of model a part of a file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Role {
    /// Whatever the base model is.
    Any,
    /// The UNet or the transformer.
    Image,
    /// The text encoder of this number.
    Text(u8),
}

/// A part of a file, told by what its names begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Component {
    /// What the names begin with; empty where they are those of the model itself.
    pub(super) prefix: &'static str,
    pub(super) role: Role,
    /// Whether the dots of module paths are `_`.
    pub(super) flat: bool,
}

/// The names without anything before them.
const BARE: Component = Component { prefix: "", role: Role::Any, flat: false };

const FLAT: [(&str, Role); 8] = [
    ("lora_unet_", Role::Image),
    ("lora_transformer_", Role::Image),
    ("lora_te_", Role::Text(1)),
    ("lora_te1_", Role::Text(1)),
    ("lora_te2_", Role::Text(2)),
    ("lora_te3_", Role::Text(3)),
    ("lycoris_", Role::Any),
    ("lora_model_", Role::Any),
];

/// Longer ones first.
const DOTTED: [(&str, Role); 15] = [
    ("model.diffusion_model.", Role::Image),
    ("diffusion_model.", Role::Image),
    ("unet.", Role::Image),
    ("transformer.", Role::Image),
    ("lora_unet.", Role::Image),
    ("lora_te1.", Role::Text(1)),
    ("lora_te2.", Role::Text(2)),
    ("text_encoders.clip_l.transformer.", Role::Text(1)),
    ("text_encoders.clip_g.transformer.", Role::Text(2)),
    ("text_encoders.t5xxl.transformer.", Role::Text(3)),
    ("text_encoder.", Role::Text(1)),
    ("text_encoder_2.", Role::Text(2)),
    ("text_encoder_3.", Role::Text(3)),
    ("lora_te.", Role::Text(1)),
    ("lycoris.", Role::Any),
];

/// Modules that image models begin with, under the names of diffusers and of FLUX's own program.
const IMAGE_MODULES: [&str; 7] = [
    "down_blocks.",
    "mid_block.",
    "up_blocks.",
    "transformer_blocks.",
    "single_transformer_blocks.",
    "double_blocks.",
    "single_blocks.",
];

/// What modules of language models begin with that have a `transformer`, as GPT-2, BLOOM, DistilBERT and ChatGLM.
const LANGUAGE_MODULES: [&str; 9] =
    ["h.", "layer.", "encoder.", "wte", "wpe", "ln_f", "word_embeddings", "embedding.", "output_layer"];

/// What layers of language models are called whose blocks have the names of an image model's, as those of MPT.
const LANGUAGE_LAYERS: [&str; 4] = ["Wqkv", "query_key_value", "c_attn", "attn.out_proj"];

/// Whether a name behind `transformer.` is that of a language model's module.
pub(super) fn is_of_language_model(module: &str) -> bool {
    LANGUAGE_MODULES.iter().any(|start| module.starts_with(start))
        || LANGUAGE_LAYERS.iter().any(|end| module.ends_with(end))
}

/// The part of the file that a module is in, and its name there.
pub(super) fn split(module: &str) -> (Component, &str) {
    let of = |table: &'static [(&'static str, Role)], flat: bool| {
        table.iter().find_map(|(prefix, role)| {
            let rest = module.strip_prefix(prefix).filter(|rest| !rest.is_empty())?;
            Some((Component { prefix, role: *role, flat }, rest))
        })
    };
    of(&FLAT, true).or_else(|| of(&DOTTED, false)).unwrap_or((BARE, module))
}

impl Component {
    /// What errors and reports call it.
    pub(super) fn label(&self) -> &'static str {
        match self.prefix {
            "" => "names without a prefix",
            prefix => prefix.trim_end_matches(['.', '_']),
        }
    }

    /// Whether it is one that diffusers writes.
    pub(super) fn is_of_diffusers(&self) -> bool {
        ["unet.", "transformer.", "text_encoder.", "text_encoder_2.", "text_encoder_3."]
            .contains(&self.prefix)
    }
}

/// Whether a name without a prefix is that of an image model's module.
pub(super) fn is_of_image_model(module: &str) -> bool {
    IMAGE_MODULES.iter().any(|start| module.starts_with(start))
}
