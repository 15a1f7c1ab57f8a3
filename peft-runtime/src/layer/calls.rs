//! Whether a layer has run: what a gradient audit needs to distinguish a layer that is left out from a gradient that is
//! lost.

use std::sync::atomic::{AtomicU8, Ordering};

/// How a layer has run so far, in increasing order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Called {
    /// Not at all.
    Never,
    /// Only under [`no_grad`](super::no_grad).
    OutsideGraph,
    /// As part of a graph.
    InGraph,
}

/// The highest of the ways in which a layer has run. A clone starts with the original's value.
#[derive(Debug)]
pub(super) struct Calls(AtomicU8);

impl Calls {
    pub(super) fn none() -> Self {
        Self(AtomicU8::new(Called::Never as u8))
    }

    /// Notes a forward pass.
    pub(super) fn note(&self, tracks: bool) {
        let called = if tracks { Called::InGraph } else { Called::OutsideGraph };
        self.0.fetch_max(called as u8, Ordering::Relaxed);
    }

    pub(super) fn highest(&self) -> Called {
        let value = self.0.load(Ordering::Relaxed);
        let known = [Called::InGraph, Called::OutsideGraph].into_iter().find(|called| *called as u8 == value);
        known.unwrap_or(Called::Never)
    }
}

impl Clone for Calls {
    fn clone(&self) -> Self {
        Self(AtomicU8::new(self.highest() as u8))
    }
}

#[cfg(test)]
mod tests {
    use super::{Called, Calls};

    #[test]
    fn the_highest_way_counts_and_clones_go_on_alone() {
        let calls = Calls::none();
        assert_eq!(calls.highest(), Called::Never);
        calls.note(false);
        assert_eq!(calls.highest(), Called::OutsideGraph);
        let clone = calls.clone();
        clone.note(true);
        clone.note(false);
        assert_eq!((calls.highest(), clone.highest()), (Called::OutsideGraph, Called::InGraph));
    }
}
