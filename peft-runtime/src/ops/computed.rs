//! Values that are there before the op that puts them into the graph.

use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, Result, Shape, WithDType, bail};

/// The output of an op on the CPU, until the op hands it out.
///
/// An op whose values come out of a computation together with those of another op has them from here.
pub(super) struct Computed(Mutex<Option<(CpuStorage, Shape)>>);

impl Computed {
    pub(super) fn new<T: WithDType>(values: Vec<T>, shape: impl Into<Shape>) -> Self {
        Self(Mutex::new(Some((T::to_cpu_storage_owned(values), shape.into()))))
    }

    /// The output, once.
    pub(super) fn take(&self) -> Result<(CpuStorage, Shape)> {
        match self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(output) => Ok(output),
            None => bail!("an op has one forward pass"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Computed;

    #[test]
    fn values_are_handed_out_once() {
        let computed = Computed::new(vec![1f32, 2.0], (1, 2));
        let (storage, shape) = computed.take().unwrap();
        assert_eq!(
            (storage.as_slice::<f32>().unwrap(), shape.dims()),
            ([1.0, 2.0].as_slice(), [1, 2].as_slice())
        );
        assert!(computed.take().is_err());
    }
}
