//! The members of a ZIP archive as torch writes it: none of them compressed, so that each is a part of the file.

use std::collections::BTreeMap;

use super::fault::Fault;

/// The bytes of storages by their keys.
type Storages<'n, 'f> = BTreeMap<&'n str, &'f [u8]>;

/// The beginnings of the parts of an archive.
const END: &[u8] = b"PK\x05\x06";
const END_64: &[u8] = b"PK\x06\x06";
const END_64_LOCATOR: &[u8] = b"PK\x06\x07";
const ENTRY: &[u8] = b"PK\x01\x02";
const MEMBER: &[u8] = b"PK\x03\x04";
/// The sizes of those parts without what varies.
const END_SIZE: usize = 22;
const LOCATOR_SIZE: usize = 20;
const ENTRY_SIZE: usize = 46;
const MEMBER_SIZE: usize = 30;
/// The longest comment at the end.
const LONGEST_COMMENT: usize = 1 << 16;
/// The most members.
const MOST_MEMBERS: usize = 1 << 20;
/// What stands for a number that is in the field with wide numbers.
const IS_WIDE: u64 = 0xffff_ffff;
/// The mark of the field with wide numbers.
const WIDE: u16 = 1;

/// The members by name.
pub(super) struct Archive<'f>(BTreeMap<String, &'f [u8]>);

fn damaged<T>() -> Result<T, Fault> {
    Fault::new("the archive is damaged or cut off")
}

/// A little-endian number of `N` bytes.
fn number<const N: usize>(bytes: &[u8], at: usize) -> Result<u64, Fault> {
    let Some(bytes) = at.checked_add(N).and_then(|end| bytes.get(at..end)) else { return damaged() };
    let mut number = [0; 8];
    for (to, from) in number.iter_mut().zip(bytes) {
        *to = *from;
    }
    Ok(u64::from_le_bytes(number))
}

fn place(number: u64) -> Result<usize, Fault> {
    usize::try_from(number).or_else(|_| damaged())
}

impl<'f> Archive<'f> {
    pub(super) fn read(bytes: &'f [u8]) -> Result<Self, Fault> {
        let (entries, mut at) = directory(bytes)?;
        if entries > MOST_MEMBERS {
            return Fault::new(format!("the archive has more than {MOST_MEMBERS} members"));
        }
        let mut members = BTreeMap::new();
        for _ in 0..entries {
            let (name, member, next) = entry(bytes, at)?;
            if members.insert(name, member).is_some() {
                return Fault::new("two members of the archive have the same name");
            }
            at = next;
        }
        Ok(Self(members))
    }

    /// The pickle of the tensors, and the storages by their keys.
    pub(super) fn tensors(&self) -> Result<(&'f [u8], Storages<'_, 'f>), Fault> {
        let Some((name, pickle)) = self.0.iter().find(|(name, _)| name.ends_with("/data.pkl")) else {
            let is_numpy = self.0.keys().any(|name| name.ends_with(".npy"));
            return Fault::new(match is_numpy {
                true => "it is an archive of NumPy's; save the tensors as safetensors",
                false => "it is an archive without `data.pkl`, which `torch.save` writes",
            });
        };
        let folder = name.strip_suffix("data.pkl").unwrap_or_default();
        let order = self.0.get(&format!("{folder}byteorder"));
        if order.is_some_and(|order| *order != b"little") {
            return Fault::new("its numbers have their highest byte first");
        }
        let storages = self
            .0
            .iter()
            .filter_map(|(name, bytes)| Some((name.strip_prefix(folder)?.strip_prefix("data/")?, *bytes)));
        Ok((pickle, storages.collect()))
    }
}

/// The number of members, and where the list of them begins.
fn directory(bytes: &[u8]) -> Result<(usize, usize), Fault> {
    let first = bytes.len().saturating_sub(END_SIZE + LONGEST_COMMENT);
    let tail = bytes.get(first..).unwrap_or_default();
    let Some(end) = tail.windows(END.len()).rposition(|window| window == END) else { return damaged() };
    let end = first + end;
    let (entries, start) = (number::<2>(bytes, end + 10)?, number::<4>(bytes, end + 16)?);
    if entries != 0xffff && start != IS_WIDE {
        return Ok((place(entries)?, place(start)?));
    }
    let Some(locator) = end.checked_sub(LOCATOR_SIZE) else { return damaged() };
    if !bytes.get(locator..).is_some_and(|rest| rest.starts_with(END_64_LOCATOR)) {
        return damaged();
    }
    let end = place(number::<8>(bytes, locator + 8)?)?;
    if !bytes.get(end..).is_some_and(|rest| rest.starts_with(END_64)) {
        return damaged();
    }
    Ok((
        place(number::<8>(bytes, end.saturating_add(32))?)?,
        place(number::<8>(bytes, end.saturating_add(48))?)?,
    ))
}

/// The name and bytes of the member whose entry is at `at`, and where the next entry is.
fn entry(bytes: &[u8], at: usize) -> Result<(String, &[u8], usize), Fault> {
    let Some(own) = bytes.get(at..).filter(|rest| rest.starts_with(ENTRY)) else { return damaged() };
    let (flags, method) = (number::<2>(own, 8)?, number::<2>(own, 10)?);
    let lengths = [28, 30, 32].map(|at| number::<2>(own, at).and_then(place));
    let [name_length, extra_length, comment_length] = lengths;
    let (name_length, extra_length) = (name_length?, extra_length?);
    let Some(name) = own.get(ENTRY_SIZE..ENTRY_SIZE + name_length) else { return damaged() };
    let name = String::from_utf8_lossy(name).into_owned();
    let extra =
        own.get(ENTRY_SIZE + name_length..ENTRY_SIZE + name_length + extra_length).unwrap_or_default();
    let shown: String = name.chars().take(60).collect();
    if flags & 1 != 0 {
        return Fault::new(format!("`{shown}` in the archive is encrypted"));
    }
    let narrow = [number::<4>(own, 24)?, number::<4>(own, 20)?, number::<4>(own, 42)?];
    let [size, stored, start] = widened(narrow, extra)?;
    if method != 0 || size != stored {
        return Fault::new(format!("`{shown}` in the archive is compressed, which `torch.save` never does"));
    }
    let member = bytes.get(place(start)?..).filter(|rest| rest.starts_with(MEMBER));
    let Some(member) = member else { return damaged() };
    let start = MEMBER_SIZE + place(number::<2>(member, 26)?)? + place(number::<2>(member, 28)?)?;
    let data = start.checked_add(place(size)?).and_then(|end| member.get(start..end));
    let Some(data) = data else { return Fault::new(format!("`{shown}` in the archive is cut off")) };
    Ok((name, data, at + ENTRY_SIZE + name_length + extra_length + comment_length?))
}

/// Numbers of an entry, those that do not fit taken from the field with wide ones.
fn widened(mut numbers: [u64; 3], mut extra: &[u8]) -> Result<[u64; 3], Fault> {
    if !numbers.contains(&IS_WIDE) {
        return Ok(numbers);
    }
    while extra.len() >= 4 {
        let (kind, length) = (number::<2>(extra, 0)?, place(number::<2>(extra, 2)?)?);
        let field = extra.get(4..4 + length).unwrap_or_default();
        if kind == u64::from(WIDE) {
            for (place, narrow) in numbers.iter_mut().filter(|number| **number == IS_WIDE).enumerate() {
                *narrow = number::<8>(field, 8 * place)?;
            }
            return Ok(numbers);
        }
        extra = extra.get(4 + length..).unwrap_or_default();
    }
    damaged()
}
