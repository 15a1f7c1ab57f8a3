//! Factors of single experts on a base model that has all experts in one parameter: PEFT fuses them when it loads them.
//!
//! The names are those of transformers before its version 5, in which each expert had layers of its own.

use std::collections::{BTreeMap, BTreeSet};

use super::adapter_file::AdapterFile;
use super::keys::Part;
use super::layer_fit::Module;

/// The models for which PEFT 0.21.2 does so, by the names of an expert's layers.
const FIRST_NAMES: [&str; 3] = ["w1", "w3", "w2"];
const FIRST_MODELS: &str = "mixtral minimax minimax_m2";
const LATER_NAMES: [&str; 3] = ["gate_proj", "up_proj", "down_proj"];
const LATER_MODELS: &str = "Dots3NoteTextModel UnlimitedOcrTextModel afmoe beam cohere2_moe deepseek_v2 deepseek_v3 deepseek_v32 dots1 \
    ernie4_5_moe exaone_moe flex_olmo glm4_moe glm4_moe_lite glm4v_moe glm_moe_dsa hunyuan_v1_moe longcat_flash mellum olmoe qwen3_moe \
    qwen3_next qwen3_omni_moe qwen3_omni_moe_text qwen3_omni_moe_thinker sarvam_mla solar_open";
/// Where the experts were in the first of these models, and where they are.
const FIRST_BLOCK: &str = ".block_sparse_moe";
const BLOCK: &str = ".mlp";

/// What becomes of an adapter's modules.
#[derive(Debug, Default)]
pub struct Fusion {
    /// The modules that are fused.
    pub fused: BTreeSet<String>,
    /// Modules that have another path today.
    pub placed: BTreeMap<String, String>,
    /// What cannot be fused, a sentence each.
    pub misfits: Vec<String>,
    /// The modules whose scaling changes.
    pub rescaled: Vec<String>,
}

/// The experts of one block: by the layer's place among the names, and by expert, the path with inputs, outputs and rank.
type Experts<'a> = [BTreeMap<usize, (&'a str, Sizes)>; 3];

#[derive(Clone, Copy)]
struct Sizes {
    inputs: usize,
    outputs: usize,
    rank: usize,
}

/// Finds what is fused; `shapes` and `model_type` are the base model's.
pub fn fuse(
    adapter: &AdapterFile,
    modules: &BTreeMap<&str, Module<'_>>,
    shapes: &BTreeMap<String, Vec<usize>>,
    model_type: &str,
) -> Fusion {
    let mut fusion = Fusion::default();
    let is_of = |models: &str| models.split(' ').any(|model| model == model_type);
    let names = match () {
        () if is_of(FIRST_MODELS) => FIRST_NAMES,
        () if is_of(LATER_MODELS) => LATER_NAMES,
        () => return fusion,
    };
    let mut blocks: BTreeMap<String, Experts<'_>> = BTreeMap::new();
    for module in modules.values().filter(|module| !has_weight(shapes, module.path)) {
        let today = module.path.replace(&format!("{FIRST_BLOCK}."), &format!("{BLOCK}."));
        if today != module.path && has_weight(shapes, &today) {
            fusion.placed.insert(module.path.to_owned(), today);
            continue;
        }
        let Some((block, expert, at)) = expert_of(&today, &names) else { continue };
        let (true, Some(sizes)) = (shapes.contains_key(&fused_name(&block, 0)), sizes(module)) else {
            continue;
        };
        fusion.fused.insert(module.path.to_owned());
        blocks.entry(block).or_default()[at].insert(expert, (module.path, sizes));
    }
    for (block, experts) in &blocks {
        fusion.misfits.extend(misfit(block, experts, &names, shapes, adapter));
        fusion.rescaled.extend(rescaled(experts, &names, adapter));
    }
    fusion
}

fn has_weight(shapes: &BTreeMap<String, Vec<usize>>, path: &str) -> bool {
    shapes.contains_key(&format!("{path}.weight"))
}

/// The path of the experts, the number of one, and the place of its layer among the names.
fn expert_of(path: &str, names: &[&str; 3]) -> Option<(String, usize, usize)> {
    let (block, rest) = path.rsplit_once(".experts.")?;
    let (expert, name) = rest.split_once('.')?;
    let at = names.iter().position(|known| *known == name)?;
    Some((format!("{block}.experts"), expert.parse().ok()?, at))
}

/// The parameter that has the layers at this place among the names.
fn fused_name(block: &str, at: usize) -> String {
    let name = if at == 2 { "down_proj" } else { "gate_up_proj" };
    format!("{block}.{name}")
}

fn sizes(module: &Module<'_>) -> Option<Sizes> {
    match (module.shape(Part::A)?, module.shape(Part::B)?) {
        (&[rank, inputs], &[outputs, _]) => Some(Sizes { inputs, outputs, rank }),
        _ => None,
    }
}

/// Why the experts of a block cannot be fused.
fn misfit(
    block: &str,
    experts: &Experts<'_>,
    names: &[&str; 3],
    shapes: &BTreeMap<String, Vec<usize>>,
    adapter: &AdapterFile,
) -> Option<String> {
    if experts[0].is_empty() != experts[1].is_empty() {
        let [first, second, _] = names;
        return Some(format!(
            "`{block}` has `{first}` and `{second}` in one parameter, and the adapter only one of them"
        ));
    }
    let rank = adapter.field("r").and_then(serde_json::Value::as_u64);
    for (at, layers) in experts.iter().enumerate().filter(|(_, layers)| !layers.is_empty()) {
        let name = names[at];
        let Some(&[count, first, second]) = shapes.get(&fused_name(block, at)).map(Vec::as_slice) else {
            return Some(format!("the base model has no `{}` for `{name}`", fused_name(block, at)));
        };
        if layers.len() != count || layers.keys().any(|expert| *expert >= count) {
            let found = layers.len();
            return Some(format!(
                "`{block}` has {count} experts, which PEFT fuses all together, and the adapter has `{name}` of {found}"
            ));
        }
        let parts = if at == 2 { 1 } else { 2 };
        let fits = |sizes: &Sizes| {
            let sides = [sizes.outputs * parts, sizes.inputs];
            sides == [first, second] || sides == [second, first]
        };
        if let Some((path, sizes)) = layers.values().find(|(_, sizes)| !fits(sizes)) {
            let Sizes { inputs, outputs, .. } = sizes;
            return Some(format!(
                "`{path}` takes {inputs} inputs to {outputs} outputs, and the base model's experts are {first} by {second} for {parts}"
            ));
        }
        let other = layers.values().find(|(_, sizes)| rank.is_some_and(|rank| rank != sizes.rank as u64));
        if let Some((path, sizes)) = other {
            return Some(format!(
                "`{path}` has rank {}, and PEFT fuses experts of rank `r` only",
                sizes.rank
            ));
        }
    }
    None
}

/// The layers whose scaling is not what it was: the fused ones get twice the rank and alpha, and no pattern matches them.
fn rescaled(experts: &Experts<'_>, names: &[&str; 3], adapter: &AdapterFile) -> Vec<String> {
    let patterns = adapter.field("alpha_pattern").and_then(serde_json::Value::as_object);
    let has_pattern = |name: &str| {
        let mut keys = patterns.into_iter().flat_map(|patterns| patterns.keys());
        keys.any(|key| key.contains(name) || key.contains("experts"))
    };
    let is_rescaled = |at: usize| has_pattern(names[at]) || at < 2 && adapter.is_on("use_rslora");
    let layers = experts.iter().enumerate().filter(|(at, _)| is_rescaled(*at));
    layers.flat_map(|(_, layers)| layers.values().map(|(path, _)| (*path).to_owned())).collect()
}
