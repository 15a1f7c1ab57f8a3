//! The functions and classes that a file of tensors needs; there are no others.

use safetensors::Dtype;

use super::fault::Fault;

/// A function or class of Python that a pickle may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Global {
    OrderedDict,
    /// `_rebuild_tensor` and its successors: storage, offset, shape, strides, and a dtype at this place if there is one.
    Tensor {
        dtype_at: Option<usize>,
    },
    /// `_rebuild_parameter`: a tensor, and what only training needs.
    Parameter,
    /// `torch.Size`: a tuple.
    Size,
    Device,
    /// A class of storages: their dtype, or `None` for bytes.
    Storage(Option<Dtype>),
    Dtype(Dtype),
    /// A class of storages or a dtype of numbers that candle does not have.
    Unsupported,
}

/// Functions and classes by module and name.
const GLOBALS: [(&str, &str, Global); 9] = [
    ("collections", "OrderedDict", Global::OrderedDict),
    ("torch._utils", "_rebuild_tensor", Global::Tensor { dtype_at: None }),
    ("torch._utils", "_rebuild_tensor_v2", Global::Tensor { dtype_at: None }),
    ("torch._utils", "_rebuild_tensor_v3", Global::Tensor { dtype_at: Some(6) }),
    ("torch._utils", "_rebuild_parameter", Global::Parameter),
    ("torch._utils", "_rebuild_parameter_with_state", Global::Parameter),
    ("torch", "Size", Global::Size),
    ("torch", "device", Global::Device),
    ("torch.storage", "UntypedStorage", Global::Storage(None)),
];

/// Classes of storages by name.
const STORAGES: [(&str, Option<Dtype>); 11] = [
    ("BFloat16Storage", Some(Dtype::BF16)),
    ("BoolStorage", Some(Dtype::BOOL)),
    ("ByteStorage", Some(Dtype::U8)),
    ("CharStorage", Some(Dtype::I8)),
    ("DoubleStorage", Some(Dtype::F64)),
    ("FloatStorage", Some(Dtype::F32)),
    ("HalfStorage", Some(Dtype::F16)),
    ("IntStorage", Some(Dtype::I32)),
    ("LongStorage", Some(Dtype::I64)),
    ("ShortStorage", Some(Dtype::I16)),
    ("UntypedStorage", None),
];

/// Dtypes by name.
const DTYPES: [(&str, Dtype); 17] = [
    ("bfloat16", Dtype::BF16),
    ("bool", Dtype::BOOL),
    ("double", Dtype::F64),
    ("float", Dtype::F32),
    ("float16", Dtype::F16),
    ("float32", Dtype::F32),
    ("float64", Dtype::F64),
    ("float8_e4m3fn", Dtype::F8_E4M3),
    ("half", Dtype::F16),
    ("int", Dtype::I32),
    ("int16", Dtype::I16),
    ("int32", Dtype::I32),
    ("int64", Dtype::I64),
    ("int8", Dtype::I8),
    ("long", Dtype::I64),
    ("uint32", Dtype::U32),
    ("uint8", Dtype::U8),
];

/// Names of torch's that stand for numbers of other kinds.
const UNSUPPORTED: [&str; 10] = [
    "ComplexDoubleStorage",
    "ComplexFloatStorage",
    "QInt32Storage",
    "QInt8Storage",
    "QUInt8Storage",
    "complex128",
    "complex64",
    "float8_e5m2",
    "uint16",
    "uint64",
];

/// The function or class `name` of `module`.
pub(super) fn find(module: &str, name: &str) -> Result<Global, Fault> {
    if let Some((.., global)) = GLOBALS.iter().find(|known| (known.0, known.1) == (module, name)) {
        return Ok(*global);
    }
    if module == "torch" {
        let storage = STORAGES.iter().find(|known| known.0 == name).map(|known| Global::Storage(known.1));
        let dtype = DTYPES.iter().find(|known| known.0 == name).map(|known| Global::Dtype(known.1));
        let other = UNSUPPORTED.contains(&name).then_some(Global::Unsupported);
        if let Some(global) = storage.or(dtype).or(other) {
            return Ok(global);
        }
    }
    let shown: String = format!("{module}.{name}").chars().take(100).collect();
    Fault::new(format!("it calls for `{shown}`, which tensors do not need; nothing in it was run"))
}
