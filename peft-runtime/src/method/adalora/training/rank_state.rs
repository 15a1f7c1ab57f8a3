//! The state of a rank allocator, as tensors.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};

use super::importance::{Importance, Layer, Means};
use super::rank_allocator::RankAllocator;
use crate::error::{Error, Result, ShapeMismatch, TensorReport, TrainingError};
use crate::method::AdaLora;

const BUDGET: &str = "budget";
const THRESHOLD: &str = "threshold";

/// The tensors that have an importance, in the order in which an allocator holds them.
const TENSORS: [&str; 3] = ["lora_E", "lora_A", "lora_B"];

/// What a checkpoint stores about an allocator.
pub(super) struct RankState {
    budget: usize,
    threshold: Option<f64>,
    /// For each layer: the importances, and which ranks are kept.
    layers: Vec<([Importance; 3], Option<Vec<bool>>)>,
}

fn key(what: &str, layer: &Layer, tensor: &str) -> String {
    format!("{what}.{}", layer.path.parameter(tensor))
}

/// The shape of one tensor of a layer, which is also the shape of its means.
fn shape<'l>(layer: &'l Layer, name: &str) -> &'l [usize] {
    let of_state = |state: &'l AdaLora| match name {
        "lora_E" => state.e().dims(),
        "lora_A" => state.a().dims(),
        _ => state.b().dims(),
    };
    layer.state().map(of_state).unwrap_or_default()
}

/// Reports a tensor that does not have the expected shape.
fn check_shape(key: String, found: &Tensor, expected: &[usize], report: &mut TensorReport) {
    if found.dims() != expected {
        let (expected, found) = (expected.to_vec(), found.dims().to_vec());
        report.mismatched.push(ShapeMismatch { key, expected, found });
    }
}

/// The means of one tensor of a layer; either both or neither.
fn read_means(
    layer: &Layer,
    name: &str,
    left: &mut BTreeMap<&str, &Tensor>,
    report: &mut TensorReport,
) -> candle_core::Result<Option<Means>> {
    let keys = ["sensitivity", "uncertainty"].map(|what| key(what, layer, name));
    let found = keys.each_ref().map(|key| left.remove(key.as_str()));
    if let [Some(sensitivity), Some(uncertainty)] = found {
        let device = layer.state().map_or(&Device::Cpu, |state| state.e().device());
        for (key, found) in keys.into_iter().zip([sensitivity, uncertainty]) {
            check_shape(key, found, shape(layer, name), report);
        }
        let (sensitivity, uncertainty) = (sensitivity.to_device(device)?, uncertainty.to_device(device)?);
        return Ok(Some(Means { sensitivity, uncertainty }));
    }
    if found.iter().any(Option::is_some) {
        let lacking = keys.into_iter().zip(found).filter(|(_, found)| found.is_none());
        report.missing.extend(lacking.map(|(key, _)| key));
    }
    Ok(None)
}

/// Which ranks of a layer are kept. An adapter from a file may hold only the kept ones and still know how many there
/// were.
fn read_kept(
    layer: &Layer,
    left: &mut BTreeMap<&str, &Tensor>,
    report: &mut TensorReport,
) -> candle_core::Result<Option<Vec<bool>>> {
    let key = key("kept", layer, "ranks");
    let Some(kept) = left.remove(key.as_str()) else { return Ok(None) };
    let known = layer.state().and_then(AdaLora::kept_ranks).map(|known| known.len());
    if known.is_none_or(|known| kept.dims() != [known]) {
        let rows = shape(layer, "lora_E").get(..1).unwrap_or_default();
        check_shape(key, kept, rows, report);
    }
    if kept.rank() != 1 {
        return Ok(None);
    }
    Ok(Some(kept.to_vec1::<u8>()?.into_iter().map(|keep| keep != 0).collect()))
}

impl RankAllocator {
    /// The state as a checkpoint stores it.
    pub(super) fn write_state(&self) -> Result<BTreeMap<String, Tensor>> {
        let cpu = &Device::Cpu;
        let mut state = BTreeMap::from([(BUDGET.to_owned(), Tensor::new(self.budget as i64, cpu)?)]);
        if let Some(threshold) = self.threshold {
            state.insert(THRESHOLD.to_owned(), Tensor::new(threshold, cpu)?);
        }
        for layer in &self.layers {
            for (name, importance) in TENSORS.iter().zip(&layer.importance) {
                if let Some(Means { sensitivity, uncertainty }) = &importance.means {
                    state.insert(key("sensitivity", layer, name), sensitivity.clone());
                    state.insert(key("uncertainty", layer, name), uncertainty.clone());
                }
            }
            if let Some(kept) = layer.state().and_then(AdaLora::kept_ranks) {
                let kept: Vec<u8> = kept.into_iter().map(u8::from).collect();
                let count = kept.len();
                state.insert(key("kept", layer, "ranks"), Tensor::from_vec(kept, count, cpu)?);
            }
        }
        Ok(state)
    }

    /// Reads what [`write_state`](Self::write_state) returned; nothing is changed.
    pub(super) fn read_state(&self, state: &BTreeMap<String, Tensor>) -> Result<RankState> {
        let mut left: BTreeMap<&str, &Tensor> =
            state.iter().map(|(key, tensor)| (key.as_str(), tensor)).collect();
        let mut report = TensorReport::default();
        let budget = match left.remove(BUDGET) {
            Some(budget) => budget.to_dtype(DType::I64)?.to_scalar::<i64>()?,
            None => {
                report.missing.push(BUDGET.to_owned());
                0
            }
        };
        let threshold = left.remove(THRESHOLD).map(|threshold| threshold.to_dtype(DType::F64)?.to_scalar());
        let threshold = threshold.transpose()?;
        let mut layers = Vec::with_capacity(self.layers.len());
        for layer in &self.layers {
            let mut importances: [Importance; 3] = Default::default();
            for (name, importance) in TENSORS.iter().zip(&mut importances) {
                importance.means = read_means(layer, name, &mut left, &mut report)?;
            }
            layers.push((importances, read_kept(layer, &mut left, &mut report)?));
        }
        report.unexpected.extend(left.keys().map(|key| (*key).to_owned()));
        if !report.is_empty() {
            return Err(Error::Training(TrainingError::Tensors {
                what: "the rank allocator",
                report: Box::new(report),
            }));
        }
        Ok(RankState { budget: usize::try_from(budget).unwrap_or_default(), threshold, layers })
    }

    /// Applies what was read.
    pub(super) fn restore(&mut self, state: RankState) {
        self.budget = state.budget;
        self.threshold = state.threshold;
        for (layer, (importance, kept)) in self.layers.iter_mut().zip(state.layers) {
            layer.importance = importance;
            if let (Some(adapter), Some(kept)) = (layer.state(), kept) {
                adapter.keep_ranks(kept);
            }
        }
    }
}
