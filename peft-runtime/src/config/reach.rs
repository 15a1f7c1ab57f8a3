//! What a LoRA config reaches beside whole layers: single tokens, bare parameters, repeated blocks.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::common::ConfigFault;

/// The fields of LoRA's config for tokens, parameters and blocks.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct ReachFields {
    #[serde(default)]
    pub(crate) trainable_token_indices: Option<TokenIndices>,
    #[serde(default)]
    pub(crate) target_parameters: Option<Vec<String>>,
    #[serde(default)]
    pub(crate) layer_replication: Option<Vec<(usize, usize)>>,
}

/// Which rows of embeddings train.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
#[non_exhaustive]
pub enum TokenIndices {
    /// Rows of the model's input embedding.
    Input(Vec<u32>),
    /// Rows of the embeddings with these names.
    ByName(BTreeMap<String, Vec<u32>>),
}

impl ReachFields {
    pub(crate) fn faults(&self) -> Vec<ConfigFault> {
        let mut faults = Vec::new();
        if let Some((start, end)) = self.layer_replication.iter().flatten().find(|(start, end)| start >= end)
        {
            faults.push(("layer_replication", format!("the range {start}..{end} holds no block")));
        }
        let lists: Vec<&Vec<u32>> = match &self.trainable_token_indices {
            Some(TokenIndices::Input(list)) => vec![list],
            Some(TokenIndices::ByName(lists)) => lists.values().collect(),
            None => Vec::new(),
        };
        for list in lists {
            let mut sorted = list.clone();
            sorted.sort_unstable();
            if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
                faults.push(("trainable_token_indices", format!("the token {} is there twice", pair[0])));
            }
            if list.is_empty() {
                faults.push(("trainable_token_indices", "a list of tokens is empty".to_owned()));
            }
        }
        faults
    }
}

impl From<Vec<u32>> for TokenIndices {
    fn from(tokens: Vec<u32>) -> Self {
        Self::Input(tokens)
    }
}

impl<const N: usize> From<[u32; N]> for TokenIndices {
    fn from(tokens: [u32; N]) -> Self {
        Self::Input(tokens.to_vec())
    }
}

impl<S: Into<String>, const N: usize> From<[(S, Vec<u32>); N]> for TokenIndices {
    fn from(tokens: [(S, Vec<u32>); N]) -> Self {
        Self::ByName(tokens.into_iter().map(|(name, tokens)| (name.into(), tokens)).collect())
    }
}
