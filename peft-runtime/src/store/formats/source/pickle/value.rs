//! What a pickle is made of.

use safetensors::Dtype;

use super::globals::Global;

/// The place of a value among all values of a pickle. Values that contain others hold their places, so that nothing is ever
/// copied, however often it is referred to.
pub(super) type Id = u32;

/// A value. Texts lie in the file.
#[derive(Clone, Debug)]
pub(super) enum Value<'f> {
    None,
    Bool,
    Int(i64),
    /// A whole number of more than 64 bits, lowest byte first.
    Long(&'f [u8]),
    Float,
    Text(&'f str),
    Bytes,
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Set,
    /// Keys and values in the order in which they came.
    Dict(Vec<(Id, Id)>),
    Global(Global),
    Storage(Storage<'f>),
    Tensor(Box<View<'f>>),
    /// What `torch.device` and the like are.
    Plain(&'static str),
}

/// A reference to a storage, which lies behind the pickle.
#[derive(Clone, Copy, Debug)]
pub(super) struct Storage<'f> {
    pub(super) key: &'f str,
    /// The dtype of its elements; `None` for bytes that the tensors on it know the dtype of.
    pub(super) dtype: Option<Dtype>,
    /// The number of its elements, or of its bytes.
    pub(super) elements: usize,
}

/// A tensor: a view into a storage, in elements.
#[derive(Clone, Debug)]
pub(super) struct View<'f> {
    pub(super) storage: Storage<'f>,
    pub(super) dtype: Dtype,
    pub(super) offset: usize,
    pub(super) shape: Vec<usize>,
    pub(super) strides: Vec<usize>,
}

/// All values of a pickle, and which of them it is about.
#[derive(Debug)]
pub(super) struct Values<'f> {
    pub(super) all: Vec<Value<'f>>,
    pub(super) root: Id,
}

/// The value at a place.
pub(super) fn value<'v, 'f>(values: &'v [Value<'f>], id: Id) -> Option<&'v Value<'f>> {
    values.get(id as usize)
}

impl<'f> Values<'f> {
    pub(super) fn get(&self, id: Id) -> &Value<'f> {
        value(&self.all, id).unwrap_or(&Value::None)
    }
}

impl Value<'_> {
    /// What it is, in words.
    pub(super) fn describe(&self) -> String {
        let many = |number: usize, what: &str| format!("{what} of {number}");
        match self {
            Self::None => "nothing".to_owned(),
            Self::Bool => "true or false".to_owned(),
            Self::Int(_) | Self::Long(_) | Self::Float => "a number".to_owned(),
            Self::Text(_) => "text".to_owned(),
            Self::Bytes => "bytes".to_owned(),
            Self::Tuple(items) | Self::List(items) => many(items.len(), "a list"),
            Self::Set => "a set".to_owned(),
            Self::Dict(entries) => many(entries.len(), "a dictionary"),
            Self::Global(_) => "a class".to_owned(),
            Self::Storage(_) => "a storage".to_owned(),
            Self::Tensor(view) => format!("a tensor {:?}", view.shape),
            Self::Plain(what) => (*what).to_owned(),
        }
    }
}
