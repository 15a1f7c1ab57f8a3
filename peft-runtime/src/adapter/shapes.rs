//! What an adapter's tensors on one layer say about the layer.

use std::collections::BTreeMap;

use super::lora::{EMBEDDING_KEYS, LAYER_KEYS};
use super::{Geometry, TrainableTokens, adalora, ia3};
use crate::ops::conv::ConvSettings;

/// The shapes of an adapter's tensors on one layer, by the ends of their keys.
pub(crate) type LayerShapes = BTreeMap<String, Vec<usize>>;

/// More rows than any embedding has, where the number is not known.
const MANY_ROWS: usize = 0xffff_ffff;

/// A key taken apart into the path of the layer and the end that names the tensor; `None` for a key of the base model or
/// of a layer that trains in full.
pub(crate) fn split_layer_key(key: &str) -> Option<(&str, &str)> {
    let tokens = format!(".{}", TrainableTokens::KEY);
    let at =
        [".lora_", ".ia3_l", tokens.as_str()].into_iter().filter_map(|marker| key.rfind(marker)).max()?;
    Some((&key[..at], &key[at + 1..]))
}

impl Geometry {
    /// The geometry of the layer that has these tensors of an adapter and, where it is known, a weight of this shape.
    ///
    /// `transposed` says how a square weight of a linear layer lies. What neither the tensors nor the weight show — how a
    /// window moves, the other side of a layer that has a vector alone — is left at its least, which merging and combining
    /// do not look at. `None` if the tensors belong to no method.
    pub(crate) fn of_tensors(
        shapes: &LayerShapes,
        weight: Option<&[usize]>,
        transposed: bool,
    ) -> Option<Self> {
        let shape = |key: &str| shapes.get(key).map(Vec::as_slice);
        if let (Some(&[_, vocabulary]), Some(&[features, _])) =
            (shape(EMBEDDING_KEYS.a), shape(EMBEDDING_KEYS.b))
        {
            return Some(Self::Embedding { vocabulary, features, padding: None });
        }
        if let Some(&[_, features]) = shape(TrainableTokens::KEY) {
            let vocabulary = weight.and_then(|weight| weight.first().copied()).unwrap_or(MANY_ROWS);
            return Some(Self::Embedding { vocabulary, features, padding: None });
        }
        match (shape(LAYER_KEYS.a), shape(LAYER_KEYS.b)) {
            (Some(&[_, in_features]), Some(&[out_features, _])) => {
                return Some(linear(in_features, out_features, weight, transposed));
            }
            (Some(&[rank, in_channels, ref kernel @ ..]), Some(&[out_channels, group_ranks, ..])) => {
                let groups = rank / group_ranks.max(1);
                return Some(convolution(in_channels, out_channels, kernel, groups));
            }
            _ => {}
        }
        if let (Some(&[_, fan_in]), Some(&[out_features, _])) = (shape(adalora::A), shape(adalora::B)) {
            return Some(match weight {
                Some(&[out_channels, in_channels, ref kernel @ ..]) if !kernel.is_empty() => {
                    convolution(in_channels, out_channels, kernel, 1)
                }
                _ => linear(fan_in, out_features, weight, transposed),
            });
        }
        scaled(shape(ia3::KEY)?, weight, transposed)
    }
}

/// A linear layer; the sides of its weight tell how it lies, unless both fit.
fn linear(in_features: usize, out_features: usize, weight: Option<&[usize]>, transposed: bool) -> Geometry {
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

fn convolution(in_channels: usize, out_channels: usize, kernel: &[usize], groups: usize) -> Geometry {
    let settings = ConvSettings { padding: 0, stride: 1, dilation: 1, groups: groups.max(1) };
    Geometry::Conv { in_channels, out_channels, kernel: kernel.to_vec(), settings }
}

/// A layer with a vector over its outputs, `[out, 1]`, or over its inputs, `[1, in]`; of a convolution `[1, channels, 1, 1]`.
fn scaled(vector: &[usize], weight: Option<&[usize]>, transposed: bool) -> Option<Geometry> {
    match *vector {
        [out_features, 1] => Some(match weight {
            Some(&[rows, columns]) => {
                let transposed = match (rows == out_features, columns == out_features) {
                    (true, false) => false,
                    (false, true) => true,
                    _ => transposed,
                };
                let in_features = if transposed { rows } else { columns };
                Geometry::Linear { in_features, out_features, transposed }
            }
            _ => Geometry::Linear { in_features: 1, out_features, transposed },
        }),
        [1, in_features] => {
            let Geometry::Linear { transposed, .. } = linear(in_features, 1, weight, transposed) else {
                return None;
            };
            let out_features = match weight {
                Some(&[rows, columns]) => {
                    if transposed {
                        columns
                    } else {
                        rows
                    }
                }
                _ => 1,
            };
            Some(Geometry::Linear { in_features, out_features, transposed })
        }
        [1, channels, ref kernel @ ..] => Some(match weight {
            // Where the vector may be over the inputs it is taken to be: one over the outputs does not look at groups.
            Some(&[out_channels, own, ref kernel @ ..]) if channels.is_multiple_of(own.max(1)) => {
                convolution(channels, out_channels, kernel, channels / own.max(1))
            }
            Some(&[out_channels, own, ref kernel @ ..]) => convolution(own, out_channels, kernel, 1),
            _ => convolution(channels, channels, kernel, 1),
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{Geometry, LayerShapes, split_layer_key};

    fn shapes(all: &[(&str, &[usize])]) -> LayerShapes {
        all.iter().map(|(key, shape)| ((*key).to_owned(), shape.to_vec())).collect()
    }

    fn linear(in_features: usize, out_features: usize, transposed: bool) -> Option<Geometry> {
        Some(Geometry::Linear { in_features, out_features, transposed })
    }

    #[test]
    fn keys_are_taken_apart_where_the_method_begins() {
        assert_eq!(split_layer_key("a.b.lora_A.weight"), Some(("a.b", "lora_A.weight")));
        assert_eq!(split_layer_key("a.lora_B.bias"), Some(("a", "lora_B.bias")));
        assert_eq!(split_layer_key("a.ia3_l"), Some(("a", "ia3_l")));
        let tokens = "e.token_adapter.trainable_tokens_delta";
        assert_eq!(split_layer_key(tokens), Some(("e", "token_adapter.trainable_tokens_delta")));
        assert_eq!(split_layer_key("classifier.weight"), None);
        assert_eq!(split_layer_key("e.token_adapter.base_layer.weight"), None);
    }

    #[test]
    fn the_weight_tells_how_it_lies_unless_it_is_square() {
        let lora = shapes(&[("lora_A.weight", &[2, 5]), ("lora_B.weight", &[7, 2])]);
        assert_eq!(Geometry::of_tensors(&lora, None, true), linear(5, 7, true));
        assert_eq!(Geometry::of_tensors(&lora, Some(&[7, 5]), true), linear(5, 7, false));
        assert_eq!(Geometry::of_tensors(&lora, Some(&[5, 7]), false), linear(5, 7, true));
        // Part of a fused weight: the other side is longer.
        assert_eq!(Geometry::of_tensors(&lora, Some(&[21, 5]), true), linear(5, 7, false));
        let square = shapes(&[("lora_A.weight", &[2, 5]), ("lora_B.weight", &[5, 2])]);
        assert_eq!(Geometry::of_tensors(&square, Some(&[5, 5]), true), linear(5, 5, true));
    }

    #[test]
    fn vectors_are_over_one_side() {
        let out = shapes(&[("ia3_l", &[7, 1])]);
        assert_eq!(Geometry::of_tensors(&out, Some(&[7, 5]), true), linear(5, 7, false));
        let input = shapes(&[("ia3_l", &[1, 5])]);
        assert_eq!(Geometry::of_tensors(&input, Some(&[7, 5]), false), linear(5, 7, false));
        assert_eq!(Geometry::of_tensors(&input, Some(&[5, 7]), false), linear(5, 7, true));
        assert_eq!(Geometry::of_tensors(&shapes(&[]), Some(&[5, 7]), false), None);
    }

    #[test]
    fn groups_follow_from_the_factors() {
        let lora = shapes(&[("lora_A.weight", &[4, 6, 3, 3]), ("lora_B.weight", &[8, 2, 1, 1])]);
        let Some(Geometry::Conv { in_channels, out_channels, kernel, settings }) =
            Geometry::of_tensors(&lora, None, false)
        else {
            panic!("no convolution");
        };
        assert_eq!((in_channels, out_channels, kernel.as_slice(), settings.groups), (6, 8, &[3, 3][..], 2));
    }
}
