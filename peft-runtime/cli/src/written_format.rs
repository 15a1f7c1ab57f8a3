//! The formats that `peft convert` writes.

use clap::ValueEnum;

/// The formats that `peft convert` writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// PEFT's own: a folder with `adapter_config.json` and `adapter_model.safetensors`.
    Peft,
    /// LoRA for the unchanged base model: no rsLoRA, no alpha patterns, no AdaLoRA, no init that changed the weights.
    PlainLora,
    /// llama.cpp's adapter format.
    Gguf,
    /// A file of kohya's sd-scripts, ComfyUI or LyCORIS.
    Kohya,
    /// A file of diffusers.
    Diffusers,
    /// A folder of mlx-lm: one rank and one scale for all modules.
    Mlx,
}

/// The models of a pipeline that an adapter of an image model can be for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Component {
    /// The UNet.
    Unet,
    /// The transformer in the UNet's place.
    Transformer,
    /// The text encoder, or the first of several.
    TextEncoder,
    /// The second text encoder.
    #[value(name = "text-encoder-2")]
    TextEncoder2,
}
