//! `target_parameters`: bare weights, either one matrix or one for each expert.

use candle_core::Tensor;
use candle_nn::{Linear, Module};
use peft_runtime::Error;
use peft_runtime::nn::Weight;
use peft_runtime::prelude::*;
use peft_tests::close::{Tolerance, assert_close, is_close};
use peft_tests::tensors::{distance, random, randomise, same_bits};

use crate::{keys, refusal, texts};

/// A layer and a bare weight of the same name, as mixtures of experts have them.
#[derive(Clone, Injectable)]
struct Model {
    mlp: Mlp,
    experts: Experts,
    gate: Gate,
    root: Adapted<Weight>,
}

#[derive(Clone, Injectable)]
struct Mlp {
    down: Adapted<Linear>,
}

#[derive(Clone, Injectable)]
struct Experts {
    up: Adapted<Weight>,
    down: Adapted<Weight>,
    plain: Tensor,
}

#[derive(Clone, Injectable)]
struct Gate {
    proj: Adapted<Weight>,
}

const EXPERTS: usize = 3;

fn model() -> Model {
    Model {
        mlp: Mlp { down: Linear::new(random(&[4, 4]), None).into() },
        experts: Experts {
            up: Weight::new(random(&[EXPERTS, 5, 4])).into(),
            down: Weight::transposed(random(&[EXPERTS, 5, 6])).into(),
            plain: random(&[EXPERTS, 2, 2]),
        },
        gate: Gate { proj: Weight::new(random(&[3, 4])).into() },
        root: Weight::new(random(&[2, 2])).into(),
    }
}

fn lora(parameters: &[&str]) -> LoraConfig {
    LoraConfig::new(2, 3.0).with_target_parameters(parameters.iter().copied())
}

/// A model with an acting adapter on these parameters.
fn acting(parameters: &[&str], name: &str) -> Model {
    let mut model = model();
    add(&mut model, parameters, name);
    model
}

fn add(model: &mut Model, parameters: &[&str], name: &str) {
    model.inject_adapter(&lora(parameters), name).unwrap();
    randomise(model, name, 0.5).unwrap();
}

/// The factors of an adapter under a key.
fn factors(model: &Model, name: &str, place: &str) -> (Tensor, Tensor) {
    let state = model.adapter_state_dict(name).unwrap();
    let factor = |letter: &str| state[&format!("base_model.model.{place}.lora_{letter}.weight")].clone();
    (factor("A"), factor("B"))
}

/// `ΔW[e, o, i] = s·Σ_ρ B[o, ρ, e]·A[e, ρ, i]`, element by element: A is ordered by expert, B by rank.
fn update(a: &Tensor, b: &Tensor, rank: usize, scaling: f32) -> Vec<Vec<Vec<f32>>> {
    let (a, b) = (a.to_vec2::<f32>().unwrap(), b.to_vec2::<f32>().unwrap());
    let element = |e: usize, o: usize, i: usize| -> f32 {
        (0..rank).map(|r| scaling * b[o][r * EXPERTS + e] * a[e * rank + r][i]).sum()
    };
    let row = |e: usize, o: usize| -> Vec<f32> { (0..a[0].len()).map(|i| element(e, o, i)).collect() };
    (0..EXPERTS).map(|e| (0..b.len()).map(|o| row(e, o)).collect()).collect()
}

fn delta(model: &Model, name: &str, place: &str) -> Tensor {
    let (a, b) = factors(model, name, place);
    Tensor::new(update(&a, &b, 2, 1.5), a.device()).unwrap()
}

const ROUNDING: Tolerance = Tolerance::absolute(1e-5);

fn assert_near(found: &Tensor, expected: &Tensor, what: &str) {
    assert_close(found, expected, ROUNDING, what);
}

#[test]
fn a_matrix_is_adapted_like_a_linear_layer() {
    let model = acting(&["gate.proj"], "a");
    assert_eq!(keys(&model, "a"), ["gate.lora_A.weight", "gate.lora_B.weight"]);
    let (a, b) = factors(&model, "a", "gate");
    assert_eq!((a.dims(), b.dims()), (&[2, 4][..], &[3, 2][..]));
    let expected = (model.gate.proj.base().tensor() + (b.matmul(&a).unwrap() * 1.5).unwrap()).unwrap();
    assert_near(&model.gate.proj.weight().unwrap(), &expected, "the weight");
}

#[test]
fn each_expert_has_its_own_product_with_the_factors_in_pefts_order() {
    let model = acting(&["experts.up"], "a");
    assert_eq!(keys(&model, "a"), ["experts.lora_A.weight", "experts.lora_B.weight"]);
    let (a, b) = factors(&model, "a", "experts");
    assert_eq!((a.dims(), b.dims()), (&[6, 4][..], &[5, 6][..]));
    let expected = (model.experts.up.base().tensor() + delta(&model, "a", "experts")).unwrap();
    assert_near(&model.experts.up.weight().unwrap(), &expected, "the weight");
}

#[test]
fn transposed_experts_store_the_inputs_first() {
    let model = acting(&["experts.down"], "a");
    let (a, b) = factors(&model, "a", "experts");
    assert_eq!((a.dims(), b.dims()), (&[6, 5][..], &[6, 6][..]));
    let change = delta(&model, "a", "experts").transpose(1, 2).unwrap();
    let expected = (model.experts.down.base().tensor() + change).unwrap();
    assert_near(&model.experts.down.weight().unwrap(), &expected, "the weight");
}

#[test]
fn several_parameters_of_a_module_nest_in_the_order_of_the_model() {
    // Whatever the order in which they are named.
    for names in [["experts.up", "experts.down"], ["experts.down", "experts.up"]] {
        let model = acting(&names, "a");
        let wanted = ["experts.base_layer.lora_A.weight", "experts.base_layer.lora_B.weight"];
        assert_eq!(keys(&model, "a")[..2], wanted);
        assert_eq!(keys(&model, "a")[2..], ["experts.lora_A.weight", "experts.lora_B.weight"]);
        let expected = (model.experts.up.base().tensor() + delta(&model, "a", "experts.base_layer")).unwrap();
        assert_near(&model.experts.up.weight().unwrap(), &expected, "the weight");
        let folder = tempfile::tempdir().unwrap();
        model.save_pretrained(folder.path(), "a").unwrap();
        let mut other = model.clone();
        other.delete_adapter("a").unwrap();
        other.load_adapter(folder.path(), "a").unwrap();
        let reads: [fn(&Model) -> candle_core::Result<Tensor>; 2] =
            [|model| model.experts.up.weight(), |model| model.experts.down.weight()];
        for read in reads {
            assert!(same_bits(&read(&other).unwrap(), &read(&model).unwrap()));
        }
    }
}

#[test]
fn a_fresh_adapter_leaves_the_weight_unchanged_and_disabling_restores_it() {
    let mut model = model();
    let before = model.experts.up.weight().unwrap();
    model.inject_adapter(&lora(&["experts.up"]), "a").unwrap();
    assert!(same_bits(&model.experts.up.weight().unwrap(), &before));
    randomise(&mut model, "a", 0.5).unwrap();
    assert!(!is_close(&model.experts.up.weight().unwrap(), &before, ROUNDING));
    model.disable_adapters();
    assert!(same_bits(&model.experts.up.weight().unwrap(), &before));
}

#[test]
fn merging_gives_the_weight_that_was_read_and_unmerging_the_original_bits() {
    let mut model = acting(&["experts.up", "experts.down", "gate.proj"], "a");
    let read = |model: &Model| {
        [&model.experts.up, &model.experts.down, &model.gate.proj].map(|weight| weight.weight().unwrap())
    };
    let (adapted, base) = (read(&model), model.base_state_dict());
    model.merge_adapters(&MergeOptions::active().check_finite(true)).unwrap();
    for (merged, adapted) in read(&model).iter().zip(&adapted) {
        assert_near(merged, adapted, "the weight that is read");
    }
    let merged = model.merged_state_dict();
    let names = ["experts.up", "experts.down", "gate.proj"];
    for (name, adapted) in names.iter().zip(&adapted) {
        assert_near(&merged[*name], adapted, name);
    }
    model.unmerge_adapters().unwrap();
    assert!(model.merged_state_dict().iter().all(|(key, tensor)| same_bits(tensor, &base[key])));
    model.merge_and_unload(&MergeOptions::active()).unwrap();
    assert!(names.iter().all(|name| same_bits(&model.base_state_dict()[*name], &merged[*name])));
}

#[test]
fn gradients_reach_both_factors_and_not_the_weight() {
    let model = acting(&["experts.down"], "a");
    let loss = model.experts.down.weight().unwrap().sqr().unwrap().sum_all().unwrap();
    let grads = loss.backward().unwrap();
    let parameters = model.trainable_parameters();
    assert_eq!(parameters.len(), 2);
    for (name, var) in &parameters {
        let grad = grads.get(var).unwrap();
        assert!(distance(grad, &grad.zeros_like().unwrap()).unwrap() > 0.0, "{name}");
    }
    assert_eq!(grads.get_ids().count(), 2, "something else has a gradient");
    assert!(!no_grad(|| model.experts.down.weight()).unwrap().track_op());
}

#[test]
fn the_updates_of_several_adapters_add_up() {
    let mut model = acting(&["experts.up"], "a");
    add(&mut model, &["experts.up"], "b");
    let sum = (delta(&model, "a", "experts") + delta(&model, "b", "experts")).unwrap();
    let expected = (model.experts.up.base().tensor() + sum).unwrap();
    model.set_adapters(&["a", "b"]).unwrap();
    assert_near(&model.experts.up.weight().unwrap(), &expected, "the weight");
    model.scale_adapter("b", 0.0).unwrap();
    let expected = (model.experts.up.base().tensor() + delta(&model, "a", "experts")).unwrap();
    assert_near(&model.experts.up.weight().unwrap(), &expected, "the weight");
}

#[test]
fn layers_and_parameters_may_be_adapted_together() {
    let mut model = model();
    let config = lora(&["experts.up"]).with_targets(["mlp.down"]);
    let report = model.inject_adapter(&config, "a").unwrap();
    let adapted = texts(&report.adapted);
    assert_eq!(adapted, ["mlp.down", "experts.up"]);
}

#[test]
fn names_of_modules_do_not_refer_to_parameters() {
    let adapted = |config: &LoraConfig| -> Vec<String> {
        let report = model().inject_adapter(config, "a").unwrap();
        report.adapted.iter().chain(&report.copied).map(ToString::to_string).collect()
    };
    let config = LoraConfig::new(2, 3.0);
    assert_eq!(adapted(&config.clone().with_targets(["down"])), ["mlp.down"]);
    assert_eq!(adapted(&config.clone().with_targets(TargetModules::regex(".*down"))), ["mlp.down"]);
    assert_eq!(adapted(&config.clone().with_targets(TargetModules::all_linear())), ["mlp.down"]);
    // The compile-time check agrees.
    assert_eq!(adapted(&config.with_targets(targets!(Model; "down"))), ["mlp.down"]);
    let text = refusal(&mut model(), &LoraConfig::new(2, 3.0).with_targets(["proj"]));
    assert!(text.contains("no module is left to adapt"), "{text}");
}

#[test]
fn sums_of_bare_parameters_are_refused_by_name() {
    let mut model = acting(&["experts.up"], "a");
    add(&mut model, &["experts.up"], "b");
    let options = CombineOptions::new(CombinationType::Cat);
    let error = model.add_weighted_adapter(&[("a", 1.0), ("b", 1.0)], "sum", &options).unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    assert!(error.to_string().contains("bare parameters"), "{error}");
    assert_eq!(model.adapter_names(), ["a", "b"]);
}

#[test]
fn rows_of_a_batch_cannot_have_a_weight_each() {
    let model = acting(&["gate.proj"], "a");
    let read = model.with_adapter_rows(&["a", "__base__"], |model| model.gate.proj.weight()).unwrap();
    assert!(read.unwrap_err().to_string().contains("the same for all rows"));
    assert!(model.gate.proj.forward(&random(&[2, 4])).unwrap_err().to_string().contains("`weight()`"));
}

#[test]
fn an_error_in_reading_a_parameter_names_it() {
    let model = acting(&["gate.proj"], "a");
    let read = model.with_adapter_rows(&["a", "__base__"], |model| model.gate.proj.weight()).unwrap();
    for error in [read, model.gate.proj.forward(&random(&[2, 4]))] {
        let error = error.unwrap_err().to_string();
        assert!(error.contains("on `gate.proj`"), "{error}");
    }
}

#[test]
fn parameters_that_cannot_be_adapted_are_refused_and_say_why() {
    let gate = || lora(&["gate.proj"]);
    let cases = [
        (lora(&["experts.upp"]), "`experts.upp` matches no module; did you mean `experts.up`"),
        (lora(&["root"]), "cannot adapt `root`: a parameter of the model itself"),
        (lora(&["experts.plain"]), "declare the field as `Adapted<Weight>`"),
        (gate().with_dropout(0.1), "`lora_dropout` needs a layer"),
        (gate().with_lora_bias(true), "`lora_bias` needs a layer"),
        (gate().with_dora(true), "`use_dora` needs a layer"),
        (gate().with_init(LoraInit::Pissa), "`init_lora_weights` needs a layer"),
        (LoraConfig::new(13, 3.0).with_target_parameters(["gate.proj"]), "rank 13 is too large for"),
    ];
    for (config, says) in cases {
        let text = refusal(&mut model(), &config);
        assert!(text.contains(says), "`{says}` is not in: {text}");
    }
}
