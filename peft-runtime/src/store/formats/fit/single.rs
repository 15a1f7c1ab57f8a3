//! Adapters on the parameter of all experts of a mixture, for a base model that has the layers of each expert by themselves.
//!
//! transformers has experts in one parameter in memory, and saves Mixtral and Qwen3-MoE with single ones. The update of expert `e` is
//! B_e·A_e; the rows of `gate_up_proj` are those of the gate above those of the up projection, so that both have A_e, and each its rows
//! of B_e. No number changes.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{Device, Result as CandleResult, Tensor};

use super::config::with_layers;
use super::layer::Sizes;
use crate::adapter::Geometry;
use crate::error::{AdapterFileError, Error, Result};
use crate::method::PeftConfig;
use crate::schema::{Family, LayerKind};
use crate::store::bare_parameters::{BareParameter, bare_parameters};
use crate::store::formats::base::Base;
use crate::store::stored_contents::StoredContents;

/// The parameters of all experts.
const GATE_UP: &str = "gate_up_proj";
const DOWN: &str = "down_proj";

/// What models call the layers of an expert: gate, up and down.
const PROJECTIONS: [[&str; 3]; 2] = [["gate_proj", "up_proj", "down_proj"], ["w1", "w3", "w2"]];

/// The experts of a module in the base model.
struct Experts {
    /// The module's path in the base model's names, or in the adapter's if those mean it.
    path: String,
    count: usize,
    projections: [&'static str; 3],
    inputs: usize,
    /// The outputs of gate and up projection.
    inner: usize,
}

/// The adapter with layers of single experts in place of their parameters, where the base model has it so.
///
/// # Errors
/// If the factors do not fit the experts.
pub(super) fn split(
    config: PeftConfig,
    contents: StoredContents,
    base: &Base,
) -> Result<(PeftConfig, StoredContents)> {
    let wanted = config.method().selection().parameters;
    if wanted.is_empty() {
        return Ok((config, contents));
    }
    let stems: BTreeSet<String> = contents
        .keys()
        .into_iter()
        .filter_map(|key| Some(config.method().split_key(key)?.0.to_owned()))
        .collect();
    let mut modules: BTreeMap<String, Experts> = BTreeMap::new();
    let mut shapes: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for module in stems.iter().map(|stem| unwrapped(stem)).filter(|module| means(wanted, module)) {
        let found = experts(module, base).map_err(|error| contents.of_weights(error))?;
        let Some(found) = found else { continue };
        let placed = base.names.place(module).module;
        shapes.insert(format!("{placed}.{GATE_UP}"), vec![found.count, 2 * found.inner, found.inputs]);
        shapes.insert(format!("{placed}.{DOWN}"), vec![found.count, found.inputs, found.inner]);
        modules.insert(module.to_owned(), found);
    }
    if modules.is_empty() {
        return Ok((config, contents));
    }
    let known = (&base.names, base.config.as_ref());
    let parameters = bare_parameters(config.method(), &contents, &shapes, known)
        .map_err(|error| contents.of_weights(error.into()))?;
    let (mut added, mut tensors) = (BTreeMap::new(), BTreeMap::new());
    for (stem, parameter) in &parameters {
        let Some(experts) = modules.get(unwrapped(stem)) else { continue };
        let split = Stem { config: &config, contents: &contents, stem, parameter };
        split.add(experts, &mut added, &mut tensors).map_err(|error| contents.of_weights(error))?;
    }
    let is_layer = |stem: &&String| !parameters.contains_key(*stem) && !is_bare(wanted, stem);
    let layers: BTreeSet<String> = stems.iter().filter(is_layer).cloned().collect();
    let is_gone_name = |name: &str| {
        let of = |module: &String| [GATE_UP, DOWN].iter().any(|own| is_end(&format!("{module}.{own}"), name));
        modules.keys().any(of)
    };
    let fitted = with_layers(&config, &layers, &added, is_gone_name)?;
    let is_gone =
        |key: &str| config.method().split_key(key).is_some_and(|(stem, _)| parameters.contains_key(stem));
    let contents = contents.replaced(&is_gone, tensors)?;
    Ok((fitted, contents))
}

/// Whether `name` is `path`, or the end of it.
fn is_end(path: &str, name: &str) -> bool {
    path.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// Whether the parameters of all experts of `module` are among those that the config names.
fn means(wanted: &[String], module: &str) -> bool {
    let own = [GATE_UP, DOWN].map(|name| format!("{module}.{name}"));
    wanted.iter().any(|name| own.iter().any(|path| is_end(path, name)))
}

/// Whether a stem is that of a bare weight that the config names.
fn is_bare(wanted: &[String], stem: &str) -> bool {
    let weight = format!("{}.weight", unwrapped(stem));
    wanted.iter().any(|name| is_end(&weight, name))
}

/// A stem without PEFT's wrapping.
fn unwrapped(mut stem: &str) -> &str {
    while let Some(outer) = stem.strip_suffix(".base_layer") {
        stem = outer;
    }
    stem
}

/// The single experts that the base model has in the module that an adapter calls `module`, if it has them so.
fn experts(module: &str, base: &Base) -> Result<Option<Experts>> {
    let placed = base.names.place(module).module;
    let is_own = base.has_module(&placed);
    let Some(found) = (if is_own { Some(placed) } else { base.other_name(module, module)? }) else {
        return Ok(None);
    };
    let weight = |expert: usize, name: &str| base.shapes.get(&format!("{found}.{expert}.{name}.weight"));
    let Some(projections) =
        PROJECTIONS.into_iter().find(|names| names.iter().all(|name| weight(0, name).is_some()))
    else {
        return Ok(None);
    };
    let count = (0..).take_while(|expert| weight(*expert, projections[0]).is_some()).count();
    let Some([inner, inputs]) = weight(0, projections[0]).map(Vec::as_slice) else { return Ok(None) };
    let path = if is_own { module.to_owned() } else { found.clone() };
    Ok(Some(Experts { path, count, projections, inputs: *inputs, inner: *inner }))
}

/// The factors of one parameter.
struct Stem<'a> {
    config: &'a PeftConfig,
    contents: &'a StoredContents,
    stem: &'a str,
    parameter: &'a BareParameter,
}

impl Stem<'_> {
    /// Adds the layers of all experts with their sizes and tensors.
    fn add(
        &self,
        experts: &Experts,
        added: &mut BTreeMap<String, Sizes>,
        tensors: &mut BTreeMap<String, Tensor>,
    ) -> Result<()> {
        let Geometry::Experts { experts: count, transposed, .. } = self.parameter.geometry else {
            return Err(self.wrong("is not on a parameter of experts"));
        };
        let (a, b) = (self.factor("lora_A.weight")?, self.factor("lora_B.weight")?);
        let kind = LayerKind::new("Weight", Family::Parameter);
        let settings =
            self.config.method().plan_layer(&self.parameter.path, kind, &self.parameter.geometry)?;
        let scaling = settings.scaling.ok_or_else(|| self.wrong("has no scaling"))?;
        let rank = a.dim(0)? / count.max(1);
        let [gate, up, down] = experts.projections;
        let is_down = self.parameter.path.as_str().ends_with(&format!(".{DOWN}"));
        let parts: &[&str] = if is_down { &[down] } else { &[gate, up] };
        for expert in 0..count {
            let (down_factor, up_factor) = of_expert((&a, &b), (expert, count, rank), transposed)?;
            for (part, rows) in parts.iter().zip(up_factor.chunk(parts.len(), 0)?) {
                let path = format!("{}.{expert}.{part}", experts.path);
                tensors.insert(format!("{path}.lora_A.weight"), down_factor.clone());
                tensors.insert(format!("{path}.lora_B.weight"), rows.contiguous()?);
                added.insert(path, Sizes { rank, scaling });
            }
        }
        Ok(())
    }

    fn factor(&self, end: &str) -> Result<Tensor> {
        let stored = self.contents.stored_at(&format!("{}.{end}", self.stem));
        let stored = stored.ok_or_else(|| self.wrong(&format!("has no `{end}`")))?;
        Ok((stored.read)(&Device::Cpu)?)
    }

    fn wrong(&self, reason: &str) -> Error {
        AdapterFileError::Key { key: self.stem.to_owned(), reason: reason.to_owned() }.into()
    }
}

/// A `[rank, in]` and B `[out, rank]` of one expert; of a transposed parameter, whose update is (B·A)ᵀ, those of the transpose.
fn of_expert(
    (a, b): (&Tensor, &Tensor),
    (expert, count, rank): (usize, usize, usize),
    transposed: bool,
) -> CandleResult<(Tensor, Tensor)> {
    let a = a.narrow(0, expert * rank, rank)?.contiguous()?;
    let b = b.reshape((b.dim(0)?, rank, count))?.narrow(2, expert, 1)?.squeeze(2)?.contiguous()?;
    if transposed { Ok((b.t()?.contiguous()?, a.t()?.contiguous()?)) } else { Ok((a, b)) }
}
