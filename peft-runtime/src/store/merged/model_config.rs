//! The `config.json` of merged weights, where it cannot be the base model's.

use serde_json::{Value, json};

use super::MergedWeights;
use super::shard::Shard;
use crate::error::{Error, Result};
use crate::path::ModulePath;
use crate::store::model_facts::for_each_part;
use crate::store::model_weights::ModelWeights;
use crate::store::tied::{KEY, Tie, is_head, is_table};

/// The key of the number of tokens.
const VOCABULARY: &str = "vocab_size";

/// Embeddings or a head with another number of rows than the base model's.
struct Resized {
    name: String,
    rows: usize,
    new_rows: usize,
}

impl MergedWeights<ModelWeights> {
    /// The config of the merged weights, if it is not the base model's.
    pub(super) fn merged_config(&self, shards: &[Shard<'_>]) -> Result<Option<Value>> {
        let sizes = self.new_vocabulary(shards)?;
        let Some(base) = self.config.as_deref() else { return Ok(None) };
        let mut config = base.clone();
        if self.parted().is_some() {
            for_each_part(&mut config, &mut |part| {
                if part.contains_key(KEY) {
                    part.insert(KEY.to_owned(), json!(false));
                }
            });
            if let Value::Object(fields) = &mut config {
                fields.insert(KEY.to_owned(), json!(false));
            }
        }
        if let Some(Resized { name, rows, new_rows }) = sizes {
            let mut found = false;
            for_each_part(&mut config, &mut |part| {
                if part.get(VOCABULARY).and_then(Value::as_u64) == Some(rows as u64) {
                    part.insert(VOCABULARY.to_owned(), json!(new_rows));
                    found = true;
                }
            });
            if !found {
                let reason = format!(
                    "it would have {new_rows} rows instead of {rows}, and the base model's `config.json` has no `{VOCABULARY}` of \
                     {rows} that could become {new_rows}"
                );
                return Err(self.cannot_merge(&ModulePath::from(name.as_str()), reason));
            }
        }
        Ok((config != *base).then_some(config))
    }

    /// The new number of tokens, if adapters bring embeddings or a head of another size.
    fn new_vocabulary(&self, shards: &[Shard<'_>]) -> Result<Option<Resized>> {
        let table = self.tie().map(Tie::table_weight);
        let mut all: Vec<Resized> = Vec::new();
        for tensor in shards.iter().flat_map(|shard| &shard.tensors) {
            let Some(module) =
                tensor.name.strip_suffix(".weight").filter(|name| is_table(name) || is_head(name))
            else {
                continue;
            };
            let base = self.facts().shape(&tensor.name);
            let base = base.or_else(|| self.facts().shape(table.as_deref()?)).unwrap_or(&tensor.shape);
            let (Some(rows), Some(new_rows)) = (base.first().copied(), tensor.shape.first().copied()) else {
                continue;
            };
            all.push(Resized { name: module.to_owned(), rows, new_rows });
        }
        let Some(at) = all.iter().position(|sizes| sizes.rows != sizes.new_rows) else { return Ok(None) };
        let resized = all.swap_remove(at);
        let is_apart = |other: &&Resized| {
            let grows = other.rows == resized.rows || other.rows != other.new_rows;
            grows && other.new_rows != resized.new_rows
        };
        match all.iter().find(is_apart) {
            Some(other) => Err(apart(self, &resized, other)),
            None => Ok(Some(resized)),
        }
    }
}

/// Head and embeddings that do not grow together.
fn apart(merged: &MergedWeights<ModelWeights>, first: &Resized, second: &Resized) -> Error {
    let reason = format!(
        "it would have {} rows, and `{}` {}: the vocabulary was resized, and the adapter's file has not both of them; save it with \
         its embedding layers",
        second.new_rows, first.name, first.new_rows
    );
    merged.cannot_merge(&ModulePath::from(second.name.as_str()), reason)
}
