//! Tokens, bare parameters, repeated blocks, EVA, heads of which an init took a part, and LoHa and LoKr on 1-D convolutions,
//! against what PEFT computed: `tests/python/peft_values.py` wrote the fixture.

mod case;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Conv1d, Conv1dConfig, Embedding, Linear, Module};
use peft_runtime::nn::Weight;
use peft_runtime::prelude::*;
use peft_runtime::{MergedWeights, ModelWeights, StoredAdapter};
use peft_tests::tensors::distance;

use crate::case::Case;

#[derive(Clone, Injectable)]
struct Words {
    embed_tokens: Adapted<Embedding>,
    lin: Adapted<Linear>,
}

#[test]
fn a_list_of_tokens_computes_what_peft_computes() {
    let case = Case::read("tokens_list");
    let base = Words { embed_tokens: case.embedding("embed_tokens"), lin: case.linear("lin") };
    case.replay(&base, |model, x| model.lin.forward(&model.embed_tokens.forward(x)?));
}

#[derive(Clone, Injectable)]
struct TwoTables {
    word: Adapted<Embedding>,
    position: Adapted<Embedding>,
    lin: Adapted<Linear>,
}

#[test]
fn a_dictionary_of_tokens_computes_what_peft_computes() {
    let case = Case::read("tokens_dict");
    let base = TwoTables {
        word: case.embedding("word"),
        position: case.embedding("position"),
        lin: case.linear("lin"),
    };
    case.replay(&base, |model, x| {
        let places =
            Tensor::arange(0u32, x.dim(1)? as u32, x.device())?.broadcast_as(x.shape())?.contiguous()?;
        model.lin.forward(&(model.word.forward(x)? + model.position.forward(&places)?)?)
    });
}

#[derive(Clone, Injectable)]
#[peft(input_embedding = "embed_tokens", output_embedding = "lm_head")]
struct Language {
    embed_tokens: Adapted<Embedding>,
    lin: Adapted<Linear>,
    lm_head: Adapted<Linear>,
}

impl Language {
    fn new(case: &Case, head: Tensor) -> Self {
        Self {
            embed_tokens: case.embedding("embed_tokens"),
            lin: case.linear("lin"),
            lm_head: Linear::new(head, None).into(),
        }
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.lm_head.forward(&self.lin.forward(&self.embed_tokens.forward(x)?)?.tanh()?)
    }
}

#[test]
fn tokens_of_a_tied_head_compute_what_peft_computes() {
    let case = Case::read("tokens_tied");
    case.replay(&Language::new(&case, case.base("embed_tokens.weight")), Language::forward);
}

#[test]
fn a_head_of_which_the_file_has_what_an_init_left_computes_what_peft_computes() {
    for name in ["pissa_head", "olora_head"] {
        let case = Case::read(name);
        let head = case.base("lm_head.weight");
        case.replay(&Language::new(&case, head.clone()), Language::forward);
        // What the file has of the head acts, whatever head the model had.
        let folder = case.folder();
        let mut other = Language::new(&case, (head * 0.5).unwrap());
        other.load_adapter(folder.path(), "default").unwrap();
        case.expect("other_head", &other.forward(&case.input()).unwrap());
        // The same weights come out where no model is.
        let base = folder.path().join("base.safetensors");
        std::fs::write(&base, safetensors::serialize(case.part("base/").iter(), None).unwrap()).unwrap();
        let adapter = StoredAdapter::open(folder.path()).unwrap();
        let merged = MergedWeights::new(ModelWeights::open(&base).unwrap()).add(adapter, 1.0).unwrap();
        for layer in ["lin", "lm_head"] {
            let weight = merged.get_unchecked(&format!("{layer}.weight"), DType::F32, &Device::Cpu);
            case.expect(layer, &weight.unwrap());
        }
        merged.finish().unwrap();
    }
}

#[derive(Clone, Injectable)]
struct Mixture {
    down: Adapted<Linear>,
    experts: Experts,
}

#[derive(Clone, Injectable)]
struct Experts {
    up: Adapted<Weight>,
    down: Adapted<Weight>,
    #[peft(skip)]
    transposed: bool,
}

impl Mixture {
    fn read(case: &Case, transposed: bool) -> Self {
        let new = if transposed { Weight::transposed } else { Weight::new };
        let weight = |path: &str| Adapted::new(new(case.base(path)));
        let experts = Experts { up: weight("experts.up"), down: weight("experts.down"), transposed };
        Self { down: case.linear("down"), experts }
    }

    /// Every expert sees every row; their outputs are added.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let Experts { up, down, transposed } = &self.experts;
        let inputs_first = |weight: Tensor| if *transposed { Ok(weight) } else { weight.transpose(1, 2) };
        let (up, down) = (inputs_first(up.weight()?)?, inputs_first(down.weight()?)?);
        let hidden = self.down.forward(x)?.unsqueeze(0)?.broadcast_matmul(&up)?.tanh()?;
        hidden.broadcast_matmul(&down)?.sum(0)
    }
}

#[test]
fn target_parameters_of_experts_compute_what_peft_computes() {
    for (name, transposed) in [("experts", false), ("experts_transposed", true), ("experts_and_layer", false)]
    {
        let case = Case::read(name);
        case.replay(&Mixture::read(&case, transposed), Mixture::forward);
    }
}

#[derive(Clone, Injectable)]
struct Gated {
    gate: Gate,
}

#[derive(Clone, Injectable)]
struct Gate {
    proj: Adapted<Weight>,
}

#[test]
fn a_matrix_as_target_parameter_computes_what_peft_computes() {
    let case = Case::read("matrix");
    let base = Gated { gate: Gate { proj: Weight::new(case.base("gate.proj")).into() } };
    case.replay(&base, |model, x| x.matmul(&model.gate.proj.weight()?.t()?)?.tanh());
}

#[derive(Clone, Injectable)]
struct Stack {
    #[peft(blocks)]
    layers: Vec<Block>,
}

#[derive(Clone, Injectable)]
struct Block {
    lin: Adapted<Linear>,
}

#[test]
fn replicated_layers_compute_what_peft_computes() {
    let case = Case::read("replication");
    let block = |index| Block { lin: case.linear(&format!("layers.{index}.lin")) };
    let base = Stack { layers: (0..3).map(block).collect() };
    case.replay(&base, |model, x| {
        model.layers.iter().try_fold(x.clone(), |x, block| &x + block.lin.forward(&x)?.tanh()?)
    });
}

/// 1-D convolutions with several channels, dilated and in groups.
#[derive(Clone, Injectable)]
struct Signal {
    first: Adapted<Conv1d>,
    second: Adapted<Conv1d>,
}

#[test]
fn loha_and_lokr_on_one_dimensional_convolutions_compute_what_peft_computes() {
    for name in [
        "loha_conv1d",
        "loha_conv1d_core",
        "lokr_conv1d_whole",
        "lokr_conv1d_whole_both",
        "lokr_conv1d_product",
        "lokr_conv1d_core",
    ] {
        let case = Case::read(name);
        let dilated = Conv1dConfig { padding: 2, dilation: 2, ..Conv1dConfig::default() };
        let grouped = Conv1dConfig { stride: 2, groups: 2, ..Conv1dConfig::default() };
        let first = Conv1d::new(case.base("first.weight"), Some(case.base("first.bias")), dilated);
        let second = Conv1d::new(case.base("second.weight"), None, grouped);
        let base = Signal { first: first.into(), second: second.into() };
        case.replay(&base, |model, x| model.second.forward(&model.first.forward(x)?.tanh()?));
    }
}

#[derive(Clone, Injectable)]
struct Towers {
    q: Adapted<Linear>,
    k: Adapted<Linear>,
    o: Adapted<Linear>,
}

impl Towers {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.o.forward(&((self.q.forward(x)? + self.k.forward(x)?)? * 3.0)?.sin()?)
    }
}

#[test]
fn eva_finds_the_ranks_and_directions_that_peft_finds() {
    let case = Case::read("eva");
    let mut model = Towers { q: case.linear("q"), k: case.linear("k"), o: case.linear("o") };
    case.expect("base", &model.forward(&case.input()).unwrap());
    let EvaConfig { rho, .. } = case.method().eva().unwrap();
    let config = LoraConfig::new(2, 4.0)
        .with_targets(["q", "k", "o"])
        .with_eva(EvaConfig { rho, ..EvaConfig::default() });
    model.inject_adapter(&config, "default").unwrap();
    model.initialise_eva("default", [case.input()], |model, x| model.forward(&x)).unwrap();
    let found = model.adapter_state_dict("default").unwrap();
    let expected = case.adapter();
    assert!(found.keys().eq(expected.keys()));
    for (key, theirs) in &expected {
        let ours = &found[key];
        assert_eq!(ours.dims(), theirs.dims(), "{key}");
        // A direction and its opposite are one. PEFT stops when two passes agree, which they do on the same rows.
        for row in 0..ours.dims()[0] {
            let (ours, theirs) = (ours.get(row).unwrap(), theirs.get(row).unwrap());
            let far = [theirs.clone(), theirs.neg().unwrap()].map(|theirs| distance(&ours, &theirs).unwrap());
            assert!(far[0].min(far[1]) < 1e-3, "row {row} of {key} is off by {far:?}");
        }
    }
    // The scaling of each layer is the one PEFT has: alpha by rank.
    let ours = model.adapter_config("default").unwrap();
    let (ours, theirs) = (ours.downcast_ref::<LoraConfig>().unwrap(), case.method());
    let alphas =
        |config: &LoraConfig| config.alpha_pattern().iter().map(|(_, alpha)| *alpha).collect::<Vec<_>>();
    let mut both = [alphas(ours), alphas(&theirs)];
    both.iter_mut().for_each(|alphas| alphas.sort_by(f64::total_cmp));
    assert_eq!(both[0], both[1]);
    // And PEFT's own file loads.
    let mut other = Towers { q: case.linear("q"), k: case.linear("k"), o: case.linear("o") };
    other.load_adapter(case.folder().path(), "default").unwrap();
    assert_eq!(other.adapter_state_dict("default").unwrap().len(), 6);
}
