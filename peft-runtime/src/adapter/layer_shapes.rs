//! What the shapes of tensors say about a layer.

use std::collections::BTreeMap;

use super::Geometry;
use crate::ops::conv::ConvSettings;

/// The shapes of an adapter's tensors on one layer, by the ends of their keys.
pub type LayerShapes = BTreeMap<String, Vec<usize>>;

/// A linear layer; the dimensions of its weight show whether it is stored transposed, unless both orientations fit.
pub(crate) fn linear_of(
    in_features: usize,
    out_features: usize,
    weight: Option<&[usize]>,
    transposed: bool,
) -> Geometry {
    let transposed = match weight {
        Some(&[rows, columns]) => match (columns == in_features, rows == in_features) {
            (true, false) => false,
            (false, true) => true,
            _ => transposed,
        },
        _ => transposed,
    };
    Geometry::Linear { in_features, out_features, transposed }
}

/// A convolution with the smallest padding, stride and dilation.
pub(crate) fn convolution_of(
    in_channels: usize,
    out_channels: usize,
    kernel: &[usize],
    groups: usize,
) -> Geometry {
    let settings = ConvSettings { padding: 0, stride: 1, dilation: 1, groups: groups.max(1) };
    Geometry::Conv { in_channels, out_channels, kernel: kernel.to_vec(), settings }
}

impl Geometry {
    /// The plainest layer with a weight of this shape: a linear one for `[out, in]`, or for `[in, out]` where it is stored
    /// transposed, and a convolution for `[out, in, …kernel]`. Without a weight, a linear one of size 1.
    ///
    /// This is for methods whose tensors say nothing about the layer.
    pub fn of_weight(weight: Option<&[usize]>, transposed: bool) -> Self {
        match *weight.unwrap_or(&[1, 1]) {
            [out_features, in_features] if !transposed => {
                Self::Linear { in_features, out_features, transposed }
            }
            [in_features, out_features] => Self::Linear { in_features, out_features, transposed },
            [out_channels, in_channels, ref kernel @ ..] => {
                convolution_of(in_channels, out_channels, kernel, 1)
            }
            _ => Self::Opaque,
        }
    }
}
