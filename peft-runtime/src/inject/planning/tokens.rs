//! Which rows of embeddings train.

use super::planner::Planner;
use crate::adapter::Geometry;
use crate::config::TokenIndices;
use crate::error::Fault;
use crate::inject::plan::PlannedContent;
use crate::layer::Layer;
use crate::module::Item;
use crate::ops::storage_address;
use crate::path::ModulePath;
use crate::schema::nearest_names;

/// The embedding that PEFT uses if a model declares none.
const INPUT_EMBEDDING: &str = "embed_tokens";

impl Planner<'_> {
    /// Finds the embeddings with rows that train, and the output layer that is tied to the input embedding.
    pub(super) fn choose_tokens(
        &mut self,
        indices: &TokenIndices,
        input: Option<&str>,
        output: Option<&str>,
    ) {
        let input = input.unwrap_or(INPUT_EMBEDDING);
        let by_name: Vec<(&str, &Vec<u32>)> = match indices {
            TokenIndices::Input(tokens) => vec![(input, tokens)],
            TokenIndices::ByName(lists) => {
                lists.iter().map(|(name, tokens)| (name.as_str(), tokens)).collect()
            }
        };
        for (name, tokens) in by_name {
            let found: Vec<_> = self.carriers().filter(|(path, _)| path.as_str().ends_with(name)).collect();
            if found.is_empty() && self.refuse_plain_table(name) {
                continue;
            }
            if found.is_empty() {
                let names: Vec<&str> = self.carriers().map(|(path, _)| path.last()).collect();
                let nearest = nearest_names(name, names);
                self.faults.push(Fault::UnmatchedTarget { target: name.to_owned(), nearest });
            }
            for (path, layer) in found {
                self.choose_token_layer(path, layer, tokens, output);
            }
        }
    }

    /// Refuses a plain layer of that name, if there is one.
    fn refuse_plain_table(&mut self, name: &str) -> bool {
        let items = self.items;
        let plain = items.iter().find_map(|item| match item {
            Item::Leaf { path, layer } if !layer.can_carry_adapters() && path.as_str().ends_with(name) => {
                Some((path, layer))
            }
            _ => None,
        });
        let Some((path, layer)) = plain else { return false };
        let (path, kind, can_be_adapted) = (path.clone(), layer.kind().name, layer.can_be_adapted());
        self.faults.push(Fault::PlainLayer { path, kind, can_be_adapted });
        true
    }

    fn choose_token_layer(
        &mut self,
        path: &ModulePath,
        layer: &dyn Layer,
        tokens: &[u32],
        output: Option<&str>,
    ) {
        let wrong = |reason: String| Fault::Tokens { path: path.clone(), reason };
        let rows = match layer.geometry() {
            Geometry::Embedding { vocabulary, .. } => vocabulary,
            Geometry::Linear { out_features, transposed: false, .. } => out_features,
            _ => {
                self.faults.push(wrong(format!("a {} has no rows for tokens", layer.kind())));
                return;
            }
        };
        if let Some(token) = tokens.iter().find(|token| **token as usize >= rows) {
            self.faults.push(wrong(format!("there is no token {token}: the layer has {rows} rows")));
        }
        if self.contents.contains_key(path) {
            self.faults.push(wrong("it is a target or one of `modules_to_save` as well".to_owned()));
        }
        self.contents.insert(path.clone(), PlannedContent::Tokens(tokens.to_vec()));
        let weight = layer.parameters().first().map(|(_, weight)| storage_address(weight));
        let tied = self.carriers().find(|(other, layer)| {
            let same = layer.parameters().first().map(|(_, weight)| storage_address(weight)) == weight;
            *other != path && same && weight.is_some() && output.is_some_and(|name| other.ends_with(name))
        });
        if let Some((other, _)) = tied.filter(|(other, _)| !self.contents.contains_key(*other)) {
            self.contents.insert(other.clone(), PlannedContent::TiedTokens(path.clone()));
        }
    }
}
