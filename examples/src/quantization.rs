//! GGML's types by their names.

use candle_core::quantized::GgmlDType;

/// The types that a weight can be quantized to.
const TYPES: [GgmlDType; 13] = [
    GgmlDType::F16,
    GgmlDType::BF16,
    GgmlDType::Q4_0,
    GgmlDType::Q4_1,
    GgmlDType::Q5_0,
    GgmlDType::Q5_1,
    GgmlDType::Q8_0,
    GgmlDType::Q2K,
    GgmlDType::Q3K,
    GgmlDType::Q4K,
    GgmlDType::Q5K,
    GgmlDType::Q6K,
    GgmlDType::Q8K,
];

/// The type with this name, `q4_1` or `Q4_1`.
///
/// # Errors
/// A sentence with all names, if there is none.
pub fn ggml_type(name: &str) -> Result<GgmlDType, String> {
    let plain = |name: &str| name.replace('_', "").to_ascii_lowercase();
    let named = |dtype: &GgmlDType| format!("{dtype:?}");
    let known = TYPES.into_iter().find(|dtype| plain(&named(dtype)) == plain(name));
    known.ok_or_else(|| {
        let names: Vec<String> = TYPES.iter().map(named).collect();
        format!("the types are {}", names.join(", "))
    })
}
