//! GGUF files: their tensors, made dense, and the texts and numbers of their metadata.

use std::collections::BTreeMap;
use std::io::Cursor;

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::{DType, Device, Result as CandleResult, Tensor};

use crate::error::Result;
use crate::store::gguf_check::read_content;

/// Where a file says what it is, and what adapters say there.
const TYPE: &str = "general.type";
const ADAPTER: &str = "adapter";

/// Reads all tensors of an adapter, and what the metadata say in texts, numbers and switches.
///
/// # Errors
/// If the file is damaged.
pub(super) fn read(bytes: &[u8]) -> Result<(BTreeMap<String, Tensor>, BTreeMap<String, String>)> {
    let mut reader = Cursor::new(bytes);
    let content = read_content(&mut reader, bytes.len() as u64)?;
    let mut tensors = BTreeMap::new();
    let is_adapter = matches!(content.metadata.get(TYPE), Some(Value::String(kind)) if kind == ADAPTER);
    // The tensors of a model are not read: they may be larger than the memory.
    for name in content.tensor_infos.keys().filter(|_| is_adapter) {
        tensors.insert(name.clone(), tensor(&content, &mut reader, name)?);
    }
    let metadata = content.metadata.iter();
    Ok((tensors, metadata.filter_map(|(key, value)| Some((key.clone(), text(value)?))).collect()))
}

/// A tensor in its own dtype, or in single precision if it is quantized.
fn tensor(content: &Content, reader: &mut Cursor<&[u8]>, name: &str) -> CandleResult<Tensor> {
    let tensor = content.tensor(reader, name, &Device::Cpu)?;
    let dtype = match tensor.dtype() {
        GgmlDType::F16 => DType::F16,
        GgmlDType::BF16 => DType::BF16,
        _ => DType::F32,
    };
    tensor.dequantize(&Device::Cpu)?.to_dtype(dtype)
}

fn text(value: &Value) -> Option<String> {
    Some(match value {
        Value::String(text) => text.clone(),
        Value::Bool(value) => value.to_string(),
        Value::F32(number) => number.to_string(),
        Value::F64(number) => number.to_string(),
        Value::U8(number) => number.to_string(),
        Value::U16(number) => number.to_string(),
        Value::U32(number) => number.to_string(),
        Value::U64(number) => number.to_string(),
        Value::I8(number) => number.to_string(),
        Value::I16(number) => number.to_string(),
        Value::I32(number) => number.to_string(),
        Value::I64(number) => number.to_string(),
        Value::Array(items) => format!("a list of {}", items.len()),
    })
}
