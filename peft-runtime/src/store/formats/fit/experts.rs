//! Adapters on single experts of a mixture, for a base model that has all experts in one parameter.
//!
//! Before experts were fused, each had layers of its own: `mlp.experts.3.gate_proj`. Now `mlp.experts.gate_up_proj` has for each expert
//! the rows of its gate above those of its up projection. Both updates together are one of the sum of their ranks:
//! A is `[A_gate; A_up]`, and B has B_gate and B_up on its diagonal. PEFT has the factors of all experts in one matrix each: A
//! `[experts · rank, in]`, and B `[out, rank · experts]`.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, Device, Result as CandleResult, Tensor};

use super::layer::{Layer, Sizes};
use crate::error::{AdapterFileError, Error, Result};
use crate::method::PeftConfig;
use crate::store::formats::base::Base;
use crate::store::stored_contents::StoredContents;

/// Where the module of the experts is, from the path of one.
const EXPERTS: &str = ".experts.";

/// What the layers of an expert are called, with the fused parameter and their place in it.
const PROJECTIONS: [(&str, Fused, usize); 6] = [
    ("gate_proj", Fused::GateUp, 0),
    ("up_proj", Fused::GateUp, 1),
    ("down_proj", Fused::Down, 0),
    ("w1", Fused::GateUp, 0),
    ("w3", Fused::GateUp, 1),
    ("w2", Fused::Down, 0),
];

/// A parameter of all experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fused {
    GateUp,
    Down,
}

impl Fused {
    fn name(self) -> &'static str {
        match self {
            Self::GateUp => "gate_up_proj",
            Self::Down => "down_proj",
        }
    }

    /// How many layers of an expert are in it.
    fn parts(self) -> usize {
        match self {
            Self::GateUp => 2,
            Self::Down => 1,
        }
    }
}

/// What fusing made of an adapter.
pub(super) struct FusedExperts {
    /// The layers that are fused, by their paths.
    pub(super) gone: BTreeSet<String>,
    /// The parameters that have an adapter instead, with its size.
    pub(super) parameters: BTreeMap<String, Sizes>,
    /// Their tensors under PEFT's keys.
    pub(super) tensors: BTreeMap<String, Tensor>,
}

/// The ends of the keys of each layer.
type Ends<'k> = BTreeMap<&'k str, Vec<&'k str>>;

/// The layers of experts by the parameter that they are in: by their place in it, and by expert.
type Parts = BTreeMap<Fused, Vec<BTreeMap<usize, String>>>;

/// Fuses the layers of single experts where the base model has them in one parameter.
///
/// # Errors
/// If they do not fit it.
pub(super) fn fuse(config: &PeftConfig, contents: &StoredContents, base: &Base) -> Result<FusedExperts> {
    let mut fused =
        FusedExperts { gone: BTreeSet::new(), parameters: BTreeMap::new(), tensors: BTreeMap::new() };
    let mut ends: Ends<'_> = BTreeMap::new();
    for (path, end) in contents.keys().into_iter().filter_map(|key| config.method().split_key(key)) {
        ends.entry(path).or_default().push(end);
    }
    for (module, parts) in experts(config, contents, base) {
        let Some(module) = in_base(&module, base)? else { continue };
        let names: Vec<Fused> = parts.keys().copied().collect();
        for (parameter, parts) in parts {
            let path = format!("{module}.{}", parameter.name());
            let Some([experts, first, second]) = base.shapes.get(&path).map(Vec::as_slice) else {
                let key = parts.iter().flat_map(BTreeMap::values).next().cloned().unwrap_or_default();
                return Err(wrong(
                    &key,
                    format!("is one of the experts that the base model has in `{module}`, without `{path}`"),
                ));
            };
            let whole = Whole { experts: *experts, sides: [*first, *second], parts: parameter.parts() };
            let (a, b, sizes) = whole.fuse(config, (contents, &ends), &parts)?;
            // PEFT wraps the module once for each parameter, the first one innermost.
            let inner =
                if parameter == Fused::GateUp && names.contains(&Fused::Down) { ".base_layer" } else { "" };
            fused.tensors.insert(format!("{module}{inner}.lora_A.weight"), a);
            fused.tensors.insert(format!("{module}{inner}.lora_B.weight"), b);
            fused.parameters.insert(path, sizes);
            fused.gone.extend(parts.into_iter().flat_map(BTreeMap::into_values));
        }
    }
    Ok(fused)
}

/// The layers of experts that the base model does not have by themselves, by the module of the experts.
fn experts(config: &PeftConfig, contents: &StoredContents, base: &Base) -> BTreeMap<String, Parts> {
    let mut modules: BTreeMap<String, Parts> = BTreeMap::new();
    for key in contents.keys() {
        let Some((path, _)) = config.method().split_key(key) else { continue };
        let Some((module, rest)) = path.rsplit_once(EXPERTS) else { continue };
        let Some((expert, name)) = rest.split_once('.') else { continue };
        let known = PROJECTIONS.iter().find(|(known, ..)| *known == name);
        let (Ok(expert), Some((_, parameter, place))) = (expert.parse::<usize>(), known) else { continue };
        if base.has_module(&base.placed(path)) {
            continue;
        }
        let module = format!("{module}{}", EXPERTS.trim_end_matches('.'));
        let parts = modules.entry(module).or_default().entry(*parameter).or_default();
        parts.resize(parts.len().max(parameter.parts()), BTreeMap::new());
        if let Some(part) = parts.get_mut(*place) {
            part.insert(expert, path.to_owned());
        }
    }
    modules
}

/// The base model's path of the module of experts, if it has them fused.
fn in_base(module: &str, base: &Base) -> Result<Option<String>> {
    let is_fused = |path: &String| {
        [Fused::GateUp, Fused::Down]
            .iter()
            .any(|fused| base.shapes.contains_key(&format!("{path}.{}", fused.name())))
    };
    let placed = base.names.place(module).module;
    if is_fused(&placed) {
        return Ok(Some(placed));
    }
    Ok(base.other_name(module, module)?.filter(is_fused))
}

/// A parameter of all experts.
struct Whole {
    experts: usize,
    /// The two sides of the matrix of an expert.
    sides: [usize; 2],
    parts: usize,
}

impl Whole {
    /// A and B of all experts, and their rank and scaling.
    fn fuse(
        &self,
        config: &PeftConfig,
        (contents, ends): (&StoredContents, &Ends<'_>),
        parts: &[BTreeMap<usize, String>],
    ) -> Result<(Tensor, Tensor, Sizes)> {
        let mut layers: Vec<BTreeMap<usize, Layer>> = Vec::new();
        for part in parts {
            let read =
                |(expert, path): (&usize, &String)| Ok((*expert, Layer::read(config, contents, ends, path)?));
            layers.push(part.iter().map(read).collect::<Result<_>>()?);
        }
        let all = || layers.iter().flat_map(BTreeMap::iter);
        let Some((_, first)) = all().next() else { return Err(wrong("experts", "has no layers".to_owned())) };
        for (expert, layer) in all() {
            self.check(*expert, layer, first)?;
        }
        let ranks: Vec<usize> = layers
            .iter()
            .map(|part| part.values().map(|layer| layer.rank).max().unwrap_or_default())
            .collect();
        let rank: usize = ranks.iter().sum();
        let assembled = self.assemble(&layers, &ranks, first).map_err(Error::from)?;
        Ok((assembled.0, assembled.1, Sizes { rank, scaling: first.scaling }))
    }

    fn check(&self, expert: usize, layer: &Layer, first: &Layer) -> Result<()> {
        if expert >= self.experts {
            return Err(wrong(
                &layer.path,
                format!("is expert {expert}, and the base model has {}", self.experts),
            ));
        }
        let sides = [layer.outputs * self.parts, layer.inputs];
        let fits = sides == self.sides || [sides[1], sides[0]] == self.sides;
        if fits && layer.inputs == first.inputs && layer.outputs == first.outputs {
            return Ok(());
        }
        let reason = format!(
            "is [{}, {}], and the base model's experts have {:?} for {} of them",
            layer.outputs, layer.inputs, self.sides, self.parts
        );
        Err(wrong(&layer.path, reason))
    }

    /// The factors of all experts in PEFT's order.
    fn assemble(
        &self,
        layers: &[BTreeMap<usize, Layer>],
        ranks: &[usize],
        first: &Layer,
    ) -> CandleResult<(Tensor, Tensor)> {
        let (dtype, rank) = (first.a.dtype(), ranks.iter().sum::<usize>());
        let zeros = |rows: usize, columns: usize| Tensor::zeros((rows, columns), dtype, &Device::Cpu);
        let (mut all_a, mut all_b) = (Vec::new(), Vec::new());
        for expert in 0..self.experts {
            let (mut a, mut b): (Vec<Tensor>, Vec<Tensor>) = (Vec::new(), Vec::new());
            let mut before = 0;
            for (part, own_rank) in layers.iter().zip(ranks) {
                if *own_rank == 0 {
                    b.push(zeros(first.outputs, rank)?);
                    continue;
                }
                let (part_a, part_b) = match part.get(&expert) {
                    Some(layer) => layer.padded(*own_rank, first.scaling, dtype)?,
                    None => (zeros(*own_rank, first.inputs)?, zeros(first.outputs, *own_rank)?),
                };
                a.push(part_a);
                b.push(part_b.pad_with_zeros(1, before, rank - before - own_rank)?);
                before += own_rank;
            }
            all_a.push(Tensor::cat(&a, 0)?);
            all_b.push(Tensor::cat(&b, 0)?);
        }
        let a = Tensor::cat(&all_a, 0)?;
        let b = Tensor::stack(&all_b, 2)?.reshape((first.outputs * self.parts, rank * self.experts))?;
        Ok((a, b))
    }
}

impl Layer {
    /// The factors in `dtype` with zeros up to `rank`, B times what its scaling is more than `scaling`.
    fn padded(&self, rank: usize, scaling: f64, dtype: DType) -> CandleResult<(Tensor, Tensor)> {
        let missing = rank - self.rank;
        let mut b = self.b.clone();
        if self.scaling.to_bits() != scaling.to_bits() {
            b = (b.to_dtype(DType::F32)? * (self.scaling / scaling))?;
        }
        let (a, b) = (self.a.to_dtype(dtype)?, b.to_dtype(dtype)?);
        Ok((a.pad_with_zeros(0, 0, missing)?, b.pad_with_zeros(1, 0, missing)?))
    }
}

fn wrong(key: &str, reason: String) -> Error {
    AdapterFileError::Key { key: key.to_owned(), reason }.into()
}
