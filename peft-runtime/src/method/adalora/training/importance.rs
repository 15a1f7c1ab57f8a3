//! How important each rank of a layer is: the running means of its tensors' sensitivity.

use std::sync::Arc;

use candle_core::{DType, Result as CandleResult, Tensor, Var};

use crate::adapter::Adapter;
use crate::method::AdaLora;
use crate::ops::{widened, widened_value};
use crate::path::ModulePath;

/// A layer of the adapter, and what is known of its tensors.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) path: ModulePath,
    pub(super) adapter: Arc<dyn Adapter>,
    /// Of E, A and B.
    pub(super) importance: [Importance; 3],
}

/// The running means of one tensor's sensitivity |p·∂p| and of how much it varies.
#[derive(Clone, Debug, Default)]
pub(super) struct Importance {
    pub(super) means: Option<Means>,
}

/// The means after at least one step.
#[derive(Clone, Debug)]
pub(super) struct Means {
    pub(super) sensitivity: Tensor,
    pub(super) uncertainty: Tensor,
}

impl Layer {
    pub(super) fn state(&self) -> Option<&AdaLora> {
        self.adapter.downcast_ref()
    }

    /// E, A and B where any rank is left.
    pub(super) fn tensors(&self) -> impl Iterator<Item = (&'static str, &Var)> {
        let state = self.state().filter(|state| state.e().elem_count() > 0);
        state
            .into_iter()
            .flat_map(|state| [("lora_E", state.e()), ("lora_A", state.a()), ("lora_B", state.b())])
    }

    /// The importance of each rank: that of its singular value plus the means of those of its two vectors.
    pub(super) fn scores(&self) -> CandleResult<Vec<f64>> {
        let Some(state) = self.state().filter(|state| state.e().elem_count() > 0) else {
            return Ok(Vec::new());
        };
        let [e, a, b] = &self.importance;
        let (e, a, b) = (e.scores(state.e())?, a.scores(state.a())?, b.scores(state.b())?);
        ((e.flatten_all()? + a.mean(1)?)? + b.mean(0)?)?.to_dtype(DType::F64)?.to_vec1()
    }
}

impl Importance {
    pub(super) fn update(
        &mut self,
        var: &Var,
        grad: &Tensor,
        (beta1, beta2): (f64, f64),
    ) -> CandleResult<()> {
        let now = (widened_value(var)? * widened(&grad.detach())?)?.abs()?;
        let before = match self.means.take() {
            Some(means) => means,
            None => Means { sensitivity: now.zeros_like()?, uncertainty: now.zeros_like()? },
        };
        let sensitivity = ((before.sensitivity * beta1)? + (&now * (1.0 - beta1))?)?;
        let deviation = (now - &sensitivity)?.abs()?;
        let uncertainty = ((before.uncertainty * beta2)? + (deviation * (1.0 - beta2))?)?;
        self.means = Some(Means { sensitivity, uncertainty });
        Ok(())
    }

    fn scores(&self, var: &Var) -> CandleResult<Tensor> {
        match &self.means {
            Some(means) => &means.sensitivity * &means.uncertainty,
            None => widened_value(var)?.zeros_like(),
        }
    }
}
