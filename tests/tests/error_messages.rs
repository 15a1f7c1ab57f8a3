//! Each kind of failure has its variant of `Error`, and a sentence that names what is wrong.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{Embedding, Linear};
use peft_runtime::adapter::AdapterMethod;
use peft_runtime::error::{
    CombinationError, Error, Fault, OptimizerError, RoutingError, ShardsError, StateDictError,
};
use peft_runtime::models::generate::{GenerateOptions, generate};
use peft_runtime::models::llama::{LlamaConfig, LlamaModel};
use peft_runtime::prelude::*;
use peft_runtime::train::{AdamW, AdamWOptions, Optimizer, ParameterGroup, RankAllocator};
use peft_runtime::{MajoritySign, ModelWeights, StoredAdapter};
use peft_tests::tensors::{RandomWeights, random};
use serde_json::json;

#[derive(Clone, Injectable)]
struct Model {
    embed: Adapted<Embedding>,
    first: Adapted<Linear>,
    last: Adapted<Linear>,
}

fn base() -> Model {
    Model {
        embed: Embedding::new(random(&[8, 5]), 5).into(),
        first: Linear::new(random(&[6, 5]), None).into(),
        last: Linear::new(random(&[3, 6]), None).into(),
    }
}

fn lora(rank: usize) -> LoraConfig {
    LoraConfig::new(rank, 4.0).with_targets(["first", "last"])
}

/// Two LoRA adapters and one of IA3.
fn adapted() -> Model {
    let mut model = base();
    let ia3 = Ia3Config::new().with_targets(["first"]).with_feedforward(["first"]);
    model.inject_adapter(&lora(2), "a").unwrap();
    model.inject_adapter(&lora(3), "b").unwrap();
    model.inject_adapter(&ia3, "ia3").unwrap();
    model
}

fn state(keys: &[(&str, &[usize])]) -> BTreeMap<String, Tensor> {
    keys.iter().map(|(key, shape)| ((*key).to_owned(), random(*shape))).collect()
}

/// A failure: what it is, whether its variant is the right one, what its sentence has to say.
struct Failure {
    what: &'static str,
    error: Error,
    is_right: fn(&Error) -> bool,
    says: &'static [&'static str],
}

/// A failed call, the pattern of its variant, and parts of its sentence.
macro_rules! failure {
    ($what:literal, $error:expr, $pattern:pat, $says:expr) => {
        Failure { what: $what, error: $error, is_right: |error| matches!(error, $pattern), says: &$says }
    };
}

fn fault(config: &LoraConfig) -> Error {
    Error::Plan { adapter: "x".to_owned(), faults: faults(config) }
}

fn faults(config: &dyn AdapterMethod) -> Vec<Fault> {
    match base().inject_adapter(config, "x").unwrap_err() {
        Error::Plan { faults, .. } => faults,
        other => panic!("{other}"),
    }
}

fn configs() -> Vec<Failure> {
    let ambiguous = lora(2).with_rank_pattern([("last", 1), (".*st", 3)]);
    let blocks = lora(2).with_layer_replication([0..1, 0..1]);
    let adalora = AdaLoraConfig::new(2, 4, 10).with_targets(["first"]);
    let mut model = base();
    model.inject_adapter(&adalora, "default").unwrap();
    vec![
        failure!(
            "a value that the method cannot have",
            LoraConfig::from_json(r#"{"peft_type": "LORA", "r": 0}"#).unwrap_err(),
            Error::Config { field: "r", .. },
            ["invalid `r`: the rank is 0; it must be at least 1"]
        ),
        failure!(
            "a budget above the start",
            RankAllocator::new(&model, "default").map(drop).unwrap_err(),
            Error::Config { field: "target_r", .. },
            ["invalid `target_r`"]
        ),
        failure!(
            "a fault",
            fault(&ambiguous),
            Error::Plan { .. },
            ["in `rank_pattern`, `last` and `.*st`", "`last`"]
        ),
        failure!(
            "no blocks",
            fault(&blocks),
            Error::Plan { .. },
            ["`layer_replication`", "`#[peft(blocks)]`"]
        ),
        failure!(
            "a model without a config",
            base().inject_declared("x").map(drop).unwrap_err(),
            Error::NoDeclaredConfig { model: "Model" },
            ["`Model` declares no config", "#[peft(lora("]
        ),
    ]
}

fn routings() -> Vec<Failure> {
    let routed = |model: &Model| model.with_adapter_rows(&["a", "b"], |_| ()).unwrap_err();
    let (mut training, mut merged, mut dora) = (adapted(), adapted(), adapted());
    training.train();
    merged.merge_adapters(&MergeOptions::active()).unwrap();
    dora.delete_adapter("b").unwrap();
    dora.inject_adapter(&lora(2).with_dora(true), "b").unwrap();
    vec![
        failure!(
            "rows in training mode",
            routed(&training),
            Error::Routing(RoutingError::Training),
            ["cannot route rows to adapters: the model is in training mode"]
        ),
        failure!(
            "rows of a merged model",
            routed(&merged),
            Error::Routing(RoutingError::Merged { .. }),
            ["adapter `a` is merged into `first`"]
        ),
        failure!(
            "rows with DoRA",
            routed(&dora),
            Error::Routing(RoutingError::WholeBatches { .. }),
            ["adapter `b` uses DoRA on `first`"]
        ),
    ]
}

fn state_dicts() -> Vec<Failure> {
    let (a, b): (&[usize], &[usize]) = (&[2, 5], &[6, 2]);
    let twice = state(&[("first.lora_A.weight", a), ("base_model.model.first.lora_A.weight", a)]);
    let none = state(&[("head.weight", a)]);
    let half = StoredAdapter::new("x", lora(2), state(&[("first.lora_A.weight", a)])).unwrap();
    let adalora = AdaLoraConfig::new(2, 1, 10).with_targets(["first"]);
    let large = state(&[("first.lora_A", &[4, 5]), ("first.lora_B", &[6, 4]), ("first.lora_E", &[4, 1])]);
    let pissa = lora(2).with_init(LoraInit::PissaIterations(2));
    let factors = state(&[("first.lora_A.weight", a), ("first.lora_B.weight", b)]);
    let inject = |state: &BTreeMap<String, Tensor>, config: &dyn AdapterMethod| {
        base().inject_adapter_from_state_dict(state, config, "x").map(drop).unwrap_err()
    };
    vec![
        failure!(
            "two keys of one tensor",
            StoredAdapter::new("x", lora(2), twice).map(drop).unwrap_err(),
            Error::StateDict(StateDictError::DuplicateKey { .. }),
            ["`base_model.model.first.lora_A.weight` and `first.lora_A.weight`"]
        ),
        failure!(
            "keys of something else",
            inject(&none, &lora(2)),
            Error::StateDict(StateDictError::NoAdapterKeys { .. }),
            ["no key has `.lora_` in it", "the first key is `head.weight`"]
        ),
        failure!(
            "half an adapter",
            half.layers().map(drop).unwrap_err(),
            Error::StateDict(StateDictError::NoAdapter { .. }),
            ["`first` has `lora_A.weight` [2, 5]", "no adapter of LoRA"]
        ),
        failure!(
            "more ranks than the config has",
            inject(&large, &adalora),
            Error::StateDict(StateDictError::RankOverConfig { field: "init_r", rank: 4, most: 2, .. }),
            ["`first`", "rank 4", "`init_r` is 2"]
        ),
        failure!(
            "what a random start took out",
            inject(&factors, &pissa),
            Error::RandomStart { .. },
            ["pissa_niter_2", "`first`", "plain LoRA"]
        ),
    ]
}

fn sum(parts: &[(&str, f64)], options: CombineOptions) -> Error {
    adapted().add_weighted_adapter(parts, "sum", &options).map(drop).unwrap_err()
}

fn combinations() -> Vec<Failure> {
    use CombinationType::Cat;
    vec![
        failure!(
            "a misspelt type",
            "tie".parse::<CombinationType>().unwrap_err(),
            Error::Combination(CombinationError::UnknownName { option: "combination_type", .. }),
            ["`tie` is not a `combination_type`", "did you mean `ties`"]
        ),
        failure!(
            "a way that is not one",
            "elections".parse::<MajoritySign>().unwrap_err(),
            Error::Combination(CombinationError::UnknownName { option: "majority_sign_method", .. }),
            ["it must be `total` or `frequency`"]
        ),
        failure!(
            "no parts",
            sum(&[], CombineOptions::new(Cat)),
            Error::Combination(CombinationError::NoParts),
            ["at least one"]
        ),
        failure!(
            "a weight that is not a number",
            sum(&[("a", f64::NAN)], CombineOptions::new(Cat)),
            Error::Combination(CombinationError::Weight { .. }),
            ["the weight of adapter `a` is NaN"]
        ),
        failure!(
            "two methods",
            sum(&[("a", 1.0), ("ia3", 1.0)], CombineOptions::new(Cat)),
            Error::Combination(CombinationError::Methods { .. }),
            ["`ia3` is one of IA3", "LORA"]
        ),
    ]
}

fn settings_of_combinations() -> Vec<Failure> {
    use CombinationType::{DareLinear, Svd, Ties};
    let both = [("a", 1.0), ("b", 1.0)];
    vec![
        failure!(
            "no density",
            sum(&both, CombineOptions::new(Ties)),
            Error::Combination(CombinationError::MissingDensity { combination: "ties" }),
            ["`ties` prunes", "`density`"]
        ),
        failure!(
            "a density of nothing",
            sum(&both, CombineOptions::new(DareLinear).with_density(0.0)),
            Error::Combination(CombinationError::ZeroDensity { combination: "dare_linear" }),
            ["`dare_linear`", "must be above 0"]
        ),
        failure!(
            "a density below nothing",
            sum(&both, CombineOptions::new(Ties).with_density(-0.5)),
            Error::Setting { setting: "density", .. },
            ["`density` is -0.5; it must be at least 0"]
        ),
        failure!(
            "a rank above all",
            sum(&both, CombineOptions::new(Svd).with_svd_rank(4)),
            Error::Combination(CombinationError::RankOverUpdate { rank: 4, most: 3, .. }),
            ["rank 4", "`last`", "at most 3"]
        ),
    ]
}

fn write(folder: &Path, name: &str, tensors: &[&str]) {
    let tensors: BTreeMap<String, Tensor> =
        tensors.iter().map(|name| ((*name).to_owned(), random(&[2, 2]))).collect();
    std::fs::write(folder.join(name), safetensors::serialize(tensors.iter(), None).unwrap()).unwrap();
}

/// The error inside of a file.
fn inside(error: Error) -> Error {
    match error {
        Error::InFile { source, .. } => *source,
        other => panic!("{other}"),
    }
}

fn files() -> Vec<Failure> {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write(folder, "one.safetensors", &["a", "b"]);
    write(folder, "two.safetensors", &["b"]);
    let index = |text: &str| {
        std::fs::write(folder.join("model.safetensors.index.json"), text).unwrap();
        inside(ModelWeights::open(folder).map(drop).unwrap_err())
    };
    let both = ModelWeights::open_files(&[folder.join("one.safetensors"), folder.join("two.safetensors")]);
    vec![
        failure!(
            "one tensor in two files",
            inside(both.map(drop).unwrap_err()),
            Error::Shards(ShardsError::DuplicateTensor { .. }),
            ["the tensor `b` is in two files", "one.safetensors"]
        ),
        failure!(
            "a shard elsewhere",
            index(&json!({"weight_map": {"a": "../one.safetensors"}}).to_string()),
            Error::Shards(ShardsError::OutsideFolder { .. }),
            ["`weight_map` names `../one.safetensors`"]
        ),
        failure!(
            "an index that is a list",
            index("[1]"),
            Error::Shards(ShardsError::Index(_)),
            ["not a valid index of shards", "invalid"]
        ),
    ]
}

fn training() -> Vec<Failure> {
    let var = || Var::from_tensor(&random(&[2])).unwrap();
    let integers = Var::zeros(3, DType::U32, &Device::Cpu).unwrap();
    let new = |parameters: Vec<(&str, Var)>, rate: f64| {
        let parameters = parameters.into_iter().map(|(name, var)| (name.to_owned(), var)).collect();
        AdamW::new(vec![ParameterGroup::new("all", parameters, rate)])
    };
    let refused = |parameters, rate| new(parameters, rate).map(drop).unwrap_err();
    let betas = AdamW::with_options(Vec::new(), AdamWOptions::new().with_betas(0.9, 1.0));
    let (same, misshapen) = (var(), var());
    let mut grads = misshapen.sum_all().unwrap().backward().unwrap();
    grads.insert(&misshapen, random(&[3]));
    let step = new(vec![("x", misshapen)], 0.1).unwrap().step(&grads, 1.0);
    vec![
        failure!(
            "a negative rate",
            refused(vec![("x", var())], -1.0),
            Error::Optimizer(OptimizerError::Setting { setting: "learning_rate", .. }),
            ["`learning_rate` of the group `all` is -1", "at least 0"]
        ),
        failure!(
            "integers",
            refused(vec![("x", integers)], 0.1),
            Error::Optimizer(OptimizerError::NotFloat { dtype: "u32", .. }),
            ["`x` holds u32", "only floats train"]
        ),
        failure!(
            "one name twice",
            refused(vec![("x", var()), ("x", var())], 0.1),
            Error::Optimizer(OptimizerError::DuplicateName { .. }),
            ["`x`"]
        ),
        failure!(
            "one variable twice",
            refused(vec![("x", same.clone()), ("y", same)], 0.1),
            Error::Optimizer(OptimizerError::DuplicateVariable { .. }),
            ["`x` and `y` are the same variable"]
        ),
        failure!(
            "a decay of one",
            betas.map(drop).unwrap_err(),
            Error::Setting { setting: "beta2", .. },
            ["`beta2` is 1; it must be at least 0 and below 1"]
        ),
        failure!(
            "a gradient of another variable",
            step.unwrap_err(),
            Error::Optimizer(OptimizerError::GradientShape { .. }),
            ["the gradient of `x` has shape [3], expected [2]"]
        ),
    ]
}

fn generation() -> Vec<Failure> {
    let config = json!({
        "model_type": "llama", "vocab_size": 7, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "max_position_embeddings": 16, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": true
    });
    let config: LlamaConfig = serde_json::from_value(config).unwrap();
    let model = LlamaModel::new(&config, RandomWeights::var_builder(DType::F32)).unwrap();
    let continued =
        |prompt: &[u32], options| generate(&model, prompt, &options, |_| ()).map(drop).unwrap_err();
    let options = GenerateOptions::new(1);
    vec![
        failure!(
            "no prompt",
            continued(&[], options.clone()),
            Error::EmptyPrompt,
            ["the prompt has no tokens"]
        ),
        failure!(
            "a probability of nothing",
            continued(&[1], options.with_top_p(0.0)),
            Error::Setting { setting: "top_p", .. },
            ["`top_p` is 0; it must be above 0 and at most 1"]
        ),
    ]
}

#[test]
fn each_kind_of_failure_has_its_variant_and_says_what_is_wrong() {
    let groups = [
        configs(),
        routings(),
        state_dicts(),
        combinations(),
        settings_of_combinations(),
        files(),
        training(),
        generation(),
    ];
    for Failure { what, error, is_right, says } in groups.into_iter().flatten() {
        let text = error.chain();
        assert!(is_right(&error), "{what} is another variant: {text}");
        for part in says {
            assert!(text.contains(part), "{what}: `{part}` is not in: {text}");
        }
        assert!(text.matches("invalid").count() < 2, "{what} says `invalid` twice: {text}");
    }
}

#[test]
fn faults_of_a_config_are_told_apart() {
    let ambiguous = lora(2).with_alpha_pattern([("last", 1.0), (".*st", 3.0)]);
    assert!(
        matches!(&faults(&ambiguous)[0], Fault::AmbiguousPattern { field: "alpha_pattern", path, .. } if path == "last")
    );
    assert_eq!(faults(&lora(2).with_layer_replication([0..1, 0..1])), [Fault::BlockLists { lists: 0 }]);
    let ia3 = faults(&Ia3Config::new().with_targets(["first"]));
    assert!(ia3.iter().all(|fault| *fault == Fault::NoFeedforward) && !ia3.is_empty(), "{ia3:?}");
}

#[test]
fn a_fault_that_is_an_error_by_itself_keeps_its_sentence() {
    let ambiguous = lora(2).with_rank_pattern([("last", 1), (".*st", 3)]);
    for fault in faults(&ambiguous).into_iter().chain(faults(&lora(0))) {
        let sentence = fault.to_string();
        let error = Error::from(fault);
        assert_eq!(
            [error.to_string(), error.chain(), format!("{error:?}")],
            [(); 3].map(|()| sentence.clone())
        );
    }
}
