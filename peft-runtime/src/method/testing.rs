//! What the tests of methods share.

use crate::adapter::{Geometry, LayerShapes};

/// Shapes by the ends of their keys.
pub(super) fn shapes(all: &[(&str, &[usize])]) -> LayerShapes {
    all.iter().map(|(key, shape)| ((*key).to_owned(), shape.to_vec())).collect()
}

pub(super) fn linear(in_features: usize, out_features: usize, transposed: bool) -> Option<Geometry> {
    Some(Geometry::Linear { in_features, out_features, transposed })
}
