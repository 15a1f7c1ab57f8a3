//! Where in a base model the update of one module of a file belongs.

use std::ops::Range;

use candle_core::{Result, Tensor};

/// The modules of the base model that a module of a file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) pieces: Vec<Piece>,
}

/// A module of the base model with its part of an update.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// The module's path.
    pub(super) module: String,
    /// The outputs of the file's update that are the module's, in the module's order; empty if they are all of them.
    pub(super) taken: Vec<Range<usize>>,
    /// The outputs of the module that they are, if they are not all of them.
    pub(super) rows: Option<Range<usize>>,
}

impl Place {
    pub(super) fn whole(module: &str) -> Self {
        Self::of(vec![Piece { module: module.to_owned(), taken: Vec::new(), rows: None }])
    }

    pub(super) fn of(pieces: Vec<Piece>) -> Self {
        Self { pieces }
    }

    /// The modules, as a message lists them.
    pub(super) fn modules(&self) -> String {
        let modules: Vec<&str> = self.pieces.iter().map(|piece| piece.module.as_str()).collect();
        modules.join(", ")
    }
}

impl Piece {
    pub(super) fn taking<const N: usize>(module: &str, taken: [Range<usize>; N]) -> Self {
        Self { module: module.to_owned(), taken: taken.into(), rows: None }
    }

    pub(super) fn rows_of(module: &str, rows: Range<usize>) -> Self {
        Self { module: module.to_owned(), taken: Vec::new(), rows: Some(rows) }
    }

    /// How many outputs of the file's update belong to the module, if not all of them do.
    pub(super) fn outputs(&self) -> Option<usize> {
        (!self.taken.is_empty()).then(|| self.taken.iter().map(Range::len).sum())
    }

    /// What of a tensor with the update's outputs along `axis` is the module's.
    pub(super) fn take(&self, tensor: &Tensor, axis: usize) -> Result<Tensor> {
        if self.taken.is_empty() {
            return Ok(tensor.clone());
        }
        let ranges = self.taken.iter().map(|range| tensor.narrow(axis, range.start, range.len()));
        Tensor::cat(&ranges.collect::<Result<Vec<_>>>()?, axis)?.contiguous()
    }
}
