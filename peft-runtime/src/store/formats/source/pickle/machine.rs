//! The machine that reads a pickle.

use std::collections::BTreeMap;

use super::cursor::Cursor;
use super::fault::Fault;
use super::value::{Id, Value, Values, value};
use super::{globals, opcodes as op, reduce};

/// The most instructions of a pickle: far more than any adapter needs, and little enough to bound what it can fill.
const MOST_STEPS: usize = 1 << 22;

/// The most values on the stack, marks on it, and values that are kept for later.
const DEEPEST: usize = 1 << 20;

/// The newest protocol.
const PROTOCOL: u8 = 5;

/// A pickle that is being read.
struct Machine<'f> {
    cursor: Cursor<'f>,
    values: Vec<Value<'f>>,
    stack: Vec<Id>,
    /// How long the stack was at each mark.
    marks: Vec<usize>,
    memo: BTreeMap<usize, Id>,
}

/// Reads the pickle that begins at `start`; returns its values and where it ends.
pub(super) fn run(bytes: &[u8], start: usize) -> Result<(Values<'_>, usize), Fault> {
    let mut machine = Machine {
        cursor: Cursor { bytes, position: start },
        values: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: BTreeMap::new(),
    };
    for _ in 0..MOST_STEPS {
        let [code] = machine.cursor.array()?;
        if code == op::STOP {
            let root = machine.pop()?;
            return Ok((Values { all: machine.values, root }, machine.cursor.position));
        }
        machine.step(code)?;
    }
    Fault::new(format!("it has more than {MOST_STEPS} instructions"))
}

impl<'f> Machine<'f> {
    fn text(&mut self, width: usize) -> Result<(), Fault> {
        let bytes = self.cursor.counted(width)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => self.push(Value::Text(text)),
            Err(_) => Fault::new("a text in it is not UTF-8"),
        }
    }

    fn push(&mut self, value: Value<'f>) -> Result<(), Fault> {
        let id = reduce::new(&mut self.values, value)?;
        self.push_id(id)
    }

    fn push_id(&mut self, id: Id) -> Result<(), Fault> {
        if self.stack.len() >= DEEPEST {
            return Fault::new("it puts too many values on its stack");
        }
        self.stack.push(id);
        Ok(())
    }

    fn pop(&mut self) -> Result<Id, Fault> {
        let bottom = self.marks.last().copied().unwrap_or_default();
        let top = if self.stack.len() > bottom { self.stack.pop() } else { None };
        top.ok_or_else(|| Fault("an instruction in it lacks its arguments".to_owned()))
    }

    fn top(&self) -> Result<Id, Fault> {
        self.stack.last().copied().ok_or_else(|| Fault("an instruction in it lacks its arguments".to_owned()))
    }

    /// What is above the last mark.
    fn pop_mark(&mut self) -> Result<Vec<Id>, Fault> {
        match self.marks.pop() {
            Some(length) if length <= self.stack.len() => Ok(self.stack.split_off(length)),
            _ => Fault::new("an instruction in it lacks its mark"),
        }
    }

    fn tuple(&mut self, length: usize) -> Result<(), Fault> {
        let mut items = (0..length).map(|_| self.pop()).collect::<Result<Vec<_>, _>>()?;
        items.reverse();
        self.push(Value::Tuple(items))
    }

    fn put(&mut self, key: usize) -> Result<(), Fault> {
        if self.memo.len() >= DEEPEST {
            return Fault::new("it keeps too many values for later");
        }
        self.memo.insert(key, self.top()?);
        Ok(())
    }

    fn recall(&mut self, key: usize) -> Result<(), Fault> {
        let id = self.memo.get(&key).copied();
        self.push_id(id.ok_or_else(|| Fault("it refers to a value that it does not have".to_owned()))?)
    }

    fn append(&mut self, items: Vec<Id>) -> Result<(), Fault> {
        let list = self.top()?;
        match self.values.get_mut(list as usize) {
            Some(Value::List(known)) => known.extend(items),
            Some(Value::Set) => {}
            _ => return Fault::new("it appends to what is not a list"),
        }
        Ok(())
    }

    fn set_items(&mut self, items: &[Id]) -> Result<(), Fault> {
        let dict = self.top()?;
        let (pairs, rest) = items.as_chunks::<2>();
        match self.values.get_mut(dict as usize) {
            Some(Value::Dict(entries)) if rest.is_empty() => {
                entries.extend(pairs.iter().map(|[key, value]| (*key, *value)));
                Ok(())
            }
            _ => Fault::new("it sets items of what is not a dictionary"),
        }
    }

    fn step(&mut self, code: u8) -> Result<(), Fault> {
        match code {
            op::PROTO => match self.cursor.array()? {
                [protocol] if protocol <= PROTOCOL => Ok(()),
                [protocol] => Fault::new(format!(
                    "its protocol is {protocol}, and {PROTOCOL} is the newest that is known"
                )),
            },
            op::FRAME => self.cursor.array::<8>().map(drop),
            op::NONE => self.push(Value::None),
            op::NEWTRUE | op::NEWFALSE => self.push(Value::Bool),
            op::BININT => {
                let number = i32::from_le_bytes(self.cursor.array()?);
                self.push(Value::Int(number.into()))
            }
            op::BININT1 => {
                let [number] = self.cursor.array()?;
                self.push(Value::Int(number.into()))
            }
            op::BININT2 => {
                let number = u16::from_le_bytes(self.cursor.array()?);
                self.push(Value::Int(number.into()))
            }
            op::LONG1 => self.long(1),
            op::LONG4 => self.long(4),
            op::BINFLOAT => self.cursor.array::<8>().and_then(|_| self.push(Value::Float)),
            op::SHORT_BINUNICODE | op::SHORT_BINSTRING => self.text(1),
            op::BINUNICODE | op::BINSTRING => self.text(4),
            op::BINUNICODE8 => self.text(8),
            op::SHORT_BINBYTES => self.cursor.counted(1).and_then(|_| self.push(Value::Bytes)),
            op::BINBYTES => self.cursor.counted(4).and_then(|_| self.push(Value::Bytes)),
            op::BINBYTES8 => self.cursor.counted(8).and_then(|_| self.push(Value::Bytes)),
            _ => self.step_of_structure(code),
        }
    }

    fn long(&mut self, width: usize) -> Result<(), Fault> {
        let bytes = self.cursor.counted(width)?;
        if bytes.len() > size_of::<i64>() {
            return self.push(Value::Long(bytes));
        }
        // The sign is that of the highest bit.
        let fill = if bytes.last().is_some_and(|byte| *byte >= 0x80) { 0xff } else { 0 };
        let mut number = [fill; 8];
        for (to, from) in number.iter_mut().zip(bytes) {
            *to = *from;
        }
        self.push(Value::Int(i64::from_le_bytes(number)))
    }

    fn step_of_structure(&mut self, code: u8) -> Result<(), Fault> {
        match code {
            op::MARK => {
                if self.marks.len() >= DEEPEST {
                    return Fault::new("it puts too many marks on its stack");
                }
                self.marks.push(self.stack.len());
                Ok(())
            }
            op::POP => self.pop().map(drop),
            op::POP_MARK => self.pop_mark().map(drop),
            op::DUP => {
                let top = self.top()?;
                self.push_id(top)
            }
            op::EMPTY_TUPLE => self.push(Value::Tuple(Vec::new())),
            op::EMPTY_LIST => self.push(Value::List(Vec::new())),
            op::EMPTY_DICT => self.push(Value::Dict(Vec::new())),
            op::EMPTY_SET => self.push(Value::Set),
            op::TUPLE1 => self.tuple(1),
            op::TUPLE2 => self.tuple(2),
            op::TUPLE3 => self.tuple(3),
            op::TUPLE => {
                let items = self.pop_mark()?;
                self.push(Value::Tuple(items))
            }
            op::LIST => {
                let items = self.pop_mark()?;
                self.push(Value::List(items))
            }
            op::FROZENSET => {
                self.pop_mark()?;
                self.push(Value::Set)
            }
            op::DICT => {
                let items = self.pop_mark()?;
                self.push(Value::Dict(Vec::new()))?;
                self.set_items(&items)
            }
            op::APPEND => {
                let item = self.pop()?;
                self.append(vec![item])
            }
            op::APPENDS | op::ADDITEMS => {
                let items = self.pop_mark()?;
                self.append(items)
            }
            op::SETITEM => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set_items(&[key, value])
            }
            op::SETITEMS => {
                let items = self.pop_mark()?;
                self.set_items(&items)
            }
            _ => self.step_of_reference(code),
        }
    }

    fn step_of_reference(&mut self, code: u8) -> Result<(), Fault> {
        match code {
            op::BINPUT => {
                let [key] = self.cursor.array()?;
                self.put(key.into())
            }
            op::LONG_BINPUT => {
                let key = u32::from_le_bytes(self.cursor.array()?);
                self.put(key as usize)
            }
            op::MEMOIZE => self.put(self.memo.len()),
            op::BINGET => {
                let [key] = self.cursor.array()?;
                self.recall(key.into())
            }
            op::LONG_BINGET => {
                let key = u32::from_le_bytes(self.cursor.array()?);
                self.recall(key as usize)
            }
            op::GLOBAL => {
                let (module, name) = (self.cursor.line()?, self.cursor.line()?);
                self.push(Value::Global(globals::find(module, name)?))
            }
            op::STACK_GLOBAL => {
                let (name, module) = (self.pop()?, self.pop()?);
                match (value(&self.values, module), value(&self.values, name)) {
                    (Some(Value::Text(module)), Some(Value::Text(name))) => {
                        self.push(Value::Global(globals::find(module, name)?))
                    }
                    _ => Fault::new("it names a function by what is not text"),
                }
            }
            op::REDUCE => {
                let (arguments, function) = (self.pop()?, self.pop()?);
                let id = reduce::call(&mut self.values, function, arguments)?;
                self.push_id(id)
            }
            op::BUILD => {
                self.pop()?;
                let top = self.top()?;
                match value(&self.values, top) {
                    // What a state dict of torch's has besides its entries.
                    Some(Value::Dict(_) | Value::Tensor(_)) => Ok(()),
                    _ => Fault::new("it gives a state to what has none"),
                }
            }
            op::BINPERSID => {
                let id = self.pop()?;
                let storage = reduce::storage(&self.values, id)?;
                self.push(Value::Storage(storage))
            }
            other => Fault::new(format!("it has the instruction {other:#04x}, which tensors do not need")),
        }
    }
}
