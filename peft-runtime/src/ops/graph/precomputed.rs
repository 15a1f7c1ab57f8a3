//! Values that are computed before the op that puts them into the graph.

use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, Result, Shape, WithDType, bail};

/// The output of an op on the CPU, until the op hands it out.
///
/// An op takes its values from here if they were computed together with those of another op.
pub(crate) struct Precomputed(Mutex<Option<(CpuStorage, Shape)>>);

impl Precomputed {
    pub(crate) fn new<T: WithDType>(values: Vec<T>, shape: impl Into<Shape>) -> Self {
        Self(Mutex::new(Some((T::to_cpu_storage_owned(values), shape.into()))))
    }

    /// The output, once.
    pub(crate) fn take(&self) -> Result<(CpuStorage, Shape)> {
        match self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(output) => Ok(output),
            None => bail!("an op has one forward pass"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Precomputed;

    #[test]
    fn values_are_handed_out_once() {
        let precomputed = Precomputed::new(vec![1f32, 2.0], (1, 2));
        let (storage, shape) = precomputed.take().unwrap();
        assert_eq!(
            (storage.as_slice::<f32>().unwrap(), shape.dims()),
            ([1.0, 2.0].as_slice(), [1, 2].as_slice())
        );
        assert!(precomputed.take().is_err());
    }
}
