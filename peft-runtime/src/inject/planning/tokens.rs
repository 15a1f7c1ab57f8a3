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
        let mut named = Vec::new();
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
            named.extend(found.into_iter().map(|(path, layer)| NamedRows { path, layer, tokens }));
        }
        for (number, rows) in named.iter().enumerate() {
            let is_output = output.is_some_and(|name| rows.path.ends_with(name));
            let owner = named[..number].iter().chain(&named[number + 1..]).find(|other| {
                is_output && has_rows(other.layer) && storage(other.layer) == storage(rows.layer)
            });
            match owner {
                // Both have the rows of the embedding.
                Some(owner) if owner.tokens == rows.tokens => {
                    let tied = PlannedContent::TiedTokens(owner.path.clone());
                    if self.contents.insert(rows.path.clone(), tied).is_some() {
                        let reason = "it is a target or one of `modules_to_save` as well".to_owned();
                        self.faults.push(Fault::Tokens { path: rows.path.clone(), reason });
                    }
                }
                Some(owner) if self.method.selection().ties => {
                    let reason = format!(
                        "it has other tokens than `{}`, whose weight it has; `ensure_weight_tying` wants the same",
                        owner.path
                    );
                    self.faults.push(Fault::Tokens { path: rows.path.clone(), reason });
                }
                _ => self.choose_token_layer(rows, &named, output),
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

    fn choose_token_layer(&mut self, rows: &NamedRows<'_>, named: &[NamedRows<'_>], output: Option<&str>) {
        let NamedRows { path, layer, tokens } = *rows;
        let wrong = |reason: String| Fault::Tokens { path: path.clone(), reason };
        let count = match layer.geometry() {
            Geometry::Embedding { vocabulary, .. } => vocabulary,
            Geometry::Linear { out_features, transposed: false, .. } => out_features,
            _ => {
                self.faults.push(wrong(format!("a {} has no rows for tokens", layer.kind())));
                return;
            }
        };
        if let Some(token) = tokens.iter().find(|token| **token as usize >= count) {
            self.faults.push(wrong(format!("there is no token {token}: the layer has {count} rows")));
        }
        if self.contents.contains_key(path) {
            self.faults.push(wrong("it is a target or one of `modules_to_save` as well".to_owned()));
        }
        self.contents.insert(path.clone(), PlannedContent::Tokens(tokens.clone()));
        let is_named = |other: &ModulePath| named.iter().any(|rows| rows.path == other);
        let tied = self.carriers().find(|(other, other_layer)| {
            let same = storage(layer).is_some() && storage(*other_layer) == storage(layer);
            *other != path && same && !is_named(other) && output.is_some_and(|name| other.ends_with(name))
        });
        let Some((other, _)) = tied else { return };
        match self.contents.get(other) {
            None => {
                self.contents.insert(other.clone(), PlannedContent::TiedTokens(path.clone()));
            }
            // PEFT's rows act in the output layer too, under its adapter.
            Some(PlannedContent::Adapter(_)) => {
                let reason = format!(
                    "rows of `{path}`, which has the same weight, train in it as well, and a layer has one of the two; leave it out of \
                     the targets, or merge the adapter into the base model's files"
                );
                self.faults.push(Fault::Tokens { path: other.clone(), reason });
            }
            Some(_) => {}
        }
    }
}

/// A layer of which rows train by name.
struct NamedRows<'a> {
    path: &'a ModulePath,
    layer: &'a dyn Layer,
    tokens: &'a Vec<u32>,
}

/// Where the layer's weight is in memory.
fn storage(layer: &dyn Layer) -> Option<(usize, usize)> {
    layer.parameters().first().map(|(_, weight)| storage_address(weight))
}

fn has_rows(layer: &dyn Layer) -> bool {
    matches!(layer.geometry(), Geometry::Embedding { .. })
}
