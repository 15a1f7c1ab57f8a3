//! The names that the modules of a base model may have in adapter files, all of them made from the base model's own.

use std::collections::BTreeMap;

use super::flux;
use super::place::Place;
use super::unet::Unet;
use crate::error::{AdapterFileError, Result};
use crate::schema::nearest_names;
use crate::store::formats::Base;

/// The modules of a base model, by every name that a file may have for them.
pub(super) struct Names<'b> {
    base: &'b Base,
    /// By the base model's own paths and by those of other programs.
    dotted: BTreeMap<String, Vec<Place>>,
    /// The same with `_` for `.`.
    flat: BTreeMap<String, Vec<Place>>,
}

/// What a name means.
pub(super) enum Found {
    Place(Place),
    Several(Vec<String>),
    Nothing,
}

impl<'b> Names<'b> {
    pub(super) fn of(base: &'b Base) -> Self {
        let mut modules: Vec<&str> =
            base.shapes.keys().filter_map(|name| Some(name.rsplit_once('.')?.0)).collect();
        modules.dedup();
        let unet = Unet::of(modules.iter().copied());
        let weight = |module: &str| base.shapes.get(&format!("{module}.weight")).map(Vec::as_slice);
        let flux = flux::Modules { weight: &weight };
        let mut names = Self { base, dotted: BTreeMap::new(), flat: BTreeMap::new() };
        for module in modules {
            names.add(module.to_owned(), Place::whole(module));
            for alias in unet.name(module).into_iter().chain(other_spelling(module)) {
                names.add(alias, Place::whole(module));
            }
            for (alias, place) in flux.aliases(module) {
                names.add(alias, place);
            }
        }
        names
    }

    fn add(&mut self, name: String, place: Place) {
        for (names, name) in [(&mut self.flat, name.replace('.', "_")), (&mut self.dotted, name)] {
            let places = names.entry(name).or_default();
            if !places.contains(&place) {
                places.push(place.clone());
            }
        }
    }

    /// What the name of a module in a file means.
    pub(super) fn find(&self, name: &str, flat: bool) -> Found {
        if !flat && self.has_module(name) {
            return Found::Place(Place::whole(name));
        }
        let names = if flat { &self.flat } else { &self.dotted };
        let mut places = names.get(name).map(Vec::as_slice).unwrap_or_default();
        if places.is_empty() && !flat {
            places = self.dotted.get(&current_spelling(name)).map(Vec::as_slice).unwrap_or_default();
        }
        match places {
            [] => Found::Nothing,
            [place] => Found::Place(place.clone()),
            several => Found::Several(several.iter().map(Place::modules).collect()),
        }
    }

    /// The error about a key whose module is called `name`, which is that of no module.
    pub(super) fn unknown(&self, key: &str, name: &str, flat: bool) -> AdapterFileError {
        let names = if flat { &self.flat } else { &self.dotted };
        let nearest = nearest_names(name, names.keys().map(String::as_str));
        let reason = match nearest.first() {
            Some(nearest) => {
                format!("belongs to no module of the base model; the nearest name is `{nearest}`")
            }
            None => "belongs to no module of the base model, and no name there is near it".to_owned(),
        };
        AdapterFileError::Key { key: key.to_owned(), reason }
    }

    /// The shape of the weight of the module at `path`, if it has one.
    pub(super) fn weight(&self, path: &str) -> Option<&'b [usize]> {
        self.base.shapes.get(&format!("{path}.weight")).map(Vec::as_slice)
    }

    /// The modules of the base model with weights that have two sides.
    pub(super) fn layers(&self) -> impl Iterator<Item = &'b str> {
        let weights = self.base.shapes.iter().filter(|(_, shape)| shape.len() > 1);
        weights.filter_map(|(name, _)| name.strip_suffix(".weight"))
    }

    /// The base model itself.
    pub(super) fn base(&self) -> &'b Base {
        self.base
    }

    fn has_module(&self, path: &str) -> bool {
        ["weight", "bias"]
            .iter()
            .any(|parameter| self.base.shapes.contains_key(&format!("{path}.{parameter}")))
    }
}

/// An error as [`Found`] says it, or the place.
pub(super) fn place(names: &Names<'_>, key: &str, name: &str, flat: bool) -> Result<Place> {
    match names.find(name, flat) {
        Found::Place(place) => Ok(place),
        Found::Several(candidates) => {
            Err(AdapterFileError::Ambiguous { key: key.to_owned(), candidates }.into())
        }
        Found::Nothing => Err(names.unknown(key, name, flat).into()),
    }
}

/// The name that a text encoder's module has in files of those versions of transformers that leave `text_model` out, or write
/// it.
fn other_spelling(module: &str) -> Option<String> {
    match module.strip_prefix("text_model.") {
        Some(rest) => Some(rest.to_owned()),
        None => {
            let is_encoder = ["encoder.layers.", "embeddings.", "final_layer_norm"]
                .iter()
                .any(|start| module.starts_with(start));
            is_encoder.then(|| format!("text_model.{module}"))
        }
    }
}

/// What diffusers' names from before it used PEFT are today: without `processor`, and with the layers' own names.
pub(super) fn current_spelling(name: &str) -> String {
    const PROJECTIONS: [(&str, &str); 4] =
        [("to_q", "q_proj"), ("to_k", "k_proj"), ("to_v", "v_proj"), ("to_out", "out_proj")];
    let name = name.replace(".processor.", ".");
    let name = name.strip_suffix(".processor").unwrap_or(&name);
    let Some((outer, last)) = name.rsplit_once('.') else { return name.to_owned() };
    let projection = PROJECTIONS.iter().find(|(old, _)| *old == last).map(|(_, name)| *name);
    match projection.filter(|_| outer.ends_with("self_attn")) {
        Some(projection) => format!("{outer}.{projection}"),
        None if last == "to_out" => format!("{name}.0"),
        None => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::current_spelling;

    #[test]
    fn names_from_before_peft_become_those_of_layers() {
        for (old, new) in [
            ("a.attn1.processor.to_q", "a.attn1.to_q"),
            ("a.attn1.processor.to_out", "a.attn1.to_out.0"),
            ("a.attn1.to_out.0", "a.attn1.to_out.0"),
            ("layers.0.self_attn.to_out", "layers.0.self_attn.out_proj"),
            ("layers.0.self_attn.to_v", "layers.0.self_attn.v_proj"),
            ("layers.0.mlp.fc1", "layers.0.mlp.fc1"),
            ("conv_in", "conv_in"),
        ] {
            assert_eq!(current_spelling(old), new);
        }
    }
}
