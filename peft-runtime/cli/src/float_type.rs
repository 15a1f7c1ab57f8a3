//! Types of floats, and adapters that are rounded to one.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use peft_runtime::StoredAdapter;

use crate::failure::Failure;

/// The types that an adapter can be written in.
const TYPES: [(&str, DType); 3] = [("bf16", DType::BF16), ("f16", DType::F16), ("f32", DType::F32)];

/// The type with this name, or a sentence with all names.
pub fn parse_float_type(name: &str) -> Result<DType, String> {
    let known = TYPES.into_iter().find(|(known, _)| *known == name);
    known.map(|(_, dtype)| dtype).ok_or_else(|| {
        let names: Vec<&str> = TYPES.iter().map(|(name, _)| *name).collect();
        format!("the types are {}", names.join(", "))
    })
}

/// The adapter with all its numbers in `dtype`.
///
/// # Errors
/// If a number is beyond the largest of the type.
pub fn rounded(adapter: &StoredAdapter, dtype: DType) -> Result<StoredAdapter, Failure> {
    let tensors = rounded_tensors(adapter.tensors(&Device::Cpu)?, dtype)?;
    Ok(StoredAdapter::new(adapter.name(), adapter.config().clone(), tensors)?)
}

/// The tensors in `dtype`.
///
/// # Errors
/// If a number is beyond the largest of the type.
pub fn rounded_tensors(
    mut tensors: BTreeMap<String, Tensor>,
    dtype: DType,
) -> Result<BTreeMap<String, Tensor>, Failure> {
    for (key, tensor) in &mut tensors {
        let rounded = tensor.to_dtype(dtype)?;
        if has_infinity(&rounded)? && !has_infinity(tensor)? {
            let name = dtype.as_str();
            return Err(Failure::new(
                format!("`{key}` has numbers beyond the largest of {name}"),
                "write bf16, which has the range of f32, or f32",
            ));
        }
        *tensor = rounded;
    }
    Ok(tensors)
}

fn has_infinity(tensor: &Tensor) -> Result<bool, Failure> {
    if tensor.elem_count() == 0 {
        return Ok(false);
    }
    let largest = tensor.to_dtype(DType::F64)?.abs()?.max_all()?.to_scalar::<f64>()?;
    Ok(largest == f64::INFINITY)
}
