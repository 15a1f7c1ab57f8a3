//! The paths of the schema are those of the visitor and the stems of the keys, on every test model; and names in the schema.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, Device, Tensor};
use candle_nn::{LayerNorm, Linear, VarBuilder};
use peft_runtime::models::bert::{BertConfig, BertModel};
use peft_runtime::nn;
use peft_runtime::prelude::*;
use peft_tests::specimen::{Kind, Specimen};
use peft_tests::tensors::{RandomWeights, random};

fn linear(size: usize) -> Adapted<Linear> {
    Linear::new(Tensor::ones((size, size), DType::F32, &Device::Cpu).unwrap(), None).into()
}

#[derive(Injectable)]
#[peft(target = ["q_proj", "dense"], lora(rank = 8, alpha = 16, dropout = 0.1))]
struct Model {
    embed: Tensor,
    blocks: Vec<Block>,
    experts: BTreeMap<String, Expert>,
    pair: (Adapted<Linear>, Adapted<Linear>),
    norms: [LayerNorm; 2],
    absent: Option<Block>,
    #[peft(flatten)]
    head: Head,
}

#[derive(Injectable)]
struct Block {
    #[peft(rename = "attention.self")]
    attention: Attention,
    #[peft(rename = "attention.output")]
    output: Box<Head>,
}

#[derive(Injectable)]
struct Attention {
    #[peft(rank = 4)]
    q_proj: Adapted<Linear>,
}

#[derive(Injectable)]
struct Head {
    dense: Adapted<Linear>,
    scale: f64,
}

#[derive(Injectable)]
enum Expert {
    Small(Head),
    Large { up: Adapted<Linear>, down: Adapted<Linear> },
}

fn head() -> Head {
    Head { dense: linear(3), scale: 1.0 }
}

fn model() -> Model {
    let block = || Block { attention: Attention { q_proj: linear(3) }, output: Box::new(head()) };
    let norm = || LayerNorm::new_no_bias(Tensor::ones(3, DType::F32, &Device::Cpu).unwrap(), 1e-5);
    Model {
        embed: Tensor::ones((2, 3), DType::F32, &Device::Cpu).unwrap(),
        blocks: vec![block(), block()],
        experts: [
            ("large".to_owned(), Expert::Large { up: linear(3), down: linear(3) }),
            ("small".to_owned(), Expert::Small(head())),
        ]
        .into(),
        pair: (linear(3), linear(3)),
        norms: [norm(), norm()],
        absent: None,
        head: head(),
    }
}

fn bert() -> BertModel {
    let config: BertConfig = serde_json::from_value(serde_json::json!({
        "vocab_size": 7, "hidden_size": 4, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 6,
        "max_position_embeddings": 5, "type_vocab_size": 2
    }))
    .unwrap();
    BertModel::new(&config, RandomWeights::var_builder(DType::F32)).unwrap()
}

/// `paths` with `*`, which the schema has in place of indices and keys.
fn as_schema_has_them(paths: impl Iterator<Item = String>, schema: &[String]) -> BTreeSet<String> {
    let matches = |pattern: &str, path: &str| {
        let (pattern, path): (Vec<&str>, Vec<&str>) =
            (pattern.split('.').collect(), path.split('.').collect());
        pattern.len() == path.len() && pattern.iter().zip(path).all(|(p, s)| *p == "*" || *p == s)
    };
    paths
        .map(|path| match schema.iter().find(|pattern| matches(pattern, &path)) {
            Some(pattern) => pattern.clone(),
            None => panic!("the schema has no `{path}`; it has {schema:?}"),
        })
        .collect()
}

/// The paths of all layers: of those with parameters, read off the keys of the base model's state dict, and of those that are
/// printed, which have none.
fn visited<M: Injectable>(model: &M) -> Vec<String> {
    let bare = |key: String| match key.rsplit_once('.') {
        Some((path, "weight" | "bias")) => path.to_owned(),
        _ => key,
    };
    let mut paths: Vec<String> = model.base_state_dict().into_keys().map(bare).collect();
    paths.extend(printed(&model.module_tree()));
    paths
}

/// The paths of the layers in a module tree. Blocks that are folded count as one.
fn printed(tree: &str) -> Vec<String> {
    let mut paths = Vec::new();
    let mut open: Vec<&str> = Vec::new();
    for line in tree.lines() {
        let text = line.trim_start();
        let Some((name, rest)) = text.strip_prefix('(').and_then(|text| text.split_once("): ")) else {
            continue;
        };
        // The model's own fields are indented by two spaces.
        open.truncate((line.len() - text.len()) / 2 - 1);
        open.push(name);
        if !rest.ends_with('(') {
            paths.push(open.join("."));
        }
    }
    paths
}

fn schema_is_what_is_visited<M: Injectable>(model: &M, absent: &[&str]) {
    let schema = M::SCHEMA.leaf_paths();
    let visited = as_schema_has_them(visited(model).into_iter(), &schema);
    let expected: BTreeSet<String> =
        schema.into_iter().filter(|path| !absent.iter().any(|absent| path.starts_with(absent))).collect();
    assert_eq!(visited, expected);
}

#[test]
fn schema_paths_are_visitor_paths() {
    schema_is_what_is_visited(&model(), &["absent"]);
    schema_is_what_is_visited(&bert(), &[]);
    let specimens = Kind::ALL.map(|kind| Specimen::new(kind, DType::F32).unwrap());
    for specimen in &specimens {
        schema_is_what_is_visited(specimen, &[]);
    }
}

#[test]
fn schema_paths_come_in_field_order_with_stars_for_indices_and_keys() {
    assert_eq!(
        Model::SCHEMA.leaf_paths(),
        [
            "embed",
            "blocks.*.attention.self.q_proj",
            "blocks.*.attention.output.dense",
            "experts.*.dense",
            "experts.*.up",
            "experts.*.down",
            "pair.0",
            "pair.1",
            "norms.*",
            "absent.attention.self.q_proj",
            "absent.attention.output.dense",
            "dense",
        ]
    );
}

#[test]
fn adapted_paths_are_the_stems_of_the_saved_keys() {
    let mut model = model();
    let report = model.inject_declared("default").unwrap();
    let stem = |key: &String| {
        let key = key.strip_prefix("base_model.model.").unwrap();
        key.strip_suffix(".lora_A.weight").or(key.strip_suffix(".lora_B.weight")).unwrap().to_owned()
    };
    let stems: BTreeSet<String> = model.adapter_state_dict("default").unwrap().keys().map(stem).collect();
    assert_eq!(stems, report.adapted.iter().map(ToString::to_string).collect());
    assert_eq!(
        report.adapted.iter().map(ToString::to_string).collect::<Vec<_>>(),
        [
            "blocks.0.attention.self.q_proj",
            "blocks.0.attention.output.dense",
            "blocks.1.attention.self.q_proj",
            "blocks.1.attention.output.dense",
            "experts.small.dense",
            "dense",
        ]
    );
}

#[test]
fn attributes_can_declare_a_whole_config() {
    let config = Model::declared_config().unwrap();
    assert_eq!((config.rank(), config.alpha(), config.dropout()), (8, 16.0, 0.1));
    let mut model = model();
    model.inject_declared("default").unwrap();
    let state = model.adapter_state_dict("default").unwrap();
    let rank = |path: &str| state[&format!("base_model.model.{path}.lora_A.weight")].dims()[0];
    assert_eq!(rank("blocks.1.attention.self.q_proj"), 4);
    assert_eq!(rank("blocks.1.attention.output.dense"), 8);
    assert_eq!(rank("dense"), 8);
}

#[test]
fn checked_targets_with_stars_become_a_pattern_that_python_reads() {
    let config =
        LoraConfig::new(4, 8.0).with_targets(targets!(Model; "blocks.*.attention.self.q_proj", "pair.1"));
    let mut model = model();
    let report = model.inject_adapter(&config, "default").unwrap();
    let adapted: Vec<String> = report.adapted.iter().map(ToString::to_string).collect();
    assert_eq!(adapted, ["blocks.0.attention.self.q_proj", "blocks.1.attention.self.q_proj", "pair.1"]);
    assert!(
        config
            .to_json()
            .unwrap()
            .contains(r"(?:.*\\.)?(?:blocks\\.[^.]+\\.attention\\.self\\.q_proj|pair\\.1)")
    );
}

#[test]
fn the_module_tree_folds_equal_blocks_and_nests_dotted_names() {
    let tree = model().module_tree();
    assert!(
        tree.contains("(0-1): 2 x Block(\n      (attention): Module(\n        (self): Attention("),
        "{tree}"
    );
    assert!(tree.contains("(norms): ModuleList(\n    (0-1): 2 x LayerNorm((3,)"), "{tree}");
}

#[test]
fn constructors_build_adapted_layers_under_candles_names() {
    // The builder has only the tensors of candle's layer: other names are errors.
    let tensors = [("q_proj.weight", random((6, 4))), ("q_proj.bias", random(6))];
    let names: BTreeSet<String> = tensors.iter().map(|(name, _)| (*name).to_owned()).collect();
    let tensors = tensors.map(|(name, tensor)| (name.to_owned(), tensor)).into_iter().collect();
    let vb = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
    let mut block = Attention { q_proj: nn::linear(4, 6, vb.pp("q_proj")).unwrap() };
    assert_eq!(names, block.base_state_dict().into_keys().collect());
    block.inject_adapter(&LoraConfig::new(2, 2.0).with_targets(["q_proj"]), "default").unwrap();
    assert_eq!(
        names,
        block.base_state_dict().into_keys().collect(),
        "injection does not change the base's names"
    );
}
