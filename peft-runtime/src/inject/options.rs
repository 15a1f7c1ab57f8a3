//! How a fresh adapter is put on a model.

/// How to inject a fresh adapter.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::Linear;
/// use peft_runtime::prelude::*;
///
/// #[derive(Injectable)]
/// struct Model {
///     linear: Adapted<Linear>,
/// }
///
/// let weight = Tensor::ones((3, 2), DType::BF16, &Device::Cpu)?;
/// let mut model = Model { linear: Linear::new(weight, None).into() };
/// let config = LoraConfig::new(2, 4.0).with_targets(targets!(Model; "linear"));
/// model.inject_adapter(&config, "wide")?;
/// model.inject_adapter_with(&config, "narrow", InjectOptions::new().autocast_adapter_dtype(false))?;
/// let dtype = |name: &str| model.adapter_state_dict(name).map(|state| state.into_values().next().unwrap().dtype());
/// assert_eq!((dtype("wide")?, dtype("narrow")?), (DType::F32, DType::BF16));
/// # Ok::<(), peft_runtime::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InjectOptions {
    autocasts: bool,
}

impl Default for InjectOptions {
    fn default() -> Self {
        Self { autocasts: true }
    }
}

impl InjectOptions {
    /// As [`inject_adapter`](crate::PeftModel::inject_adapter) does it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether the adapter is held in f32 on a base model in bf16 or f16, which is the default: it trains better. PEFT's
    /// argument of that name.
    #[must_use]
    pub fn autocast_adapter_dtype(mut self, autocast: bool) -> Self {
        self.autocasts = autocast;
        self
    }

    pub(crate) fn autocasts(self) -> bool {
        self.autocasts
    }
}
