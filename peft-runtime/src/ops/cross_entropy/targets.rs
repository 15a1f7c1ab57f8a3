//! The targets of a classification.

use candle_core::{DType, Result, Tensor, bail};

/// The class of every row; none where a row is left out.
pub(super) struct Targets {
    classes: Vec<Option<usize>>,
    kept: usize,
}

impl Targets {
    /// Reads integer targets of shape `dims`, which are below `vocabulary` or `ignore_index`.
    pub(super) fn read(
        targets: &Tensor,
        dims: &[usize],
        vocabulary: usize,
        ignore_index: Option<i64>,
    ) -> Result<Self> {
        if targets.dims() != dims {
            bail!("the targets have shape {:?}, expected that of the rows, {dims:?}", targets.dims())
        }
        if !targets.dtype().is_int() {
            bail!("the targets are {:?}, expected integers", targets.dtype())
        }
        let class = |target: i64| -> Result<Option<usize>> {
            match usize::try_from(target) {
                _ if ignore_index == Some(target) => Ok(None),
                Ok(class) if class < vocabulary => Ok(Some(class)),
                _ => bail!("target {target} is outside of the vocabulary of {vocabulary}"),
            }
        };
        let values = targets.flatten_all()?.to_dtype(DType::I64)?.to_vec1::<i64>()?;
        let classes = values.into_iter().map(class).collect::<Result<Vec<_>>>()?;
        let kept = classes.iter().flatten().count();
        match (kept, ignore_index) {
            (1.., _) => Ok(Self { classes, kept }),
            (0, Some(ignored)) if !classes.is_empty() => {
                bail!("no target counts: all {} are {ignored}, which is ignored", classes.len())
            }
            _ => bail!("no target counts: there are 0 targets"),
        }
    }

    /// The class of every row.
    pub(super) fn classes(&self) -> &[Option<usize>] {
        &self.classes
    }

    /// How many rows count, which is at least one: what a mean divides by.
    pub(super) fn divisor(&self) -> f64 {
        self.kept as f64
    }

    /// The rows that count, each with its class.
    pub(super) fn kept(&self) -> Vec<Kept> {
        let rows = self.classes.iter().enumerate();
        rows.filter_map(|(row, class)| class.map(|class| Kept { row, class })).collect()
    }
}

/// How many of `targets`, integers of any shape, count: those that are not `ignore_index`.
///
/// The mean over a batch in which none counts is not a number, so the losses refuse such a batch. A loop can look first, and
/// leave it out:
///
/// ```
/// use candle_core::{Device, Tensor};
/// use peft_runtime::nn::count_targets;
///
/// let masked = Tensor::new(&[[-100i64, -100], [-100, -100]], &Device::Cpu)?;
/// assert_eq!(count_targets(&masked, -100)?, 0);
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// If the targets are not integers.
pub fn count_targets(targets: &Tensor, ignore_index: i64) -> Result<usize> {
    if !targets.dtype().is_int() {
        bail!("the targets are {:?}, expected integers", targets.dtype())
    }
    let values = targets.flatten_all()?.to_dtype(DType::I64)?.to_vec1::<i64>()?;
    Ok(values.into_iter().filter(|target| *target != ignore_index).count())
}

/// A row that counts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kept {
    pub(super) row: usize,
    pub(super) class: usize,
}

/// Rows and classes as tensors for `index_select` and `gather`: `[rows]` and `[rows, 1]`.
pub(super) fn index_tensors(kept: &[Kept], like: &Tensor) -> Result<(Tensor, Tensor)> {
    let rows: Vec<u32> = kept.iter().map(|kept| kept.row as u32).collect();
    let classes: Vec<u32> = kept.iter().map(|kept| kept.class as u32).collect();
    let classes = Tensor::from_vec(classes, (kept.len(), 1), like.device())?;
    Ok((Tensor::from_vec(rows, kept.len(), like.device())?, classes))
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};

    use super::{Targets, count_targets};

    #[test]
    fn rows_are_kept_or_left_out_and_others_are_named() {
        let targets = Tensor::new(&[[2i64, -100], [0, 3]], &Device::Cpu).unwrap();
        let read = Targets::read(&targets, &[2, 2], 4, Some(-100)).unwrap();
        assert_eq!(read.classes(), [Some(2), None, Some(0), Some(3)]);
        assert_eq!((read.divisor(), read.kept().len()), (3.0, 3));

        let message = |targets: &Tensor, vocabulary, ignore| {
            Targets::read(targets, &[2, 2], vocabulary, ignore).err().map(|error| error.to_string())
        };
        let too_high = message(&targets, 3, Some(-100)).unwrap();
        assert!(too_high.contains("target 3 is outside of the vocabulary of 3"), "{too_high}");
        let negative = message(&targets, 4, None).unwrap();
        assert!(negative.contains("target -100 is outside"), "{negative}");
        let floats = message(&targets.to_dtype(DType::F32).unwrap(), 4, None).unwrap();
        assert!(floats.contains("expected integers"), "{floats}");
        assert!(Targets::read(&targets, &[4], 4, Some(-100)).is_err());
    }

    #[test]
    fn targets_of_which_none_counts_are_refused_with_their_number() {
        let message = |targets: &Tensor, ignore| {
            Targets::read(targets, targets.dims(), 4, ignore).err().map(|error| error.to_string())
        };
        let masked = Tensor::new(&[[-100i64, -100, -100], [-100, -100, -100]], &Device::Cpu).unwrap();
        let text = message(&masked, Some(-100)).unwrap();
        assert!(text.contains("no target counts: all 6 are -100, which is ignored"), "{text}");
        let other = Tensor::new(&[3u32, 3], &Device::Cpu).unwrap();
        assert!(message(&other, Some(3)).unwrap().contains("all 2 are 3"));
        assert_eq!(message(&other, Some(-100)), None);
        let none = Tensor::zeros(0, DType::U32, &Device::Cpu).unwrap();
        assert!(message(&none, None).unwrap().contains("there are 0 targets"));
        assert_eq!(count_targets(&masked, -100).unwrap(), 0);
        assert_eq!(count_targets(&other, -100).unwrap(), 2);
    }
}
