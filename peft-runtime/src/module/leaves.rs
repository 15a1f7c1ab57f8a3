//! Where a walk ends: layers that carry adapters, plain layers of candle, parameters, settings.

use std::marker::PhantomData;

use candle_core::{DType, Device, Shape, Tensor, Var};
use candle_nn::{
    Activation, BatchNorm, Conv1d, Conv2d, ConvTranspose1d, ConvTranspose2d, Embedding, LayerNorm, Linear,
    PReLU, RmsNorm,
};

use super::{Cursor, CursorMut, Injectable};
use crate::layer::{
    Adapted, AnyLinear, BaseLayer, Dropout, PaddedEmbedding, QuantizedLinear, TransposedLinear, Weight,
};
use crate::schema::{Family, LayerKind, Schema};

impl<L: BaseLayer> Injectable for Adapted<L> {
    const SCHEMA: &'static Schema = &Schema::adaptable(L::KIND);

    fn visit<'a>(&'a self, cursor: &mut Cursor<'a>) {
        cursor.leaf(self);
    }

    fn visit_mut<'a>(&'a mut self, cursor: &mut CursorMut<'a>) {
        cursor.leaf(self);
    }
}

macro_rules! impl_plain {
    ($schema:expr => $($type:ty),+ $(,)?) => {$(
        impl Injectable for $type {
            const SCHEMA: &'static Schema = $schema;

            fn visit<'a>(&'a self, cursor: &mut Cursor<'a>) {
                cursor.leaf(self);
            }

            fn visit_mut<'a>(&'a mut self, cursor: &mut CursorMut<'a>) {
                cursor.leaf(self);
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
