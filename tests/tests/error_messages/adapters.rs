//! Configs, rows, state dicts and combinations.

use super::*;
use peft_runtime::error::ConfigError;

pub(super) fn configs() -> Vec<Failure> {
    let ambiguous = lora(2).with_rank_pattern([("last", 1), (".*st", 3)]);
    let blocks = lora(2).with_layer_replication([0..1, 0..1]);
    let adalora = AdaLoraConfig::new(2, 4, 10).with_targets(["first"]);
    let mut model = base();
    model.inject_adapter(&adalora, "default").unwrap();
    vec![
        failure!(
            "a value that the method cannot have",
            LoraConfig::from_json(r#"{"peft_type": "LORA", "r": 0}"#).unwrap_err(),
            Error::Config(ConfigError::Invalid { field: "r", .. }),
            ["invalid `r`: the rank is 0; it must be at least 1"]
        ),
        failure!(
            "a target rank above the initial one",
            RankAllocator::new(&model, "default").map(drop).unwrap_err(),
            Error::Config(ConfigError::Invalid { field: "target_r", .. }),
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
            Error::Config(ConfigError::NotDeclared { model: "Model" }),
            ["`Model` declares no config", "#[peft(lora("]
        ),
    ]
}

pub(super) fn routings() -> Vec<Failure> {
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

pub(super) fn state_dicts() -> Vec<Failure> {
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
            ["`first` has `lora_A.weight` [2, 5]", "do not form an adapter of LoRA"]
        ),
        failure!(
            "more ranks than the config has",
            inject(&large, &adalora),
            Error::StateDict(StateDictError::RankOverConfig { field: "init_r", rank: 4, most: 2, .. }),
            ["`first`", "rank 4", "`init_r` is 2"]
        ),
        failure!(
            "what a random init took out",
            inject(&factors, &pissa),
            Error::Config(ConfigError::RandomStart { .. }),
            ["pissa_niter_2", "`first`", "plain LoRA"]
        ),
    ]
}

fn sum(parts: &[(&str, f64)], options: CombineOptions) -> Error {
    adapted().add_weighted_adapter(parts, "sum", &options).map(drop).unwrap_err()
}

pub(super) fn combinations() -> Vec<Failure> {
    use CombinationType::Cat;
    vec![
        failure!(
            "a misspelt type",
            "tie".parse::<CombinationType>().unwrap_err(),
            Error::Combination(CombinationError::UnknownName { option: "combination_type", .. }),
            ["`tie` is not a `combination_type`", "did you mean `ties`"]
        ),
        failure!(
            "an unknown sign method",
            "elections".parse::<MajoritySign>().unwrap_err(),
            Error::Combination(CombinationError::UnknownName { option: "majority_sign_method", .. }),
            ["it must be `total` or `frequency`"]
        ),
        failure!(
            "no adapters to combine",
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
            ["`ia3` uses IA3", "LORA"]
        ),
    ]
}

pub(super) fn settings_of_combinations() -> Vec<Failure> {
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
            "a density of 0",
            sum(&both, CombineOptions::new(DareLinear).with_density(0.0)),
            Error::Combination(CombinationError::ZeroDensity { combination: "dare_linear" }),
            ["`dare_linear`", "must be above 0"]
        ),
        failure!(
            "a negative density",
            sum(&both, CombineOptions::new(Ties).with_density(-0.5)),
            Error::Setting { setting: "density", .. },
            ["`density` is -0.5; it must be at least 0"]
        ),
        failure!(
            "a rank above a layer's",
            sum(&both, CombineOptions::new(Svd).with_svd_rank(4)),
            Error::Combination(CombinationError::RankOverUpdate { rank: 4, most: 3, .. }),
            ["rank 4", "`last`", "at most 3"]
        ),
    ]
}
