//! torch's form of files before 1.6: a mark, the protocol and the machine as pickles, the tensors as a pickle, the keys of the
//! storages as a pickle, and the storages, each behind its number of elements.

use std::collections::BTreeMap;

use super::fault::Fault;
use super::machine;
use super::value::{Storage, Value, Values};

/// What the first pickle is, lowest byte first.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

/// What the second pickle is.
const PROTOCOL: i64 = 1001;

/// The tensors' pickle, and the storages by key.
pub(super) struct File<'f> {
    pub(super) values: Values<'f>,
    pub(super) storages: BTreeMap<&'f str, &'f [u8]>,
}

/// Reads the pickles and finds the storages.
pub(super) fn read(bytes: &[u8]) -> Result<File<'_>, Fault> {
    let (magic, position) = machine::run(bytes, 0)?;
    if !matches!(magic.get(magic.root), Value::Long(found) if *found == MAGIC) {
        let found = magic.get(magic.root).describe();
        return Fault::new(format!("it is a pickle of {found} that `torch.save` did not write"));
    }
    let (protocol, position) = machine::run(bytes, position)?;
    if !matches!(protocol.get(protocol.root), Value::Int(PROTOCOL)) {
        return Fault::new("its form is older than torch 0.2");
    }
    let (_system, position) = machine::run(bytes, position)?;
    let (values, position) = machine::run(bytes, position)?;
    let (keys, mut position) = machine::run(bytes, position)?;
    let Value::List(keys_in_order) = keys.get(keys.root) else {
        return Fault::new("the list of its storages is missing");
    };
    let sizes = sizes(&values);
    let mut storages = BTreeMap::new();
    for id in keys_in_order {
        let Value::Text(key) = keys.get(*id) else { return Fault::new("a storage in it has no name") };
        let size = *sizes.get(key).ok_or_else(|| Fault("a storage in it belongs to no tensor".to_owned()))?;
        let cut_off = || Fault(format!("it is cut off in the storage `{key}`"));
        let rest = bytes.get(position..).unwrap_or_default();
        let (elements, rest) = rest.split_first_chunk().ok_or_else(cut_off)?;
        let length =
            usize::try_from(i64::from_le_bytes(*elements)).ok().and_then(|length| length.checked_mul(size));
        let length = length.ok_or_else(cut_off)?;
        storages.insert(*key, rest.get(..length).ok_or_else(cut_off)?);
        position += elements.len() + length;
    }
    Ok(File { values, storages })
}

/// The bytes of an element of each storage.
fn sizes<'f>(values: &Values<'f>) -> BTreeMap<&'f str, usize> {
    let size = |storage: &Storage<'f>| storage.dtype.map_or(1, |dtype| dtype.bitsize() / 8);
    let storages = values.all.iter().filter_map(|value| match value {
        Value::Storage(storage) => Some((storage.key, size(storage))),
        _ => None,
    });
    storages.collect()
}
