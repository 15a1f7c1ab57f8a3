//! Types of floats by their names.

use candle_core::DType;

/// The types in which a model can be computed.
const TYPES: [(&str, DType); 3] = [("bf16", DType::BF16), ("f16", DType::F16), ("f32", DType::F32)];

/// The type with this name.
///
/// # Errors
/// A sentence with all names, if there is none.
pub fn float_type(name: &str) -> Result<DType, String> {
    let known = TYPES.into_iter().find(|(known, _)| *known == name);
    known.map(|(_, dtype)| dtype).ok_or_else(|| {
        let names: Vec<&str> = TYPES.iter().map(|(name, _)| *name).collect();
        format!("the types are {}", names.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::float_type;

    #[test]
    fn a_type_is_found_by_its_name_and_an_unknown_name_gets_all() {
        assert_eq!(float_type("bf16"), Ok(DType::BF16));
        assert_eq!(float_type("f16"), Ok(DType::F16));
        assert_eq!(float_type("f32"), Ok(DType::F32));
        for unknown in ["f64", "BF16", "", "half"] {
            assert_eq!(float_type(unknown), Err("the types are bf16, f16, f32".to_owned()));
        }
    }
}
