//! Training and generation.

use super::*;

pub(super) fn training() -> Vec<Failure> {
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
            "a negative learning rate",
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
            "a beta of 1",
            betas.map(drop).unwrap_err(),
            Error::Setting { setting: "beta2", .. },
            ["`beta2` is 1; it must be at least 0 and below 1"]
        ),
        failure!(
            "a gradient of a different variable",
            step.unwrap_err(),
            Error::Optimizer(OptimizerError::GradientShape { .. }),
            ["the gradient of `x` has shape [3], expected [2]"]
        ),
    ]
}

pub(super) fn generation() -> Vec<Failure> {
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
            "a probability of 0",
            continued(&[1], options.with_top_p(0.0)),
            Error::Setting { setting: "top_p", .. },
            ["`top_p` is 0; it must be above 0 and at most 1"]
        ),
    ]
}
