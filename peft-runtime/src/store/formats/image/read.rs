//! A file read as an adapter for a base model.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::choice;
use super::component::Component;
use super::delta::Delta;
use super::file::{Components, components};
use super::layer::Layers;
use super::metadata::{self, Metadata};
use super::names::{self, Names};
use super::place::Place;
use super::replaced::Replaced;
use super::update::{Reader, Update, wrong};
use super::written::Written;
use super::{loha, lokr, lora};
use crate::error::{AdapterFileError, Result};
use crate::method::PeftConfig;
use crate::store::formats::format::Imported;
use crate::store::formats::{Base, Source};

/// Reads the parts of a file that are for `base`; without it, the only part, whose names have to be those of modules.
pub(super) fn adapter(source: &Source, base: Option<&Base>) -> Result<Imported> {
    let components = components(source)?;
    check_base(source, base, &components)?;
    let names = base.map(Names::of);
    let chosen = match &names {
        Some(names) => choice::components(source, names, &components)?,
        None => vec![only_component(&components)?],
    };
    let mut updates = Vec::new();
    let mut template = Map::new();
    for component in &chosen {
        let metadata = Metadata::of(source, component)?;
        for (module, keys) in components.get(component).into_iter().flatten() {
            let alpha = |path: &str, rank: usize| match &metadata {
                Some(metadata) => metadata.alpha(path, rank),
                None => Ok(None),
            };
            let update = Reader::new(source, module, keys).read(&alpha)?;
            let place = match &names {
                Some(names) => names::place(names, &update.key, module, component.flat)?,
                None => Place::whole(module),
            };
            updates.push((place, update));
        }
        if let Some(metadata) = metadata {
            check_lengths(&metadata, &updates)?;
            template = metadata.template();
        }
    }
    let Written { config, tensors } = written(updates, template, names.as_ref())?;
    let config = PeftConfig::from_json(&serde_json::to_string(&Value::Object(config))?)?;
    Ok(Imported { config, tensors, left_out: left_out(&components, &chosen) })
}

/// An error if a file of which only the names tell that it is diffusers' is for a language model: its alpha is in the config.
fn check_base(source: &Source, base: Option<&Base>, components: &Components) -> Result<()> {
    let config = base.and_then(|base| base.config.as_ref());
    let model_type = config.and_then(|config| config.get("model_type")).and_then(Value::as_str);
    let is_doubtful = !source.metadata().contains_key(metadata::FIELD)
        && components.keys().all(|component| component.prefix == "transformer.");
    match model_type.filter(|_| is_doubtful) {
        Some(model_type) => {
            let reason = format!(
                "the base model is a `{model_type}` of transformers, whose adapters have `adapter_config.json` next to them: it has alpha"
            );
            Err(AdapterFileError::NothingForBase { reason }.into())
        }
        None => Ok(()),
    }
}

/// The only part of a file that is read without the base model.
fn only_component(components: &Components) -> Result<Component> {
    let needs_base = |reason: String| AdapterFileError::NeedsBase { reason }.into();
    match components.keys().collect::<Vec<_>>().as_slice() {
        [one] if one.flat => Err(needs_base(format!(
            "the names behind `{}` have `_` for the dots of module paths",
            one.prefix
        ))),
        [one] => Ok(**one),
        several => {
            let labels: Vec<&str> = several.iter().map(|component| component.label()).collect();
            Err(needs_base(format!("it has parts for several models (`{}`)", labels.join("`, `"))))
        }
    }
}

/// An error if the header says that there are lengths, and there are none.
fn check_lengths(metadata: &Metadata, updates: &[(Place, Update)]) -> Result<()> {
    let missing = updates.iter().find(|(_, update)| update.lengths.is_none());
    match missing.filter(|_| metadata.has_lengths) {
        Some((_, update)) => Err(wrong(
            &update.key,
            "has no `lora_magnitude_vector` next to it, and the header says `use_dora`",
        )),
        None => Ok(()),
    }
}

/// The keys of the parts that are for other models.
fn left_out(components: &Components, chosen: &[Component]) -> Vec<String> {
    let others = components.iter().filter(|(component, _)| !chosen.contains(component));
    let keys = others.flat_map(|(_, modules)| modules.values().flat_map(BTreeMap::values));
    let mut keys: Vec<String> = keys.cloned().collect();
    keys.sort();
    keys
}

/// The adapter that does what the updates do.
fn written(
    updates: Vec<(Place, Update)>,
    template: Map<String, Value>,
    names: Option<&Names<'_>>,
) -> Result<Written> {
    let base = names.map(Names::base);
    let (mut layers, mut replaced) = (Layers::default(), Replaced::default());
    for (place, update) in &updates {
        let own = |path: &str| match names {
            Some(names) => names.weight(path).map(<[usize]>::to_vec),
            None => update.shape.clone(),
        };
        let is_vector =
            place.pieces.iter().all(|piece| own(&piece.module).is_some_and(|shape| shape.len() == 1));
        let mut delta = update.delta.clone();
        match &update.weight {
            Some(diff) if is_vector && update.lengths.is_none() => {
                replaced.add(place, "weight", &update.key, diff, base)?;
            }
            Some(diff) if diff.rank() > 1 => delta = Some(Delta::Dense(diff.flatten_from(1)?)),
            Some(diff) => {
                let reason = format!("has the shape {:?}, which is not that of a weight", diff.dims());
                return Err(wrong(&update.key, reason));
            }
            None => {}
        }
        if let Some(diff) = &update.bias {
            replaced.add(place, "bias", &update.key, diff, base)?;
        }
        if let Some(delta) = &delta {
            if names.is_none() && update.shape.is_none() {
                let reason = format!("the weight that `{}` changes tells its shape", update.key);
                return Err(AdapterFileError::NeedsBase { reason }.into());
            }
            layers.add(place, update, delta, &own)?;
        }
    }
    let layers = layers.finish()?;
    if let Some((_, update)) = updates.first().filter(|_| layers.is_empty()) {
        let reason = "is added to a norm or a bias, and the file has nothing else: such a file is no adapter of layers, and PEFT's form cannot hold it";
        return Err(wrong(&update.key, reason));
    }
    let adapted: Vec<String> = layers.keys().cloned().collect();
    let all = || names.into_iter().flat_map(Names::layers);
    let written = match (loha::write(&layers, all())?, lokr::write(&layers, all())?) {
        (Some(written), _) | (_, Some(written)) if template.is_empty() => written,
        _ => lora::write(layers, template, all(), base)?,
    };
    let Written { config, mut tensors } = written;
    tensors.extend(replaced.tensors(|module| adapted.iter().any(|path| path == module)));
    Ok(Written { config, tensors })
}
