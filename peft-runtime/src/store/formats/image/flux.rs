//! The two namings of FLUX's modules: that of its own program, which fuses layers, and that of diffusers.

use std::ops::Range;

use super::place::{Piece, Place};

/// Modules that are the same in both: in the own program, and in diffusers.
const OUTER: [(&str, &str); 9] = [
    ("img_in", "x_embedder"),
    ("txt_in", "context_embedder"),
    ("time_in.in_layer", "time_text_embed.timestep_embedder.linear_1"),
    ("time_in.out_layer", "time_text_embed.timestep_embedder.linear_2"),
    ("vector_in.in_layer", "time_text_embed.text_embedder.linear_1"),
    ("vector_in.out_layer", "time_text_embed.text_embedder.linear_2"),
    ("guidance_in.in_layer", "time_text_embed.guidance_embedder.linear_1"),
    ("guidance_in.out_layer", "time_text_embed.guidance_embedder.linear_2"),
    ("final_layer.linear", "proj_out"),
];

/// Shift and scale, which diffusers has in the other order.
const SWAPPED: (&str, &str) = ("final_layer.adaLN_modulation.1", "norm_out.linear");

/// Modules of a block with two streams, with XLabs's names at the end.
const DOUBLE: [(&str, &str); 14] = [
    ("img_mod.lin", "norm1.linear"),
    ("txt_mod.lin", "norm1_context.linear"),
    ("img_attn.proj", "attn.to_out.0"),
    ("txt_attn.proj", "attn.to_add_out"),
    ("img_mlp.0", "ff.net.0.proj"),
    ("img_mlp.2", "ff.net.2"),
    ("txt_mlp.0", "ff_context.net.0.proj"),
    ("txt_mlp.2", "ff_context.net.2"),
    ("img_attn.norm.query_norm", "attn.norm_q"),
    ("img_attn.norm.key_norm", "attn.norm_k"),
    ("txt_attn.norm.query_norm", "attn.norm_added_q"),
    ("txt_attn.norm.key_norm", "attn.norm_added_k"),
    ("proj_lora1", "attn.to_out.0"),
    ("proj_lora2", "attn.to_add_out"),
];

/// Modules of a block with one stream.
const SINGLE: [(&str, &str); 5] = [
    ("modulation.lin", "norm.linear"),
    ("linear2", "proj_out"),
    ("norm.query_norm", "attn.norm_q"),
    ("norm.key_norm", "attn.norm_k"),
    ("proj", "proj_out"),
];

/// A fused module and its parts in order.
type Fused = (&'static str, &'static [&'static str]);

const IMAGE_PARTS: &[&str] = &["attn.to_q", "attn.to_k", "attn.to_v"];
const TEXT_PARTS: &[&str] = &["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"];

static FUSED_DOUBLE: [Fused; 4] = [
    ("img_attn.qkv", IMAGE_PARTS),
    ("txt_attn.qkv", TEXT_PARTS),
    ("qkv_lora1", IMAGE_PARTS),
    ("qkv_lora2", TEXT_PARTS),
];

static FUSED_SINGLE: [Fused; 2] =
    [("linear1", &["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"]), ("qkv", IMAGE_PARTS)];

/// XLabs's names of modules that FLUX's own program calls otherwise, in blocks with two streams and with one.
const XLABS_DOUBLE: [(&str, &str); 4] = [
    ("qkv_lora1", "img_attn.qkv"),
    ("qkv_lora2", "txt_attn.qkv"),
    ("proj_lora1", "img_attn.proj"),
    ("proj_lora2", "txt_attn.proj"),
];

/// What FLUX's own program calls a module that has a name of diffusers.
pub(super) enum OwnName {
    /// The same module.
    Same(String),
    /// The module with the halves of its outputs in the other order.
    Swapped(String),
    /// A part of a fused module.
    Part { module: String, parts: &'static [&'static str], number: usize },
}

/// The own program's name of the module at `path`; `None` if it is none of diffusers' modules of FLUX.
pub(super) fn own_name(path: &str) -> Option<OwnName> {
    if path == SWAPPED.1 {
        return Some(OwnName::Swapped(SWAPPED.0.to_owned()));
    }
    if let Some((own, _)) = OUTER.iter().find(|(_, theirs)| *theirs == path) {
        return Some(OwnName::Same((*own).to_owned()));
    }
    let double = || block(path, "transformer_blocks.").map(|(number, rest)| ("double_blocks", number, rest));
    let single =
        || block(path, "single_transformer_blocks.").map(|(number, rest)| ("single_blocks", number, rest));
    let (outer, number, rest) = double().or_else(single)?;
    let (modules, fused): (&[(&str, &str)], &'static [Fused]) =
        if outer == "double_blocks" { (&DOUBLE, &FUSED_DOUBLE) } else { (&SINGLE, &FUSED_SINGLE) };
    if let Some((own, _)) = modules.iter().find(|(_, theirs)| *theirs == rest) {
        return Some(OwnName::Same(format!("{outer}.{number}.{own}")));
    }
    fused.iter().find_map(|(own, parts)| {
        let place = parts.iter().position(|part| *part == rest)?;
        Some(OwnName::Part { module: format!("{outer}.{number}.{own}"), parts, number: place })
    })
}

/// A base model whose modules are looked up.
pub(super) struct Modules<'m> {
    /// The shape of the weight of a module.
    pub(super) weight: &'m dyn Fn(&str) -> Option<&'m [usize]>,
}

impl Modules<'_> {
    fn outputs(&self, module: &str) -> Option<usize> {
        (self.weight)(module)?.first().copied()
    }

    /// Other names of the module at `path`, each with its place.
    pub(super) fn aliases(&self, path: &str) -> Vec<(String, Place)> {
        let mut aliases = Vec::new();
        for (own, theirs) in OUTER {
            match path {
                _ if path == own => aliases.push((theirs.to_owned(), Place::whole(path))),
                _ if path == theirs => aliases.push((own.to_owned(), Place::whole(path))),
                _ => {}
            }
        }
        let other =
            if path == SWAPPED.0 { Some(SWAPPED.1) } else { (path == SWAPPED.1).then_some(SWAPPED.0) };
        aliases.extend(other.zip(self.swapped(path)).map(|(name, place)| (name.to_owned(), place)));
        if let Some((number, rest)) = block(path, "transformer_blocks.") {
            let outer = format!("transformer_blocks.{number}");
            aliases.extend(same(&DOUBLE, rest, &format!("double_blocks.{number}"), path));
            aliases.extend(self.split(&FUSED_DOUBLE, rest, &outer, &format!("double_blocks.{number}")));
        } else if let Some((number, rest)) = block(path, "single_transformer_blocks.") {
            let outer = format!("single_transformer_blocks.{number}");
            aliases.extend(same(&SINGLE, rest, &format!("single_blocks.{number}"), path));
            aliases.extend(self.split(&FUSED_SINGLE, rest, &outer, &format!("single_blocks.{number}")));
        } else if let Some((number, rest)) = block(path, "double_blocks.") {
            let theirs = format!("transformer_blocks.{number}");
            aliases.extend(
                DOUBLE
                    .iter()
                    .filter(|(own, _)| *own == rest)
                    .map(|(_, name)| (format!("{theirs}.{name}"), Place::whole(path))),
            );
            aliases.extend(
                XLABS_DOUBLE
                    .iter()
                    .filter(|(_, own)| *own == rest)
                    .map(|(name, _)| (format!("double_blocks.{number}.{name}"), Place::whole(path))),
            );
            if let Some((_, parts)) = FUSED_DOUBLE.iter().find(|(own, _)| *own == rest) {
                aliases.extend(self.rows(path, &theirs, parts));
            }
        } else if let Some((number, rest)) = block(path, "single_blocks.") {
            let theirs = format!("single_transformer_blocks.{number}");
            aliases.extend(
                SINGLE
                    .iter()
                    .filter(|(own, _)| *own == rest)
                    .map(|(_, name)| (format!("{theirs}.{name}"), Place::whole(path))),
            );
            match rest {
                "linear1" => {
                    aliases.extend(self.rows(path, &theirs, FUSED_SINGLE[0].1));
                    let all =
                        self.heads(path).map(|heads| Place::of(vec![Piece::rows_of(path, 0..3 * heads)]));
                    aliases.extend(all.map(|place| (format!("single_blocks.{number}.qkv"), place)));
                }
                "linear2" => aliases.push((format!("single_blocks.{number}.proj"), Place::whole(path))),
                _ => {}
            }
        }
        aliases
    }

    /// The names of fused modules whose first part is at `rest`: the base model has the parts.
    fn split(&self, table: &[Fused], rest: &str, outer: &str, theirs: &str) -> Vec<(String, Place)> {
        let fused = table.iter().filter(|(_, parts)| parts.first() == Some(&rest));
        let place = |parts: &[&str]| {
            let mut start = 0;
            let mut pieces = Vec::new();
            for part in parts {
                let module = format!("{outer}.{part}");
                let outputs = self.outputs(&module)?;
                let taken = start..start + outputs;
                pieces.push(Piece::taking(&module, [taken]));
                start += outputs;
            }
            Some(Place::of(pieces))
        };
        fused.filter_map(|(name, parts)| Some((format!("{theirs}.{name}"), place(parts)?))).collect()
    }

    /// The names of the parts of a fused module: the base model has them in one.
    fn rows(&self, path: &str, theirs: &str, parts: &[&str]) -> Vec<(String, Place)> {
        let (Some(heads), Some(outputs)) = (self.heads(path), self.outputs(path)) else { return Vec::new() };
        let range = |number: usize| -> Range<usize> {
            let end = if number == 3 { outputs } else { (number + 1) * heads };
            number * heads..end
        };
        let parts = parts.iter().enumerate();
        parts
            .map(|(number, part)| {
                (format!("{theirs}.{part}"), Place::of(vec![Piece::rows_of(path, range(number))]))
            })
            .collect()
    }

    /// How many outputs of a fused module are the queries: as many as there are keys, values, and inputs.
    fn heads(&self, path: &str) -> Option<usize> {
        let &[outputs, inputs] = (self.weight)(path)? else { return None };
        (outputs / 3 >= inputs).then_some(inputs)
    }

    /// A module with the halves of its outputs in the other order.
    fn swapped(&self, path: &str) -> Option<Place> {
        let half = self.outputs(path).filter(|outputs| outputs.is_multiple_of(2))? / 2;
        Some(Place::of(vec![Piece::taking(path, [half..2 * half, 0..half])]))
    }
}

/// The name of a module that is not fused, in FLUX's own program.
fn same(table: &[(&str, &str)], rest: &str, outer: &str, path: &str) -> Vec<(String, Place)> {
    let found = table.iter().filter(|(_, theirs)| *theirs == rest);
    found.map(|(own, _)| (format!("{outer}.{own}"), Place::whole(path))).collect()
}

/// The number of a block, and the path inside of it.
fn block<'p>(path: &'p str, start: &str) -> Option<(&'p str, &'p str)> {
    let (number, rest) = path.strip_prefix(start)?.split_once('.')?;
    number.parse::<usize>().is_ok().then_some((number, rest))
}
