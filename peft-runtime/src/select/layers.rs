//! `layers_to_transform` and `layers_pattern`: keeps only some members of a block list.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::pattern::Pattern;
use crate::error::Fault;

/// The block numbers in which layers are adapted: one number or several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "it is neither the number of a block nor a list of them")]
pub(crate) enum LayerIndices {
    /// One block.
    One(usize),
    /// Several blocks; an empty list does not filter.
    Many(Vec<usize>),
}

impl LayerIndices {
    fn contains(&self, index: usize) -> bool {
        match self {
            Self::One(one) => *one == index,
            Self::Many(many) => many.contains(&index),
        }
    }
}

impl fmt::Display for LayerIndices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(index) => write!(f, "{index}"),
            Self::Many(indices) => write!(f, "{indices:?}"),
        }
    }
}

/// The compiled filter.
#[derive(Debug)]
pub(crate) struct LayerFilter {
    indices: LayerIndices,
    patterns: Vec<Pattern>,
}

impl LayerFilter {
    /// The filter of a config, if it has one.
    pub(crate) fn new(
        indices: Option<&LayerIndices>,
        containers: Option<&[String]>,
    ) -> Result<Option<Self>, Fault> {
        let indices = match indices {
            None => return Ok(None),
            Some(LayerIndices::Many(many)) if many.is_empty() => return Ok(None),
            Some(indices) => indices.clone(),
        };
        let containers: Vec<&String> =
            containers.unwrap_or_default().iter().filter(|name| !name.is_empty()).collect();
        // Without a container name, PEFT requires a component before the container: `layers.3.q` by itself has no
        // index.
        let patterns = if containers.is_empty() {
            vec![Pattern::compile("layers_pattern", "", r"\A.*?\.[^.]*\.(?<peft_block>\d+)\.")?]
        } else {
            let compile = |name: &String| {
                Pattern::compile(
                    "layers_pattern",
                    name,
                    &format!(r"\A(?:.*?\.)?(?:{name})\.(?<peft_block>\d+)\."),
                )
            };
            containers.into_iter().map(compile).collect::<Result<_, _>>()?
        };
        Ok(Some(Self { indices, patterns }))
    }

    /// Whether the path lies in one of the blocks.
    pub(crate) fn admits(&self, path: &str) -> Result<bool, Fault> {
        for pattern in &self.patterns {
            if let Some(index) = pattern.capture(path, "peft_block")? {
                return Ok(index.parse().is_ok_and(|index| self.indices.contains(index)));
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::{LayerFilter, LayerIndices};

    fn admits(containers: Option<&[String]>, path: &str) -> bool {
        let filter = LayerFilter::new(Some(&LayerIndices::Many(vec![1])), containers).unwrap().unwrap();
        filter.admits(path).unwrap()
    }

    #[test]
    fn without_a_pattern_something_has_to_stand_before_the_container() {
        assert!(admits(None, "model.layers.1.q"));
        assert!(!admits(None, "layers.1.q"));
        assert!(admits(None, "model.layers.1.experts.0.q"));
        assert!(!admits(None, "model.layers.0.experts.1.q"));
    }

    #[test]
    fn a_pattern_starts_at_a_segment() {
        let layers = ["layers".to_owned()];
        assert!(admits(Some(&layers), "layers.1.q"));
        assert!(admits(Some(&layers), "model.layers.1.q"));
        assert!(!admits(Some(&layers), "xlayers.1.q"));
    }
}
