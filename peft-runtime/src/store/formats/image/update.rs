//! The tensors of one module of a file, put together to what they do.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};

use super::delta::{Delta, Hadamard, Half, Kronecker, LowRank, as_number, contract};
use super::key::Part;
use crate::error::{AdapterFileError, Error, Result};
use crate::path::ModulePath;
use crate::store::formats::Source;

/// What a file does to one module.
#[derive(Debug)]
pub(super) struct Update {
    /// The first of its keys, for messages.
    pub(super) key: String,
    pub(super) delta: Option<Delta>,
    /// The shape that the factors A and B give a weight.
    pub(super) shape: Option<Vec<usize>>,
    pub(super) lengths: Option<Lengths>,
    /// What is added to the weight: a matrix for a layer, or a vector for a norm.
    pub(super) weight: Option<Tensor>,
    /// What is added to the bias.
    pub(super) bias: Option<Tensor>,
}

/// DoRA's lengths before it is known which side of the weight they go by.
#[derive(Clone, Debug)]
pub(super) struct Lengths {
    pub(super) key: String,
    pub(super) tensor: Tensor,
    /// Whether LyCORIS's shapes hold, where `[1, n, 1…]` goes by inputs; PEFT's lengths always go by outputs.
    pub(super) is_scale: bool,
}

/// The alpha of a module where the file says it in another place than next to the factors, and whether it is divided by the
/// root of the rank.
pub(super) type OtherAlpha<'a> = dyn Fn(&str, usize) -> Result<Option<(f64, bool)>> + 'a;

/// An error about the tensor at `key`.
pub(super) fn wrong(key: &str, reason: impl Into<String>) -> Error {
    AdapterFileError::Key { key: key.to_owned(), reason: reason.into() }.into()
}

/// The same error, said of the module at `path`.
pub(super) fn at(path: &str) -> impl Fn(candle_core::Error) -> Error + use<> {
    let path = ModulePath::from(path);
    move |error| Error::on_layer(&path)(error)
}

/// Reads the tensors of one module.
pub(super) struct Reader<'s> {
    source: &'s Source,
    /// Keys of the file by what their tensors are.
    keys: &'s BTreeMap<Part, String>,
    /// The module's name in the file.
    module: &'s str,
}

impl<'s> Reader<'s> {
    pub(super) fn new(source: &'s Source, module: &'s str, keys: &'s BTreeMap<Part, String>) -> Self {
        Self { source, keys, module }
    }

    fn key(&self, part: Part) -> &str {
        self.keys.get(&part).map_or(self.module, String::as_str)
    }

    fn tensor(&self, part: Part) -> Result<Option<Tensor>> {
        let Some(key) = self.keys.get(&part) else { return Ok(None) };
        let tensor = self.source.tensor(key)?.ok_or_else(|| wrong(key, "is not in the file"))?;
        if !tensor.dtype().is_float() && part != Part::Alpha {
            return Err(wrong(key, format!("has numbers of type {:?}; they must be floats", tensor.dtype())));
        }
        if tensor.dims().contains(&0) {
            return Err(wrong(key, format!("has the shape {:?}, and is empty", tensor.dims())));
        }
        Ok(Some(tensor))
    }

    /// A tensor that has to be there because another one is.
    fn needed(&self, part: Part, next_to: Part, name: &str) -> Result<Tensor> {
        self.tensor(part)?.ok_or_else(|| wrong(self.key(next_to), format!("has no `{name}` next to it")))
    }

    /// The number of a tensor with one element. 0 is 0: the update does nothing.
    fn alpha(&self) -> Result<Option<f64>> {
        let Some(tensor) = self.tensor(Part::Alpha)? else { return Ok(None) };
        let key = self.key(Part::Alpha);
        if tensor.elem_count() != 1 {
            return Err(wrong(key, format!("has the shape {:?}; alpha is one number", tensor.dims())));
        }
        let alpha: f64 = tensor.to_dtype(DType::F64)?.flatten_all()?.get(0)?.to_scalar()?;
        if !alpha.is_finite() {
            return Err(wrong(key, format!("is {alpha}; alpha must be a finite number")));
        }
        Ok(Some(alpha))
    }

    pub(super) fn read(&self, other_alpha: &OtherAlpha<'_>) -> Result<Update> {
        let has = |part: Part| self.keys.contains_key(&part);
        let own = |start: &str| {
            self.keys.keys().any(|part| matches!(part, Part::Own(name) if name.starts_with(start)))
        };
        let forms = [has(Part::Down) || has(Part::Up) || has(Part::Mid), own("hada_"), own("lokr_")];
        let key = self.keys.values().next().cloned().unwrap_or_default();
        if forms.iter().filter(|form| **form).count() > 1 {
            return Err(wrong(&key, "has the factors of two methods next to it"));
        }
        let delta = match forms {
            [true, ..] => Some(Delta::LowRank(self.low_rank(other_alpha)?)),
            [_, true, _] => Some(Delta::Hadamard(self.hadamard()?)),
            [.., true] => Some(Delta::Kronecker(self.kronecker()?)),
            _ => None,
        };
        let (weight, bias) = (self.tensor(Part::Diff)?, self.tensor(Part::BiasDiff)?);
        if delta.is_some() && weight.is_some() {
            return Err(wrong(self.key(Part::Diff), "has factors next to it; a weight has one update"));
        }
        if delta.is_none() && weight.is_none() && bias.is_none() {
            return Err(wrong(&key, "has no factors next to it"));
        }
        let lengths = self.lengths()?;
        if lengths.is_some() && delta.is_none() && weight.is_none() {
            return Err(wrong(&key, "has no factors next to it"));
        }
        Ok(Update { key, delta, shape: self.shape(), lengths, weight, bias })
    }

    fn shape(&self) -> Option<Vec<usize>> {
        let shape = |part| self.source.shape(self.keys.get(&part)?);
        let (down, up) = (shape(Part::Down)?, shape(Part::Up)?);
        Some([up.get(..1)?, down.get(1..)?].concat()).filter(|_| !self.keys.contains_key(&Part::Mid))
    }

    fn lengths(&self) -> Result<Option<Lengths>> {
        let found = match (self.tensor(Part::Scale)?, self.tensor(Part::Magnitude)?) {
            (None, None) => return Ok(None),
            (Some(_), Some(_)) => {
                return Err(wrong(
                    self.key(Part::Scale),
                    "has `lora_magnitude_vector` next to it; keep one of them",
                ));
            }
            (Some(scale), None) => (Part::Scale, scale),
            (None, Some(magnitude)) => (Part::Magnitude, magnitude),
        };
        let (part, tensor) = found;
        Ok(Some(Lengths { key: self.key(part).to_owned(), tensor, is_scale: part == Part::Scale }))
    }

    fn low_rank(&self, other_alpha: &OtherAlpha<'_>) -> Result<LowRank> {
        let down = self.needed(Part::Down, Part::Up, "lora_down")?;
        let up = self.needed(Part::Up, Part::Down, "lora_up")?;
        let rank = down.dims().first().copied().unwrap_or_default();
        let fits = down.rank() >= 2 && up.rank() >= 2 && up.elem_count() == up.dims()[0] * rank;
        if !fits {
            let shapes = format!("{:?}, and B {:?}", down.dims(), up.dims());
            return Err(wrong(
                self.key(Part::Down),
                format!("has the shape {shapes}: they are no factors of a product"),
            ));
        }
        let (mut a, mut b) = (down.flatten_from(1)?, up.flatten_from(1)?);
        if let Some(mid) = self.tensor(Part::Mid)? {
            if mid.rank() < 3 || mid.dims()[..2] != [rank, rank] {
                let reason =
                    format!("has the shape {:?}; its first two sides must be the rank {rank}", mid.dims());
                return Err(wrong(self.key(Part::Mid), reason));
            }
            let wide = |tensor: &Tensor| tensor.to_dtype(DType::F64);
            a = contract(&wide(&mid)?, &wide(&a)?)?.flatten_from(1)?.to_dtype(DType::F32)?;
            b = b.to_dtype(DType::F32)?;
        }
        if a.dtype() != b.dtype() {
            (a, b) = (a.to_dtype(DType::F32)?, b.to_dtype(DType::F32)?);
        }
        let other = || other_alpha(self.module, rank);
        let (alpha, stabilised) = match self.alpha()? {
            Some(alpha) => (alpha, false),
            None => other()?.unwrap_or((as_number(rank), false)),
        };
        Ok(LowRank { a, b, alpha, stabilised, bias: self.tensor(Part::UpBias)? })
    }

    fn hadamard(&self) -> Result<Hadamard> {
        const KEYS: [&str; 4] = ["hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"];
        let any = self.keys.keys().copied().find(|part| matches!(part, Part::Own(_))).unwrap_or(Part::Alpha);
        let tensor = |name: &'static str| self.needed(Part::Own(name), any, name);
        let factors = [tensor(KEYS[0])?, tensor(KEYS[1])?, tensor(KEYS[2])?, tensor(KEYS[3])?];
        let cores = match (self.tensor(Part::Own("hada_t1"))?, self.tensor(Part::Own("hada_t2"))?) {
            (Some(first), Some(second)) => Some([first, second]),
            (None, None) => None,
            _ => return Err(wrong(self.key(any), "has only one of `hada_t1` and `hada_t2` next to it")),
        };
        let (a, b) = (factors[0].dims(), factors[1].dims());
        let same = a == factors[2].dims() && b == factors[3].dims() && a.len() == 2 && b.len() == 2;
        let rank = b.first().copied().unwrap_or_default();
        let fits = match &cores {
            None => a.get(1) == Some(&rank),
            Some([first, second]) => {
                let core = first.dims();
                a.first() == Some(&rank)
                    && core.len() > 2
                    && core[..2] == [rank, rank]
                    && core == second.dims()
            }
        };
        if !(same && fits) {
            let shapes = factors.each_ref().map(|factor| factor.dims().to_vec());
            return Err(wrong(
                self.key(any),
                format!("and its like have the shapes {shapes:?}: they are no factors of LoHa"),
            ));
        }
        let alpha = self.alpha()?.unwrap_or(as_number(rank));
        Ok(Hadamard { factors, cores, alpha })
    }

    fn kronecker(&self) -> Result<Kronecker> {
        let first = self.half(["lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_t1"])?;
        let second = self.half(["lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"])?;
        let rank = second.rank().or_else(|| first.rank());
        let alpha = self.alpha()?;
        Ok(Kronecker { first, second, alpha: alpha.or(rank.map(as_number)) })
    }

    fn half(&self, [whole, left, right, core]: [&'static str; 4]) -> Result<Half> {
        let any = self.keys.keys().copied().find(|part| matches!(part, Part::Own(_))).unwrap_or(Part::Alpha);
        let own = |name: &'static str| self.tensor(Part::Own(name));
        let half = match (own(whole)?, own(left)?, own(right)?, own(core)?) {
            (Some(matrix), None, None, None) if matrix.rank() >= 2 => Half::Whole(matrix),
            (None, Some(left), Some(right), None)
                if left.rank() == 2 && left.dims()[1..] == right.dims()[..1] =>
            {
                Half::Product(left, right)
            }
            (None, Some(left), Some(right), Some(core))
                if core.rank() > 2
                    && left.rank() == 2
                    && core.dims()[..2] == [left.dims()[0], right.dims()[0]] =>
            {
                Half::Core { core, left, right }
            }
            _ => {
                let reason = format!("has next to it neither `{whole}` nor fitting `{left}` and `{right}`");
                return Err(wrong(self.key(any), reason));
            }
        };
        Ok(half)
    }
}
