//! Where a walk ends: layers that carry adapters, plain layers of candle, parameters, settings.

use std::marker::PhantomData;
use std::sync::Arc;

use candle_core::quantized::QTensor;
use candle_core::{DType, Device, Shape, Tensor, Var};
use candle_nn::{
    Activation, BatchNorm, Conv1d, Conv2d, ConvTranspose1d, ConvTranspose2d, Embedding, LayerNorm, Linear,
    PReLU, RmsNorm,
};

use super::{Cursor, CursorMut, Injectable, Leaf, LeafMut};
use crate::error::Result;
use crate::layer::{
    Adapted, AnyLinear, BaseLayer, Dropout, PaddedEmbedding, ParameterMap, QuantizedLinear, TransposedLinear,
    Weight, python_float,
};
use crate::schema::{Family, LayerKind, Schema};

/// A layer or parameter that cannot carry adapters: it is shown, saved with the base model, and frozen.
pub trait PlainLayer: Sync {
    /// The name of its type.
    fn type_name(&self) -> &'static str;

    /// The computation it does.
    fn family(&self) -> Family {
        Family::Other
    }

    /// Whether the layer could be declared as `Adapted`.
    fn can_be_adapted(&self) -> bool {
        false
    }

    /// The layer as PyTorch prints it; `None` for a bare parameter, which PyTorch does not print.
    fn describe(&self) -> Option<String>;

    /// Its parameters by name; a bare parameter has an empty name.
    fn parameters(&self) -> Vec<(&'static str, &Tensor)>;

    /// The weight, if it is quantized and for that reason none of the parameters.
    fn quantized_weight(&self) -> Option<&Arc<QTensor>> {
        None
    }

    /// Gives its parameters new values.
    ///
    /// # Errors
    /// If `map` fails; the layer is then as it was.
    fn map_parameters(&mut self, map: &mut ParameterMap<'_>) -> Result<()>;

    /// The layer as dropout, if that is what it is.
    fn as_dropout(&self) -> Option<&Dropout> {
        None
    }

    /// The layer as dropout, for changing it, if that is what it is.
    fn as_dropout_mut(&mut self) -> Option<&mut Dropout> {
        None
    }
}

impl<L: BaseLayer> Injectable for Adapted<L> {
    const SCHEMA: &'static Schema = &Schema::adaptable(L::KIND);

    fn visit<'a>(&'a self, cursor: &mut Cursor<'a>) {
        cursor.leaf(Leaf::Adapted(self));
    }

    fn visit_mut<'a>(&'a mut self, cursor: &mut CursorMut<'a>) {
        cursor.leaf(LeafMut::Adapted(self));
    }
}

impl<L: BaseLayer> PlainLayer for L {
    fn type_name(&self) -> &'static str {
        L::KIND.name
    }

    fn family(&self) -> Family {
        L::KIND.family
    }

    fn can_be_adapted(&self) -> bool {
        true
    }

    fn describe(&self) -> Option<String> {
        Some(BaseLayer::describe(self))
    }

    fn parameters(&self) -> Vec<(&'static str, &Tensor)> {
        BaseLayer::parameters(self)
    }

    fn quantized_weight(&self) -> Option<&Arc<QTensor>> {
        BaseLayer::quantized_weight(self)
    }

    fn map_parameters(&mut self, map: &mut ParameterMap<'_>) -> Result<()> {
        *self = BaseLayer::map_parameters(self, map)?;
        Ok(())
    }
}

macro_rules! impl_plain {
    ($schema:expr => $($type:ty),+ $(,)?) => {$(
        impl Injectable for $type {
            const SCHEMA: &'static Schema = $schema;

            fn visit<'a>(&'a self, cursor: &mut Cursor<'a>) {
                cursor.leaf(Leaf::Plain(self));
            }

            fn visit_mut<'a>(&'a mut self, cursor: &mut CursorMut<'a>) {
                cursor.leaf(LeafMut::Plain(self));
            }
        }
    )+};
}

impl_plain!(&Schema::plain(<Self as BaseLayer>::KIND) =>
    Linear, TransposedLinear, QuantizedLinear, AnyLinear, Embedding, PaddedEmbedding, Conv1d, Conv2d, LayerNorm,
    RmsNorm, Weight);
impl_plain!(&Schema::plain(LayerKind::new("BatchNorm", Family::Other)) => BatchNorm);
impl_plain!(&Schema::plain(LayerKind::new("PReLU", Family::Other)) => PReLU);
impl_plain!(&Schema::plain(LayerKind::new("ConvTranspose1d", Family::Convolution)) => ConvTranspose1d);
impl_plain!(&Schema::plain(LayerKind::new("ConvTranspose2d", Family::Convolution)) => ConvTranspose2d);
impl_plain!(&Schema::plain(LayerKind::new("Dropout", Family::Other)) => Dropout);
impl_plain!(&Schema::parameter() => Tensor, Var);

impl PlainLayer for Tensor {
    fn type_name(&self) -> &'static str {
        "Tensor"
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

impl PlainLayer for Var {
    fn type_name(&self) -> &'static str {
        "Var"
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

impl PlainLayer for Dropout {
    fn type_name(&self) -> &'static str {
        "Dropout"
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

    fn as_dropout(&self) -> Option<&Dropout> {
        Some(self)
    }

    fn as_dropout_mut(&mut self) -> Option<&mut Dropout> {
        Some(self)
    }
}

impl PlainLayer for PReLU {
    fn type_name(&self) -> &'static str {
        "PReLU"
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

impl PlainLayer for BatchNorm {
    fn type_name(&self) -> &'static str {
        "BatchNorm"
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
        impl PlainLayer for $type {
            fn type_name(&self) -> &'static str {
                stringify!($type)
            }

            fn family(&self) -> Family {
                Family::Convolution
            }

            fn describe(&self) -> Option<String> {
                Some(format!(concat!(stringify!($type), "({:?}, {:?})"), self.weight().dims(), self.config()))
            }

            fn parameters(&self) -> Vec<(&'static str, &Tensor)> {
                let mut parameters = vec![("weight", self.weight())];
                parameters.extend(self.bias().map(|bias| ("bias", bias)));
                parameters
            }

            fn map_parameters(&mut self, map: &mut ParameterMap<'_>) -> Result<()> {
                let weight = map("weight", self.weight())?;
                let bias = self.bias().map(|bias| map("bias", bias)).transpose()?;
                *self = Self::new(weight, bias, *self.config());
                Ok(())
            }
        }
    };
}

impl_conv_transpose!(ConvTranspose1d);
impl_conv_transpose!(ConvTranspose2d);

macro_rules! impl_settings {
    ($($type:ty),+ $(,)?) => {$(
        impl Injectable for $type {
            const SCHEMA: &'static Schema = &Schema::settings(stringify!($type));

            fn visit<'a>(&'a self, _: &mut Cursor<'a>) {}

            fn visit_mut<'a>(&'a mut self, _: &mut CursorMut<'a>) {}
        }
    )+};
}

impl_settings!(
    (),
    bool,
    char,
    u8,
    u16,
    u32,
    u64,
    u128,
    usize,
    i8,
    i16,
    i32,
    i64,
    i128,
    isize,
    f32,
    f64,
    String,
    Device,
    DType,
    Shape,
    Activation,
    candle_nn::Dropout,
);

impl Injectable for &str {
    const SCHEMA: &'static Schema = &Schema::settings("str");

    fn visit<'a>(&'a self, _: &mut Cursor<'a>) {}

    fn visit_mut<'a>(&'a mut self, _: &mut CursorMut<'a>) {}
}

impl<T: ?Sized> Injectable for PhantomData<T> {
    const SCHEMA: &'static Schema = &Schema::settings("PhantomData");

    fn visit<'a>(&'a self, _: &mut Cursor<'a>) {}

    fn visit_mut<'a>(&'a mut self, _: &mut CursorMut<'a>) {}
}
