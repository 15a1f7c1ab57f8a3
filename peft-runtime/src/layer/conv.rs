//! candle's `Conv1d` and `Conv2d`.

use candle_core::Tensor;
use candle_nn::{Conv1d, Conv2d};

use super::parameters::{map_weight_and_bias, weight_and_bias};
use super::{BaseLayer, ParameterMap, python_tuple};
use crate::adapter::{ConvSettings, Geometry};
use crate::error::Result;
use crate::ops::conv::{conv, half_conv_with_bias};
use crate::ops::{add_promoted, is_half_on_cpu, widened};
use crate::schema::{Family, LayerKind};

fn geometry(weight: &Tensor, settings: ConvSettings) -> Geometry {
    match weight.dims() {
        [out_channels, group_channels, kernel @ ..] => Geometry::Conv {
            in_channels: group_channels * settings.groups,
            out_channels: *out_channels,
            kernel: kernel.to_vec(),
            settings,
        },
        _ => Geometry::Opaque,
    }
}

fn forward(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    settings: ConvSettings,
) -> candle_core::Result<Tensor> {
    if let Some(bias) = bias
        && let Some(y) = half_conv_with_bias(x, weight, bias, settings)?
    {
        return Ok(y);
    }
    if x.dtype() != weight.dtype() || (bias.is_some() && is_half_on_cpu(x)) {
        // Sum and bias are rounded together.
        let wide = widened(x)?;
        let bias = bias.map(|bias| bias.to_dtype(wide.dtype())).transpose()?;
        let weight = weight.to_dtype(wide.dtype())?;
        return forward(&wide, &weight, bias.as_ref(), settings)?.to_dtype(x.dtype());
    }
    let y = conv(x, weight, settings)?;
    match bias {
        Some(bias) => {
            add_promoted(&y, &geometry(weight, settings).over_output(bias)?.broadcast_as(y.shape())?)
        }
        None => Ok(y),
    }
}

/// The layer as PyTorch prints it, without the settings that have their default values.
fn describe(weight: &Tensor, has_bias: bool, settings: ConvSettings) -> String {
    let Geometry::Conv { in_channels, out_channels, kernel, .. } = geometry(weight, settings) else {
        return format!("Conv({:?})", weight.dims());
    };
    let each = |value: usize| python_tuple(&vec![value; kernel.len()]);
    let mut text = format!(
        "Conv{}d({in_channels}, {out_channels}, kernel_size={}, stride={}",
        kernel.len(),
        python_tuple(&kernel),
        each(settings.stride)
    );
    if settings.padding != 0 {
        text.push_str(&format!(", padding={}", each(settings.padding)));
    }
    if settings.dilation != 1 {
        text.push_str(&format!(", dilation={}", each(settings.dilation)));
    }
    if settings.groups != 1 {
        text.push_str(&format!(", groups={}", settings.groups));
    }
    if !has_bias {
        text.push_str(", bias=False");
    }
    text.push(')');
    text
}

/// The two layers differ only in the type of their config.
macro_rules! impl_base_layer {
    ($layer:ident) => {
        impl BaseLayer for $layer {
            const KIND: LayerKind = LayerKind::new(stringify!($layer), Family::Convolution);

            fn geometry(&self) -> Geometry {
                geometry(self.weight(), settings_of!(self))
            }

            fn parameters(&self) -> Vec<(&'static str, &Tensor)> {
                weight_and_bias(self.weight(), self.bias())
            }

            fn map_parameters(&self, map: &mut ParameterMap<'_>) -> Result<Self> {
                let (weight, bias) = map_weight_and_bias(self.weight(), self.bias(), map)?;
                Ok(Self::new(weight, bias, *self.config()))
            }

            fn forward_base(&self, x: &Tensor) -> candle_core::Result<Tensor> {
                forward(x, self.weight(), self.bias(), settings_of!(self))
            }

            fn describe(&self) -> String {
                describe(self.weight(), self.bias().is_some(), settings_of!(self))
            }
        }
    };
}

macro_rules! settings_of {
    ($layer:expr) => {{
        let config = $layer.config();
        ConvSettings {
            padding: config.padding,
            stride: config.stride,
            dilation: config.dilation,
            groups: config.groups,
        }
    }};
}

impl_base_layer!(Conv1d);
impl_base_layer!(Conv2d);
