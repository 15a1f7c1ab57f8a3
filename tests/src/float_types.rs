//! The float types that layers may have, each with the tolerance between two ways of computing one result.

use candle_core::{DType, Tensor};

use crate::close::Tolerance;

/// A float type.
#[derive(Clone, Copy, Debug)]
pub struct FloatType {
    /// Which it is.
    pub dtype: DType,
    /// How far apart two ways of computing an output of a [`Specimen`](crate::specimen::Specimen) may be; outputs are around
    /// 10.
    pub specimen: Tolerance,
    /// How far a result may be from the one in double precision, as a share of its largest element.
    pub rounding: f64,
}

/// All of them.
pub const FLOAT_TYPES: [FloatType; 4] = [
    FloatType { dtype: DType::F32, specimen: Tolerance::absolute(1e-4), rounding: 2e-5 },
    // The factors of specimens are drawn in f32.
    FloatType { dtype: DType::F64, specimen: Tolerance::absolute(1e-6), rounding: 1e-10 },
    // Weights, outputs and sums are rounded to 8 bits each, a few times over.
    FloatType { dtype: DType::BF16, specimen: Tolerance::absolute(0.3), rounding: 0.05 },
    // To 11 bits.
    FloatType { dtype: DType::F16, specimen: Tolerance::absolute(0.04), rounding: 0.05 / 8.0 },
];

/// A float type of the base model, and how adapters are held on it.
#[derive(Clone, Copy, Debug)]
pub struct Holding {
    /// The type of the base model.
    pub float: FloatType,
    /// Whether adapters on half precision are held in f32.
    pub autocasts: bool,
}

impl Holding {
    /// The row of a type, with adapters held as they are by default.
    ///
    /// # Panics
    /// If the type is not in the table.
    pub fn of(dtype: DType) -> Self {
        Self { float: FloatType::of(dtype), autocasts: true }
    }

    /// The type of the base model.
    pub fn dtype(self) -> DType {
        self.float.dtype
    }

    /// The type of adapters.
    pub fn adapter_dtype(self) -> DType {
        match self.dtype() {
            half @ (DType::BF16 | DType::F16) if !self.autocasts => half,
            DType::F64 => DType::F64,
            _ => DType::F32,
        }
    }
}

/// Every float type, half precision with adapters in f32 and in half.
pub fn every_holding() -> impl Iterator<Item = Holding> {
    let kept = FLOAT_TYPES.into_iter().filter(|float| float.unit_roundoff() > 1e-6);
    let both = FLOAT_TYPES.into_iter().map(|float| (float, true)).chain(kept.map(|float| (float, false)));
    both.map(|(float, autocasts)| Holding { float, autocasts })
}

impl FloatType {
    /// The largest relative error of rounding to this type.
    pub fn unit_roundoff(self) -> f64 {
        match self.dtype {
            DType::BF16 => 2f64.powi(-8),
            DType::F16 => 2f64.powi(-11),
            DType::F32 => 2f64.powi(-24),
            _ => 2f64.powi(-53),
        }
    }

    /// The row of a type.
    ///
    /// # Panics
    /// If the type is not in the table.
    pub fn of(dtype: DType) -> Self {
        let row = FLOAT_TYPES.into_iter().find(|row| row.dtype == dtype);
        row.unwrap_or_else(|| panic!("{dtype:?} has no row"))
    }

    /// How far a result may be from this one in double precision; if this is below 1, errors are not relative to its size.
    pub fn rounding_of(self, expected: &Tensor) -> Tolerance {
        let Tolerance { atol, .. } = Tolerance::of_largest(self.rounding, expected);
        Tolerance::absolute(atol.max(self.rounding))
    }
}
