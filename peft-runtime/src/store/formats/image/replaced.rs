//! Values that files add to biases and norms: PEFT has no update for them, so that an adapter holds the sums.

use std::collections::BTreeMap;

use candle_core::{DType, Result as CandleResult, Tensor};

use super::place::Place;
use super::update::{at, wrong};
use crate::error::Result;
use crate::store::formats::Base;

/// Parameters of the base model that an adapter brings, by module and by the parameter's name.
#[derive(Default)]
pub(super) struct Replaced {
    values: BTreeMap<(String, &'static str), Tensor>,
}

impl Replaced {
    /// Adds `diff` to a parameter of the modules at `place`.
    pub(super) fn add(
        &mut self,
        place: &Place,
        parameter: &'static str,
        key: &str,
        diff: &Tensor,
        base: Option<&Base>,
    ) -> Result<()> {
        let Some(base) = base else {
            return Err(wrong(key, "is added to a parameter of the base model, which has to be given"));
        };
        for piece in &place.pieces {
            let name = format!("{}.{parameter}", piece.module);
            if !base.shapes.contains_key(&name) {
                return Err(wrong(key, format!("is added to `{name}`, which the base model does not have")));
            }
            let own = base.tensor(&name)?;
            let diff = diff.flatten_all().and_then(|diff| piece.take(&diff, 0));
            let diff = diff.map_err(at(&piece.module))?;
            let rows = piece.rows.clone().unwrap_or(0..own.elem_count());
            if own.rank() != 1 || diff.elem_count() != rows.len() {
                let shapes = format!("{:?}, and `{name}` {:?}", diff.dims(), own.dims());
                return Err(wrong(key, format!("has for its module the shape {shapes}")));
            }
            let place = (piece.module.clone(), parameter);
            let before = self.values.get(&place).cloned();
            if before.is_some() && piece.rows.is_none() {
                return Err(wrong(key, format!("is added to `{name}`, as another tensor of the file is")));
            }
            let end = own.elem_count() - rows.end;
            let sum = || -> CandleResult<Tensor> {
                // What a half-precision model has loses nothing, and merging rounds once.
                let wide = if own.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
                let diff = diff.to_dtype(wide)?.pad_with_zeros(0, rows.start, end)?;
                before.unwrap_or(own.to_dtype(wide)?) + diff
            };
            self.values.insert(place, sum().map_err(at(&piece.module))?);
        }
        Ok(())
    }

    /// The parameters under PEFT's keys, where modules with adapters have theirs one level deeper.
    pub(super) fn tensors(self, has_adapter: impl Fn(&str) -> bool) -> BTreeMap<String, Tensor> {
        let key = |module: String, parameter: &str| match has_adapter(&module) {
            true => format!("{module}.base_layer.{parameter}"),
            false => format!("{module}.{parameter}"),
        };
        self.values.into_iter().map(|((module, parameter), value)| (key(module, parameter), value)).collect()
    }
}
