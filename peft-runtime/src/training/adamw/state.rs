//! AdamW's moments and step counts as tensors, by the names of the variables.

use std::collections::BTreeMap;
use std::ops::Range;

use candle_core::{DType, Device, Tensor, Var, WithDType};

use super::{AdamW, Flat, Parameter, Place};
use crate::error::{Error, Result, ShapeMismatch, TensorReport, TrainingError};

/// PyTorch's names.
const FIRST: &str = "exp_avg";
const SECOND: &str = "exp_avg_sq";
const STEP: &str = "step";

/// The moments of one variable as they will lie in memory.
enum Values {
    Narrow(Vec<f32>, Vec<f32>),
    Wide(Vec<f64>, Vec<f64>),
    Device(Tensor, Tensor),
}

fn key(what: &str, parameter: &Parameter) -> String {
    format!("{what}.{}", parameter.name)
}

impl<S: WithDType> Flat<S> {
    /// The moments of one variable, in its shape.
    fn copied(&self, range: &Range<usize>, var: &Var) -> candle_core::Result<(Tensor, Tensor)> {
        let copied = |values: &[S]| Tensor::from_slice(values, var.shape(), &Device::Cpu);
        Ok((copied(&self.first[range.clone()])?, copied(&self.second[range.clone()])?))
    }
}

fn to_vec<T: WithDType>(tensor: &Tensor) -> candle_core::Result<Vec<T>> {
    tensor.to_device(&Device::Cpu)?.to_dtype(T::DTYPE)?.flatten_all()?.to_vec1()
}

impl AdamW {
    pub(super) fn saved(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut state = BTreeMap::new();
        for parameter in &self.parameters {
            let var = &parameter.var;
            let (first, second) = match &parameter.place {
                Place::Narrow(range) => self.narrow.copied(range, var)?,
                Place::Wide(range) => self.wide.copied(range, var)?,
                Place::Device(first, second) => (first.clone(), second.clone()),
            };
            state.insert(key(FIRST, parameter), first);
            state.insert(key(SECOND, parameter), second);
            state.insert(key(STEP, parameter), Tensor::new(parameter.steps as i64, &Device::Cpu)?);
        }
        Ok(state)
    }

    pub(super) fn restore(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        let mut left: BTreeMap<&str, &Tensor> =
            state.iter().map(|(key, tensor)| (key.as_str(), tensor)).collect();
        let mut report = TensorReport::default();
        let mut loaded = Vec::with_capacity(self.parameters.len());
        for parameter in &self.parameters {
            let dims = parameter.var.dims();
            let mut take = |what: &str, expected: &[usize]| {
                let key = key(what, parameter);
                let Some(tensor) = left.remove(key.as_str()) else {
                    report.missing.push(key);
                    return None;
                };
                if tensor.dims() == expected {
                    return Some(tensor);
                }
                let (expected, found) = (expected.to_vec(), tensor.dims().to_vec());
                report.mismatched.push(ShapeMismatch { key, expected, found });
                None
            };
            let taken = (take(FIRST, dims), take(SECOND, dims), take(STEP, &[]));
            if let (Some(first), Some(second), Some(steps)) = taken {
                loaded.push((
                    values(parameter, first, second)?,
                    steps.to_dtype(DType::I64)?.to_scalar::<i64>()?,
                ));
            }
        }
        report.unexpected.extend(left.keys().map(|key| (*key).to_owned()));
        if !report.is_empty() {
            return Err(Error::Training(TrainingError::Tensors {
                what: "the optimiser's state",
                report: Box::new(report),
            }));
        }
        for (place, (values, steps)) in loaded.into_iter().enumerate() {
            self.replace(place, values, steps);
        }
        Ok(())
    }

    fn replace(&mut self, place: usize, values: Values, steps: i64) {
        let Some(parameter) = self.parameters.get_mut(place) else { return };
        parameter.steps = u64::try_from(steps).unwrap_or_default();
        match (&mut parameter.place, values) {
            (Place::Narrow(range), Values::Narrow(first, second)) => {
                self.narrow.first[range.clone()].copy_from_slice(&first);
                self.narrow.second[range.clone()].copy_from_slice(&second);
            }
            (Place::Wide(range), Values::Wide(first, second)) => {
                self.wide.first[range.clone()].copy_from_slice(&first);
                self.wide.second[range.clone()].copy_from_slice(&second);
            }
            (place, Values::Device(first, second)) => *place = Place::Device(first, second),
            // `values` makes the variant that matches the place.
            (_, Values::Narrow(..) | Values::Wide(..)) => {}
        }
    }
}

/// The moments in the form that the variable's place holds.
fn values(parameter: &Parameter, first: &Tensor, second: &Tensor) -> Result<Values> {
    Ok(match &parameter.place {
        Place::Narrow(_) => Values::Narrow(to_vec(first)?, to_vec(second)?),
        Place::Wide(_) => Values::Wide(to_vec(first)?, to_vec(second)?),
        Place::Device(present, _) => {
            let moved = |tensor: &Tensor| tensor.to_dtype(present.dtype())?.to_device(present.device());
            Values::Device(moved(first)?, moved(second)?)
        }
    })
}
