//! `trainable_token_indices`: which rows of embeddings train.

use std::collections::BTreeMap;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::common::ConfigFault;

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

impl TokenIndices {
    pub(crate) fn faults(&self) -> Vec<ConfigFault> {
        const FIELD: &str = "trainable_token_indices";
        let mut faults = Vec::new();
        let lists: Vec<&Vec<u32>> = match self {
            Self::Input(list) => vec![list],
            Self::ByName(lists) => lists.values().collect(),
        };
        for list in lists {
            let mut sorted = list.clone();
            sorted.sort_unstable();
            if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
                faults.push((FIELD, format!("the token {} is there twice", pair[0])));
            }
            if list.is_empty() {
                faults.push((FIELD, "a list of tokens is empty".to_owned()));
            }
        }
        faults
    }
}

/// `{}` and null mean that no rows train.
pub(crate) fn tokens_or_nothing<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<TokenIndices>, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::Null => Ok(None),
        Value::Object(fields) if fields.is_empty() => Ok(None),
        value => serde_json::from_value(value).map(Some).map_err(|_| {
            D::Error::custom("it is neither a list of tokens nor lists of tokens by the names of embeddings")
        }),
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
