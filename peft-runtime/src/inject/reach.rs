//! What a config reaches beside whole layers: rows of embeddings, bare parameters.

use std::collections::BTreeMap;

use super::planner::Planner;
use crate::ModulePath;
use crate::adapter::Geometry;
use crate::config::TokenIndices;
use crate::error::Fault;
use crate::layer::AdaptedLayer;
use crate::module::{Item, Leaf};
use crate::ops::place;
use crate::schema::{Family, nearest_names};

/// Which rows of a layer train.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TokenPlan {
    /// These rows, as tensors of the adapter's own.
    Own(Vec<u32>),
    /// Those of another layer, whose weight is this one's too.
    TiedTo(ModulePath),
}

/// The embedding that PEFT takes where a model declares none.
const INPUT_EMBEDDING: &str = "embed_tokens";

impl<'a> Planner<'a> {
    /// Finds the embeddings of which rows train, and the output layer that is tied to the input embedding.
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
            let found: Vec<_> =
                self.adapted_layers().filter(|(path, _)| path.as_str().ends_with(name)).collect();
            if found.is_empty() && self.refuse_plain_table(name) {
                continue;
            }
            if found.is_empty() {
                let names: Vec<&str> = self.adapted_layers().map(|(path, _)| path.last()).collect();
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
            Item::Leaf { path, leaf: Leaf::Plain(layer) } if path.as_str().ends_with(name) => {
                Some((path, layer))
            }
            _ => None,
        });
        let Some((path, layer)) = plain else { return false };
        let (path, kind, can_be_adapted) = (path.clone(), layer.type_name(), layer.can_be_adapted());
        self.faults.push(Fault::PlainLayer { path, kind, can_be_adapted });
        true
    }

    fn choose_token_layer(
        &mut self,
        path: &ModulePath,
        layer: &dyn AdaptedLayer,
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
            self.faults.push(wrong(format!("there is no token {token}: it has {rows} rows")));
        }
        if self.adapted.contains(path) || self.copied.contains(path) {
            self.faults.push(wrong("it is a target or one of `modules_to_save` as well".to_owned()));
        }
        self.adapted.insert(path.clone());
        self.tokens.insert(path.clone(), TokenPlan::Own(tokens.to_vec()));
        let weight = layer.parameters().first().map(|(_, weight)| place(weight));
        let tied = self.adapted_layers().find(|(other, layer)| {
            let same = layer.parameters().first().map(|(_, weight)| place(weight)) == weight;
            *other != path && same && weight.is_some() && output.is_some_and(|name| other.ends_with(name))
        });
        if let Some((other, _)) = tied.filter(|(other, _)| !self.adapted.contains(*other)) {
            self.adapted.insert(other.clone());
            self.tokens.insert(other.clone(), TokenPlan::TiedTo(path.clone()));
        }
    }

    /// Finds the bare parameters that the config names; the answer is the names that match none.
    pub(super) fn choose_parameters(&mut self, names: &[String]) -> Vec<String> {
        let mut unmatched = names.to_vec();
        let items = self.items;
        for item in items {
            let Item::Leaf { path, leaf } = item else { continue };
            let Some(name) = names.iter().find(|name| path.ends_with(name)) else { continue };
            match leaf {
                Leaf::Adapted(layer) if layer.kind().family == Family::Parameter => {
                    unmatched.retain(|other| other != name);
                    if path.segments().count() == 1 {
                        let reason =
                            "a parameter of the model itself has no module that PEFT could name".to_owned();
                        self.faults.push(Fault::Tokens { path: path.clone(), reason });
                    }
                    self.choose_layer(path, *layer);
                }
                Leaf::Plain(layer) if layer.describe().is_none() => {
                    unmatched.retain(|other| other != name);
                    let (path, can_be_adapted) = (path.clone(), true);
                    self.faults.push(Fault::PlainLayer { path, kind: "Weight", can_be_adapted });
                }
                Leaf::Adapted(_) | Leaf::Plain(_) => {}
            }
        }
        unmatched
    }

    fn adapted_layers(&self) -> impl Iterator<Item = (&'a ModulePath, &'a dyn AdaptedLayer)> + use<'a> {
        self.items.iter().filter_map(|item| match item {
            Item::Leaf { path, leaf: Leaf::Adapted(layer) } => Some((path, *layer)),
            _ => None,
        })
    }
}

/// Where files have the adapters of bare parameters: PEFT wraps their module once for each, the first one innermost.
///
/// `parameters` are in model order.
pub(crate) fn stored_paths<'p>(
    parameters: impl IntoIterator<Item = &'p ModulePath>,
) -> BTreeMap<ModulePath, ModulePath> {
    let mut modules: BTreeMap<&str, Vec<&ModulePath>> = BTreeMap::new();
    for path in parameters {
        let module = path.as_str().rsplit_once('.').map(|(module, _)| module).unwrap_or_default();
        modules.entry(module).or_default().push(path);
    }
    let mut stored = BTreeMap::new();
    for (module, paths) in modules {
        for (place, path) in paths.iter().rev().enumerate() {
            stored.insert(
                (*path).clone(),
                ModulePath::from(format!("{module}{}", ".base_layer".repeat(place))),
            );
        }
    }
    stored
}
