//! Several adapters by name: which act, merging, copies, biases, deleting.

mod base_parameters;

use candle_core::Tensor;
use candle_nn::{LayerNorm, Linear, Module};
use peft_runtime::Error;
use peft_runtime::prelude::*;
use peft_tests::close::{Tolerance, assert_close};
use peft_tests::tensors::{random, randomise, same_bits};

#[derive(Clone, Injectable)]
struct Model {
    first: Adapted<Linear>,
    norm: Adapted<LayerNorm>,
    head: Adapted<Linear>,
    plain: Linear,
}

impl Model {
    fn new() -> Self {
        Self {
            first: Linear::new(random(&[6, 5]), Some(random(&[6]))).into(),
            norm: LayerNorm::new(random(&[6]), random(&[6]), 1e-5).into(),
            head: Linear::new(random(&[3, 6]), Some(random(&[3]))).into(),
            plain: Linear::new(random(&[3, 3]), Some(random(&[3]))),
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let hidden = self.norm.forward(&self.first.forward(x).unwrap()).unwrap();
        self.plain.forward(&self.head.forward(&hidden).unwrap()).unwrap()
    }

    /// Injects and randomises an adapter.
    fn add(&mut self, config: &LoraConfig, name: &str) {
        self.inject_adapter(config, name).unwrap();
        randomise(self, name, 0.5).unwrap();
    }
}

fn lora() -> LoraConfig {
    LoraConfig::new(2, 4.0).with_targets(["first"])
}

#[test]
fn the_first_adapter_is_active_and_later_ones_wait() {
    let (mut model, x) = (Model::new(), random(&[4, 5]));
    model.add(&lora(), "a");
    let with_a = model.forward(&x);
    model.add(&lora(), "b");
    assert!(same_bits(&model.forward(&x), &with_a));
    assert_eq!(
        (model.adapter_names(), model.active_adapters()),
        (vec!["a".into(), "b".into()], vec!["a".into()])
    );
    model.set_adapter("b").unwrap();
    assert!(!same_bits(&model.forward(&x), &with_a));
    let names: Vec<String> = model.trainable_parameters().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["first.lora_A.b.weight", "first.lora_B.b.weight"]);
}

#[test]
fn disabling_gives_the_base_and_enabling_brings_the_adapters_back_also_when_merged() {
    let (mut model, x) = (Model::new(), random(&[4, 5]));
    let base = model.forward(&x);
    model.add(&lora(), "a");
    for merge in [false, true] {
        if merge {
            model.merge_adapters(&MergeOptions::active()).unwrap();
        }
        let with = model.forward(&x);
        model.disable_adapters();
        assert!(same_bits(&model.forward(&x), &base));
        assert!(model.trainable_parameters().is_empty());
        model.enable_adapters();
        assert!(same_bits(&model.forward(&x), &with));
    }
}

#[test]
fn while_one_adapter_is_merged_an_active_one_that_is_not_does_not_act_there() {
    let (mut model, x) = (Model::new(), random(&[4, 5]));
    model.add(&lora(), "a");
    model.add(&lora(), "b");
    model.set_adapter("b").unwrap();
    let with_b = model.forward(&x);
    model.set_adapter("a").unwrap();
    model.merge_adapters(&MergeOptions::adapters(["b"])).unwrap();
    assert_close(&model.forward(&x), &with_b, Tolerance::absolute(1e-4), "the output");
    model.merge_adapters(&MergeOptions::adapters(["a", "b"])).unwrap();
    let both = model.forward(&x);
    model.set_adapters(&["a", "b"]).unwrap();
    assert_close(&model.forward(&x), &both, Tolerance::absolute(1e-4), "activating unmerges what was merged");
}

#[test]
fn a_merged_adapter_can_be_neither_deleted_nor_scaled_nor_overwritten() {
    let mut model = Model::new();
    model.add(&lora(), "a");
    let state = model.adapter_state_dict("a").unwrap();
    model.merge_adapters(&MergeOptions::active()).unwrap();
    assert!(matches!(model.delete_adapter("a"), Err(Error::Merged { .. })));
    assert!(matches!(model.scale_adapter("a", 2.0), Err(Error::Merged { .. })));
    assert!(matches!(model.load_adapter_state_dict(&state, "a"), Err(Error::Merged { .. })));
}

#[test]
fn a_merge_that_would_give_infinities_is_refused_for_all_layers() {
    let (mut model, x) = (Model::new(), random(&[4, 5]));
    model.add(&LoraConfig::new(2, 4.0).with_targets(["first", "head"]), "a");
    let mut state = model.adapter_state_dict("a").unwrap();
    let key = "base_model.model.head.lora_A.weight";
    state.insert(key.to_owned(), (&state[key] * f64::INFINITY).unwrap());
    model.load_adapter_state_dict(&state, "a").unwrap();
    let error = model.merge_adapters(&MergeOptions::active().check_finite(true)).unwrap_err();
    assert_eq!(error.to_string(), "merging adapter `a` into `head` gives NaN or infinite values in `weight`");
    let base = model.base_state_dict();
    assert!(model.merged_state_dict().iter().all(|(key, tensor)| same_bits(tensor, &base[key])));
    let _ = model.forward(&x);
}

#[test]
fn deleting_the_only_active_adapter_activates_the_first_by_name() {
    let (mut model, x) = (Model::new(), random(&[4, 5]));
    for name in ["m", "z", "b"] {
        model.add(&lora(), name);
    }
    model.set_adapter("b").unwrap();
    let with_b = model.forward(&x);
    model.set_adapter("m").unwrap();
    model.delete_adapter("m").unwrap();
    assert_eq!(model.active_adapters(), ["b"]);
    assert!(same_bits(&model.forward(&x), &with_b));
    model.delete_adapter("z").unwrap();
    model.delete_adapter("b").unwrap();
    assert!(model.module_tree().contains("(first): Linear(in_features=5, out_features=6, bias=True)"));
    assert!(matches!(model.delete_adapter("b"), Err(Error::UnknownAdapter { .. })));
}

#[test]
fn scaling_multiplies_the_adapters_part() {
    let (mut model, x) = (Model::new(), random(&[4, 5]));
    let base = model.first.forward(&x).unwrap();
    model.add(&lora(), "a");
    let part = |model: &Model| (model.first.forward(&x).unwrap() - &base).unwrap();
    let before = part(&model);
    model.scale_adapter("a", -0.5).unwrap();
    assert_close(
        &part(&model),
        &(before * -0.5).unwrap(),
        Tolerance::absolute(1e-5),
        "what the adapter adds",
    );
    assert!(matches!(model.scale_adapter("a", f64::NAN), Err(Error::Unsupported { .. })));
}

#[test]
fn rows_of_a_batch_may_each_have_their_adapter_and_threads_their_routing() {
    let (mut model, x) = (Model::new(), random(&[4, 5]));
    let base = model.forward(&x);
    model.add(&lora(), "a");
    model.add(&LoraConfig::new(3, 3.0).with_targets(["first", "head"]), "b");
    let with_a = model.forward(&x);
    model.set_adapter("b").unwrap();
    let with_b = model.forward(&x);
    let row = |tensor: &Tensor, row: usize| tensor.get(row).unwrap();
    let check = |rows: [&str; 4]| {
        let mixed = model.with_adapter_rows(&rows, |model| model.forward(&x)).unwrap();
        for (index, name) in rows.into_iter().enumerate() {
            let expected = match name {
                "a" => &with_a,
                "b" => &with_b,
                _ => &base,
            };
            assert_close(
                &row(&mixed, index),
                &row(expected, index),
                Tolerance::absolute(1e-5),
                format_args!("{rows:?}: row {index}"),
            );
        }
    };
    std::thread::scope(|scope| {
        for rows in [["a", "b", "__base__", "a"], ["b", "b", "b", "b"], ["__base__", "a", "b", "b"]] {
            scope.spawn(move || check(rows));
        }
    });
    assert!(same_bits(&model.forward(&x), &with_b), "the routing ends with the closure");

    let unknown = model.with_adapter_rows(&["a", "c"], |_| ()).unwrap_err();
    assert_eq!(unknown.to_string(), "no adapter named `c`; the model has `a` and `b`");
    let short = model.with_adapter_rows(&["a"], |model| model.first.forward(&x)).unwrap().unwrap_err();
    assert!(short.to_string().contains("1 rows are routed to adapters, but the layer sees a batch of 4"));
    model.train();
    let training = model.with_adapter_rows(&["a"], |_| ()).unwrap_err();
    assert!(training.to_string().contains("training mode"));
    model.eval();
    model.merge_adapters(&MergeOptions::active()).unwrap();
    assert!(model.with_adapter_rows(&["a"], |_| ()).unwrap_err().to_string().contains("merged into `first`"));
}

#[test]
fn the_documented_example_prints_what_peft_prints() {
    #[derive(Injectable)]
    #[peft(target = "linear")]
    struct DummyModel {
        embedding: Adapted<candle_nn::Embedding>,
        linear: Adapted<Linear>,
        lm_head: Adapted<Linear>,
    }
    let square = || Linear::new(random(&[10, 10]), Some(random(&[10]))).into();
    let mut model = DummyModel {
        embedding: candle_nn::Embedding::new(random(&[10, 10]), 10).into(),
        linear: square(),
        lm_head: square(),
    };
    model.inject_adapter(&LoraConfig::new(64, 16.0).with_dropout(0.1), "default").unwrap();
    // `print(model)` of PEFT 0.21.2 for the same model after `inject_adapter_in_model`.
    let expected = "\
DummyModel(
  (embedding): Embedding(10, 10)
  (linear): lora.Linear(
    (base_layer): Linear(in_features=10, out_features=10, bias=True)
    (lora_dropout): ModuleDict(
      (default): Dropout(p=0.1, inplace=False)
    )
    (lora_A): ModuleDict(
      (default): Linear(in_features=10, out_features=64, bias=False)
    )
    (lora_B): ModuleDict(
      (default): Linear(in_features=64, out_features=10, bias=False)
    )
    (lora_embedding_A): ParameterDict()
    (lora_embedding_B): ParameterDict()
    (lora_magnitude_vector): ModuleDict()
  )
  (lm_head): Linear(in_features=10, out_features=10, bias=True)
)";
    assert_eq!(model.module_tree(), expected);
    assert_eq!(
        model.trainable_summary(),
        "trainable params: 1,280 || all params: 1,600 || trainable%: 80.0000"
    );
}

#[test]
fn an_error_in_the_forward_pass_of_a_layer_with_adapters_names_the_layer() {
    let (mut model, wrong) = (Model::new(), random(&[4, 7]));
    let plain = model.head.forward(&wrong).unwrap_err();
    model.add(&lora().with_targets(["head"]), "a");
    let residual = random(&[4, 3]);
    for error in [model.head.forward(&wrong), model.head.forward_add(&wrong, &residual)] {
        let error = error.unwrap_err().to_string();
        assert!(error.contains("`head`") && error.contains("shape"), "{error}");
    }
    // What went wrong stays as it was, also for a caller that looks at the type.
    model.disable_adapters();
    let candle_core::Error::Context { inner, context } = model.head.forward(&wrong).unwrap_err() else {
        panic!("an error without a context")
    };
    assert_eq!(context.to_string(), "on `head`");
    assert_eq!(std::mem::discriminant(inner.as_ref()), std::mem::discriminant(&plain));
    assert_eq!(inner.to_string().lines().next(), plain.to_string().lines().next());
}

#[test]
fn a_layer_that_was_moved_is_named_by_its_new_place_after_the_next_operation() {
    #[derive(Injectable)]
    struct Outer {
        inner: Vec<Model>,
    }

    let mut model = Model::new();
    model.add(&lora(), "a");
    let mut outer = Outer { inner: vec![Model::new(), model] };
    outer.set_adapter("a").unwrap();
    let error = outer.inner[1].first.forward(&random(&[4, 7])).unwrap_err().to_string();
    assert!(error.contains("`inner.1.first`"), "{error}");
}
