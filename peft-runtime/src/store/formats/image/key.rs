//! The keys of image models' adapters: a module under the name that a program has for it, and what of its update a tensor is.

/// What a tensor is of the update of a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    /// The factor A, `[rank, in, …kernel]`.
    Down,
    /// The factor B, `[out, rank, 1, …]`.
    Up,
    /// What B adds to the output, `[out]`.
    UpBias,
    /// The core between A and B of a convolution, `[rank, rank, …kernel]`.
    Mid,
    /// The number that the rank divides.
    Alpha,
    /// DoRA's lengths under LyCORIS's name: `[out, 1, …]`, or `[1, in, 1, …]`.
    Scale,
    /// DoRA's lengths under PEFT's name: `[out]` or `[1, out, 1, …]`.
    Magnitude,
    /// What is added to the weight.
    Diff,
    /// What is added to the bias.
    BiasDiff,
    /// A tensor that is called the same in PEFT.
    Own(&'static str),
}

/// The ends of keys. Where two fit, the first one counts.
const ENDS: [(&str, Part); 18] = [
    (".lora_down.weight", Part::Down),
    (".lora_up.weight", Part::Up),
    (".lora_mid.weight", Part::Mid),
    (".lora_A.weight", Part::Down),
    (".lora_B.weight", Part::Up),
    (".lora_B.bias", Part::UpBias),
    (".lora.down.weight", Part::Down),
    (".lora.up.weight", Part::Up),
    (".lora_linear_layer.down.weight", Part::Down),
    (".lora_linear_layer.up.weight", Part::Up),
    ("_lora.down.weight", Part::Down),
    ("_lora.up.weight", Part::Up),
    (".lora_magnitude_vector.weight", Part::Magnitude),
    (".lora_magnitude_vector", Part::Magnitude),
    (".alpha", Part::Alpha),
    (".dora_scale", Part::Scale),
    (".diff", Part::Diff),
    (".diff_b", Part::BiasDiff),
];

/// The ends of keys that only XLabs has, on modules that it calls `…processor.qkv_lora1`.
const NUMBERED_ENDS: [(&str, Part); 2] = [(".down.weight", Part::Down), (".up.weight", Part::Up)];

/// The ends of LyCORIS's keys.
const LYCORIS_ENDS: [(&str, Part); 15] = [
    (".w_norm", Part::Diff),
    (".b_norm", Part::BiasDiff),
    (".hada_w1_a", Part::Own("hada_w1_a")),
    (".hada_w1_b", Part::Own("hada_w1_b")),
    (".hada_w2_a", Part::Own("hada_w2_a")),
    (".hada_w2_b", Part::Own("hada_w2_b")),
    (".hada_t1", Part::Own("hada_t1")),
    (".hada_t2", Part::Own("hada_t2")),
    (".lokr_w1", Part::Own("lokr_w1")),
    (".lokr_w1_a", Part::Own("lokr_w1_a")),
    (".lokr_w1_b", Part::Own("lokr_w1_b")),
    (".lokr_w2", Part::Own("lokr_w2")),
    (".lokr_w2_a", Part::Own("lokr_w2_a")),
    (".lokr_w2_b", Part::Own("lokr_w2_b")),
    (".lokr_t2", Part::Own("lokr_t2")),
];

/// Ends with the name of an adapter in them: `.lora_A.default.weight`.
const NAMED_ENDS: [(&str, &str, Part); 4] = [
    (".lora_A.", ".weight", Part::Down),
    (".lora_B.", ".weight", Part::Up),
    (".lora_B.", ".bias", Part::UpBias),
    (".lora_magnitude_vector.", ".weight", Part::Magnitude),
];

/// Ends of methods that are not read, each with the method.
const FOREIGN_ENDS: [(&str, &str); 9] = [
    (".oft_blocks", "OFT"),
    (".oft_diag", "OFT"),
    (".rescale", "OFT"),
    (".a1.weight", "GLoRA"),
    (".a2.weight", "GLoRA"),
    (".b1.weight", "GLoRA"),
    (".b2.weight", "GLoRA"),
    (".on_input", "LyCORIS's IA3"),
    (".lora_down.0.weight", "LoRA with one A for each part of a fused layer"),
];

/// The module and the part of a key; `None` if its end is unknown.
pub(super) fn split(key: &str) -> Option<(&str, Part)> {
    let by_end = |ends: &[(&str, Part)]| {
        ends.iter()
            .find_map(|(end, part)| Some((key.strip_suffix(end).filter(|name| !name.is_empty())?, *part)))
    };
    let numbered = || by_end(&NUMBERED_ENDS).filter(|(module, _)| module.contains("_lora"));
    let named = || {
        NAMED_ENDS.iter().find_map(|(marker, last, part)| {
            let (module, adapter) = key.strip_suffix(last)?.rsplit_once(marker)?;
            (!module.is_empty() && !adapter.contains('.')).then_some((module, *part))
        })
    };
    by_end(&ENDS).or_else(|| by_end(&LYCORIS_ENDS)).or_else(numbered).or_else(named)
}

/// Whether a key is one that LyCORIS writes and kohya's program does not.
pub(super) fn is_of_lycoris(key: &str) -> bool {
    LYCORIS_ENDS.iter().map(|(end, _)| *end).chain([".diff", ".diff_b"]).any(|end| key.ends_with(end))
}

/// Whether a key is one of a method that only LyCORIS has, which is not read.
pub(super) fn is_of_another_method(key: &str) -> bool {
    FOREIGN_ENDS.iter().any(|(end, _)| key.ends_with(end))
}

/// Whether a key has one of the spellings that diffusers has had, and nobody else.
pub(super) fn is_spelt_by_diffusers(key: &str) -> bool {
    [".lora.down.weight", ".lora.up.weight", "_lora.down.weight", "_lora.up.weight"]
        .into_iter()
        .chain([".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"])
        .any(|end| key.ends_with(end))
}

/// Whether a key is one of XLabs's for FLUX.
pub(super) fn is_of_xlabs(key: &str) -> bool {
    let key = key.strip_prefix("diffusion_model.").unwrap_or(key);
    (key.starts_with("double_blocks.") || key.starts_with("single_blocks."))
        && key.contains(".processor.")
        && split(key).is_some()
}

/// Why a key with an unknown end is not read.
pub(super) fn unknown_end(key: &str) -> String {
    match FOREIGN_ENDS.iter().find(|(end, _)| key.ends_with(end)) {
        Some((_, method)) => format!("is a tensor of {method}, which is not supported"),
        None => "is no part of an adapter that is known".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::{Part, split};

    #[test]
    fn every_spelling_of_a_factor_is_taken_apart() {
        for (key, module, part) in [
            (
                "lora_unet_mid_block_resnets_0_conv1.lora_down.weight",
                "lora_unet_mid_block_resnets_0_conv1",
                Part::Down,
            ),
            ("lora_unet_a.alpha", "lora_unet_a", Part::Alpha),
            ("unet.a.to_q.lora_A.weight", "unet.a.to_q", Part::Down),
            ("unet.a.to_q.lora_B.some-name.weight", "unet.a.to_q", Part::Up),
            ("unet.a.to_out.0.lora.up.weight", "unet.a.to_out.0", Part::Up),
            ("unet.a.processor.to_out_lora.up.weight", "unet.a.processor.to_out", Part::Up),
            ("text_encoder.a.q_proj.lora_linear_layer.down.weight", "text_encoder.a.q_proj", Part::Down),
            (
                "double_blocks.0.processor.qkv_lora1.up.weight",
                "double_blocks.0.processor.qkv_lora1",
                Part::Up,
            ),
            ("single_blocks.0.processor.qkv_lora.down.weight", "single_blocks.0.processor.qkv", Part::Down),
            ("unet.a.lora_magnitude_vector", "unet.a", Part::Magnitude),
            ("lora_unet_a.lokr_w2_b", "lora_unet_a", Part::Own("lokr_w2_b")),
            ("lora_unet_a.b_norm", "lora_unet_a", Part::BiasDiff),
        ] {
            assert_eq!(split(key), Some((module, part)), "{key}");
        }
        for key in ["lora_unet_a.oft_blocks", "a.weight", ".alpha", "a.down.weight", "clip_g"] {
            assert_eq!(split(key), None, "{key}");
        }
    }
}
