//! candle layers and bare parameters that cannot carry adapters.

use candle_core::{Tensor, Var};
use candle_nn::{BatchNorm, ConvTranspose1d, ConvTranspose2d, PReLU};

use super::parameters::{map_weight_and_bias, weight_and_bias};
use super::{Dropout, Layer, ParameterMap, python_float};
use crate::error::Result;
use crate::schema::{Family, LayerKind};

impl Layer for Tensor {
    fn kind(&self) -> LayerKind {
        LayerKind::new("Tensor", Family::Other)
    }

    fn describe(&self) -> Option<String> {
        None
    }

    fn parameters(&self) -> Vec<(&'static str, &Tensor)> {
        vec![("", self)]
    }

    fn map_parameters(&mut self, map: &mut ParameterMap<'_>) -> Result<()> {
        *self = map("", self)?;
        Ok(())
    }
}

impl Layer for Var {
    fn kind(&self) -> LayerKind {
        LayerKind::new("Var", Family::Other)
    }

    fn describe(&self) -> Option<String> {
        None
    }

    fn parameters(&self) -> Vec<(&'static str, &Tensor)> {
        vec![("", self.as_tensor())]
    }

    fn map_parameters(&mut self, map: &mut ParameterMap<'_>) -> Result<()> {
        *self = Self::from_tensor(&map("", self)?)?;
        Ok(())
    }
}

impl Layer for Dropout {
    fn kind(&self) -> LayerKind {
        LayerKind::new("Dropout", Family::Other)
    }

    fn describe(&self) -> Option<String> {
        Some(format!("Dropout(p={}, inplace=False)", python_float(self.probability())))
    }

    fn parameters(&self) -> Vec<(&'static str, &Tensor)> {
        Vec::new()
    }

    fn map_parameters(&mut self, _: &mut ParameterMap<'_>) -> Result<()> {
        Ok(())
    }

    fn dropout(&self) -> Option<&Dropout> {
        Some(self)
    }

    fn dropout_mut(&mut self) -> Option<&mut Dropout> {
        Some(self)
    }
}

impl Layer for PReLU {
    fn kind(&self) -> LayerKind {
        LayerKind::new("PReLU", Family::Other)
    }

    fn describe(&self) -> Option<String> {
        Some(format!("PReLU(num_parameters={})", self.weight().elem_count()))
    }

    fn parameters(&self) -> Vec<(&'static str, &Tensor)> {
        vec![("weight", self.weight())]
    }

    fn map_parameters(&mut self, map: &mut ParameterMap<'_>) -> Result<()> {
        *self = Self::new(map("weight", self.weight())?, self.is_scalar());
        Ok(())
    }
}

impl Layer for BatchNorm {
    fn kind(&self) -> LayerKind {
        LayerKind::new("BatchNorm", Family::Other)
    }

    fn describe(&self) -> Option<String> {
        Some(format!(
            "BatchNorm({}, eps={}, momentum={})",
            self.running_mean().elem_count(),
            self.eps(),
            self.momentum()
        ))
    }

    fn parameters(&self) -> Vec<(&'static str, &Tensor)> {
        let mut parameters = Vec::new();
        if let Some((weight, bias)) = self.weight_and_bias() {
            parameters.extend([("weight", weight), ("bias", bias)]);
        }
        parameters.extend([("running_mean", self.running_mean()), ("running_var", self.running_var())]);
        parameters
    }

    fn map_parameters(&mut self, map: &mut ParameterMap<'_>) -> Result<()> {
        let affine = match self.weight_and_bias() {
            Some((weight, bias)) => Some((map("weight", weight)?, map("bias", bias)?)),
            None => None,
        };
        let mean = map("running_mean", self.running_mean())?;
        let var = map("running_var", self.running_var())?;
        let (features, eps, momentum) = (mean.elem_count(), self.eps(), self.momentum());
        *self = match affine {
            Some((weight, bias)) => {
                Self::new_with_momentum(features, mean, var, weight, bias, eps, momentum)?
            }
            None => Self::new_no_bias_with_momentum(features, mean, var, eps, momentum)?,
        };
        Ok(())
    }
}

macro_rules! impl_conv_transpose {
    ($type:ident) => {
        impl Layer for $type {
            fn kind(&self) -> LayerKind {
                LayerKind::new(stringify!($type), Family::Convolution)
            }

            fn describe(&self) -> Option<String> {
                Some(format!(concat!(stringify!($type), "({:?}, {:?})"), self.weight().dims(), self.config()))
            }

            fn parameters(&self) -> Vec<(&'static str, &Tensor)> {
                weight_and_bias(self.weight(), self.bias())
            }

            fn map_parameters(&mut self, map: &mut ParameterMap<'_>) -> Result<()> {
                let (weight, bias) = map_weight_and_bias(self.weight(), self.bias(), map)?;
                *self = Self::new(weight, bias, *self.config());
                Ok(())
            }
        }
    };
}

impl_conv_transpose!(ConvTranspose1d);
impl_conv_transpose!(ConvTranspose2d);
