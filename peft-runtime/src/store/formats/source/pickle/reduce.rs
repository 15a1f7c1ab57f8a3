//! The calls that a pickle may make.

use safetensors::Dtype;

use super::fault::Fault;
use super::globals::Global;
use super::value::{Id, Storage, Value, View, value};

/// The most values of a pickle: far more than any adapter needs, and few enough to bound what it can fill.
const MOST_VALUES: usize = 1_500_000;

/// The most dimensions of a tensor.
const MOST_DIMENSIONS: usize = 16;

/// What calling `function` with `arguments` gives.
pub(super) fn call(values: &mut Vec<Value<'_>>, function: Id, arguments: Id) -> Result<Id, Fault> {
    let (Some(Value::Global(function)), Some(Value::Tuple(arguments))) =
        (value(values, function), value(values, arguments))
    else {
        return Fault::new("it calls what is not a function");
    };
    let made = match (function, arguments.as_slice()) {
        (Global::OrderedDict, []) => Value::Dict(Vec::new()),
        (Global::OrderedDict, [pairs]) => Value::Dict(pairs_of(values, *pairs)?),
        (Global::Tensor { dtype_at }, [storage, offset, shape, strides, ..]) => {
            let dtype = dtype_at.and_then(|place| arguments.get(place)).copied();
            Value::Tensor(Box::new(view(values, [*storage, *offset, *shape, *strides], dtype)?))
        }
        (Global::Parameter, [tensor, ..]) if matches!(value(values, *tensor), Some(Value::Tensor(_))) => {
            return Ok(*tensor);
        }
        (Global::Size, [sizes])
            if matches!(value(values, *sizes), Some(Value::Tuple(_) | Value::List(_))) =>
        {
            return Ok(*sizes);
        }
        (Global::Size, []) => Value::Tuple(Vec::new()),
        (Global::Device, _) => Value::Plain("a device"),
        _ => return Fault::new("it calls a function of torch's with other arguments than it has"),
    };
    new(values, made)
}

/// Adds a value, unless there are too many.
pub(super) fn new<'f>(values: &mut Vec<Value<'f>>, value: Value<'f>) -> Result<Id, Fault> {
    if values.len() >= MOST_VALUES {
        return Fault::new(format!("it has more than {MOST_VALUES} values"));
    }
    values.push(value);
    Id::try_from(values.len() - 1).or_else(|_| Fault::new("it has too many values"))
}

/// The entries of a list of pairs.
fn pairs_of(values: &[Value<'_>], id: Id) -> Result<Vec<(Id, Id)>, Fault> {
    let Some(Value::List(pairs) | Value::Tuple(pairs)) = value(values, id) else {
        return Fault::new("it makes a dictionary of what is not a list");
    };
    let pair = |id: &Id| match value(values, *id) {
        Some(Value::Tuple(pair) | Value::List(pair)) if pair.len() == 2 => Ok((pair[0], pair[1])),
        _ => Fault::new("it makes a dictionary of what are not pairs"),
    };
    pairs.iter().map(pair).collect()
}

/// What a persistent id stands for: `("storage", class, key, device, elements, …)`.
pub(super) fn storage<'f>(values: &[Value<'f>], id: Id) -> Result<Storage<'f>, Fault> {
    let malformed = || Fault("it refers to something outside of it that is not a storage".to_owned());
    let Some(Value::Tuple(parts)) = value(values, id) else { return Err(malformed()) };
    let [kind, class, key, _, elements, rest @ ..] = parts.as_slice() else { return Err(malformed()) };
    if !matches!(value(values, *kind), Some(Value::Text("storage"))) {
        return Err(malformed());
    }
    if rest.iter().any(|id| !matches!(value(values, *id), Some(Value::None))) {
        return Fault::new("one of its storages is a part of another one, as torch wrote them before 0.4");
    }
    let dtype = match value(values, *class) {
        Some(Value::Global(Global::Storage(dtype))) => *dtype,
        Some(Value::Global(Global::Unsupported)) => return Fault::new(UNSUPPORTED),
        _ => return Err(malformed()),
    };
    match (value(values, *key), value(values, *elements)) {
        (Some(Value::Text(key)), Some(Value::Int(elements))) => {
            let elements = usize::try_from(*elements).map_err(|_| malformed())?;
            Ok(Storage { key, dtype, elements })
        }
        _ => Err(malformed()),
    }
}

const UNSUPPORTED: &str = "a tensor in it has numbers of a kind that is not supported (complex, quantized, or unsigned of 16 or 64 bits)";

fn view<'f>(values: &[Value<'f>], parts: [Id; 4], dtype: Option<Id>) -> Result<View<'f>, Fault> {
    let [storage, offset, shape, strides] = parts;
    let malformed = || Fault("it puts a tensor together from what are not a storage and numbers".to_owned());
    let Some(Value::Storage(storage)) = value(values, storage) else { return Err(malformed()) };
    let stated = match dtype.map(|id| value(values, id)) {
        None => None,
        Some(Some(Value::Global(Global::Dtype(dtype)))) => Some(*dtype),
        Some(Some(Value::Global(Global::Unsupported))) => return Fault::new(UNSUPPORTED),
        Some(_) => return Err(malformed()),
    };
    let dtype: Dtype = stated.or(storage.dtype).ok_or_else(malformed)?;
    let number = |id: &Id| match value(values, *id) {
        Some(Value::Int(number)) => usize::try_from(*number).map_err(|_| malformed()),
        _ => Err(malformed()),
    };
    let numbers = |id: Id| match value(values, id) {
        Some(Value::Tuple(items) | Value::List(items)) if items.len() <= MOST_DIMENSIONS => {
            items.iter().map(number).collect::<Result<Vec<usize>, Fault>>()
        }
        _ => Err(malformed()),
    };
    let (offset, shape, strides) = (number(&offset)?, numbers(shape)?, numbers(strides)?);
    if shape.len() != strides.len() {
        return Err(malformed());
    }
    Ok(View { storage: *storage, dtype, offset, shape, strides })
}
