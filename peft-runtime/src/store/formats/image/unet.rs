//! The names that Stability's own program has for the modules of a UNet, which SDXL's files of kohya and ComfyUI use.

use std::collections::BTreeMap;

/// What the numbers of blocks follow from: how a UNet of diffusers is built, by its modules.
#[derive(Debug, Default)]
pub(super) struct Unet {
    /// For each block on the way down: its residual layers, and whether it ends in a downsampler.
    down: BTreeMap<usize, Block>,
    up: BTreeMap<usize, Block>,
}

#[derive(Debug, Default)]
struct Block {
    layers: usize,
    resamples: bool,
    attends: bool,
}

/// The parts of a residual layer: in diffusers, and in Stability's program.
const RESNET: [(&str, &str); 6] = [
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("time_emb_proj", "emb_layers.1"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("conv_shortcut", "skip_connection"),
];

/// The modules outside of blocks.
const OUTER: [(&str, &str); 7] = [
    ("conv_in", "input_blocks.0.0"),
    ("conv_norm_out", "out.0"),
    ("conv_out", "out.2"),
    ("time_embedding.linear_1", "time_embed.0"),
    ("time_embedding.linear_2", "time_embed.2"),
    ("add_embedding.linear_1", "label_emb.0.0"),
    ("add_embedding.linear_2", "label_emb.0.2"),
];

impl Unet {
    pub(super) fn of<'m>(modules: impl Iterator<Item = &'m str>) -> Self {
        let mut unet = Self::default();
        for module in modules {
            let mut segments = module.split('.');
            let blocks = match segments.next() {
                Some("down_blocks") => &mut unet.down,
                Some("up_blocks") => &mut unet.up,
                _ => continue,
            };
            let (Some(block), Some(kind), Some(number)) =
                (number(segments.next()), segments.next(), number(segments.next()))
            else {
                continue;
            };
            let block = blocks.entry(block).or_default();
            match kind {
                "resnets" => block.layers = block.layers.max(number.saturating_add(1)),
                "attentions" => block.attends = true,
                "downsamplers" | "upsamplers" => block.resamples = true,
                _ => {}
            }
        }
        unet
    }

    /// The name of a module of diffusers in Stability's program.
    pub(super) fn name(&self, module: &str) -> Option<String> {
        if let Some((_, name)) = OUTER.iter().find(|(known, _)| *known == module) {
            return Some((*name).to_owned());
        }
        let (place, rest) = module.split_once('.')?;
        match place {
            "mid_block" => {
                let (kind, number, rest) = kind_and_number(rest)?;
                let position = number.checked_mul(2)? + usize::from(kind == "attentions");
                Some(format!("middle_block.{position}.{}", inner(kind, rest)?))
            }
            "down_blocks" => {
                let (block, rest) = rest.split_once('.')?;
                let block: usize = block.parse().ok()?;
                let (kind, number, rest) = kind_and_number(rest)?;
                let before: usize = self
                    .down
                    .range(..block)
                    .map(|(_, block)| block.layers + usize::from(block.resamples))
                    .sum();
                let (layer, position) = match kind {
                    "resnets" => (number, 0),
                    "attentions" => (number, 1),
                    "downsamplers" => (self.down.get(&block)?.layers, 0),
                    _ => return None,
                };
                Some(format!("input_blocks.{}.{position}.{}", 1 + before + layer, inner(kind, rest)?))
            }
            "up_blocks" => {
                let (block, rest) = rest.split_once('.')?;
                let block: usize = block.parse().ok()?;
                let (kind, number, rest) = kind_and_number(rest)?;
                let before: usize = self.up.range(..block).map(|(_, block)| block.layers).sum();
                let own = self.up.get(&block)?;
                let (layer, position) = match kind {
                    "resnets" => (number, 0),
                    "attentions" => (number, 1),
                    "upsamplers" => (own.layers.checked_sub(1)?, 1 + usize::from(own.attends)),
                    _ => return None,
                };
                Some(format!("output_blocks.{}.{position}.{}", before + layer, inner(kind, rest)?))
            }
            _ => None,
        }
    }
}

/// The name of a module inside of its layer.
fn inner(kind: &str, rest: &str) -> Option<String> {
    match kind {
        "resnets" => RESNET.iter().find(|(known, _)| *known == rest).map(|(_, name)| (*name).to_owned()),
        "downsamplers" if rest == "conv" => Some("op".to_owned()),
        "attentions" | "upsamplers" => Some(rest.to_owned()),
        _ => None,
    }
}

fn kind_and_number(path: &str) -> Option<(&str, usize, &str)> {
    let (kind, rest) = path.split_once('.')?;
    let (number, rest) = rest.split_once('.')?;
    Some((kind, number.parse().ok()?, rest))
}

/// A number as long as those of blocks are.
fn number(segment: Option<&str>) -> Option<usize> {
    segment?.parse().ok().filter(|number| *number < 10_000)
}

#[cfg(test)]
mod tests {
    use super::Unet;

    /// SDXL's blocks: two layers down and three up, attention in the deeper ones.
    fn sdxl() -> Vec<String> {
        let mut modules = Vec::new();
        for block in 0..3 {
            for layer in 0..3 {
                modules.push(format!("up_blocks.{block}.resnets.{layer}.conv1"));
                if layer < 2 {
                    modules.push(format!("down_blocks.{block}.resnets.{layer}.conv1"));
                }
                if block < 2 {
                    modules.push(format!("up_blocks.{block}.attentions.{layer}.proj_in"));
                }
            }
            if block < 2 {
                modules.push(format!("down_blocks.{block}.downsamplers.0.conv"));
                modules.push(format!("up_blocks.{block}.upsamplers.0.conv"));
            }
        }
        modules
    }

    #[test]
    fn blocks_have_the_numbers_of_stability_s_checkpoints() {
        // The names on the right are those in Stability's sd_xl_base_1.0.safetensors.
        let modules = sdxl();
        let unet = Unet::of(modules.iter().map(String::as_str));
        for (own, expected) in [
            ("conv_in", "input_blocks.0.0"),
            ("down_blocks.0.resnets.1.time_emb_proj", "input_blocks.2.0.emb_layers.1"),
            ("down_blocks.0.downsamplers.0.conv", "input_blocks.3.0.op"),
            ("down_blocks.1.resnets.0.conv_shortcut", "input_blocks.4.0.skip_connection"),
            (
                "down_blocks.2.attentions.1.transformer_blocks.9.attn2.to_k",
                "input_blocks.8.1.transformer_blocks.9.attn2.to_k",
            ),
            ("mid_block.attentions.0.proj_in", "middle_block.1.proj_in"),
            ("mid_block.resnets.1.conv2", "middle_block.2.out_layers.3"),
            ("up_blocks.0.upsamplers.0.conv", "output_blocks.2.2.conv"),
            ("up_blocks.1.upsamplers.0.conv", "output_blocks.5.2.conv"),
            ("up_blocks.2.resnets.2.conv1", "output_blocks.8.0.in_layers.2"),
            ("conv_out", "out.2"),
            ("add_embedding.linear_2", "label_emb.0.2"),
        ] {
            assert_eq!(unet.name(own).as_deref(), Some(expected), "{own}");
        }
        assert_eq!(unet.name("up_blocks.7.resnets.0.conv1"), None);
        assert_eq!(unet.name("encoder.layers.0.fc1"), None);
    }
}
