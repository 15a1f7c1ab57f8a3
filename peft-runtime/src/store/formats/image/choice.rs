//! Which parts of a file are for a base model.

use std::collections::BTreeMap;

use super::component::{Component, Role};
use super::file::{Components, ModuleKeys};
use super::key::Part;
use super::names::{Found, Names};
use super::place::Piece;
use crate::error::{AdapterFileError, Result};
use crate::store::formats::Source;

/// The parts that are for the base model.
///
/// # Errors
/// If there are none, or if there are parts for several text encoders and nothing tells which the base model is.
pub(super) fn components(
    source: &Source,
    names: &Names<'_>,
    components: &Components,
) -> Result<Vec<Component>> {
    let known = |component: &Component, modules: &BTreeMap<String, ModuleKeys>| {
        modules.keys().any(|module| !matches!(names.find(module, component.flat), Found::Nothing))
    };
    let mut found: Vec<Component> = components
        .iter()
        .filter(|(component, modules)| known(component, modules))
        .map(|(own, _)| *own)
        .collect();
    if let Some(number) = folder_number(names.base().folder.as_deref()) {
        found.retain(|component| !matches!(component.role, Role::Text(own) if own != number));
    }
    if text_numbers(&found).len() > 1 {
        let fits = |component: &Component| {
            components.get(component).is_some_and(|modules| fit(source, names, component, modules))
        };
        let fitting: Vec<Component> = found.iter().copied().filter(fits).collect();
        // If none fits, the error about shapes says more.
        found = if fitting.is_empty() { found } else { fitting };
    }
    if text_numbers(&found).len() > 1
        && let Some(number) = class_number(names)
    {
        found.retain(|component| !matches!(component.role, Role::Text(own) if own != number));
    }
    if text_numbers(&found).len() > 1 {
        let labels: Vec<&str> = found.iter().map(Component::label).collect();
        let reason = format!(
            "has parts for several text encoders ({}), and nothing tells which of them the base model is; its folder would, as `text_encoder_2`",
            labels.join(", ")
        );
        let key = found.first().map(|component| component.prefix.to_owned()).unwrap_or_default();
        return Err(AdapterFileError::Key { key, reason }.into());
    }
    if found.is_empty() {
        return Err(nothing(names, components).into());
    }
    Ok(found)
}

fn text_numbers(components: &[Component]) -> Vec<u8> {
    let mut numbers: Vec<u8> = components
        .iter()
        .filter_map(|component| match component.role {
            Role::Text(number) => Some(number),
            _ => None,
        })
        .collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers
}

/// The number of the text encoder in a folder of a pipeline.
fn folder_number(folder: Option<&str>) -> Option<u8> {
    match folder? {
        "text_encoder" => Some(1),
        "text_encoder_2" => Some(2),
        "text_encoder_3" => Some(3),
        _ => None,
    }
}

/// The number of the text encoder that its class stands for: of a pipeline's two of CLIP, the second one projects.
fn class_number(names: &Names<'_>) -> Option<u8> {
    let architectures = names.base().config.as_ref()?.get("architectures")?.as_array()?;
    match architectures.first()?.as_str()? {
        "CLIPTextModel" => Some(1),
        "CLIPTextModelWithProjection" => Some(2),
        _ => None,
    }
}

/// Whether all modules of a part are in the base model, and the sides of their factors are those of its weights.
fn fit(
    source: &Source,
    names: &Names<'_>,
    component: &Component,
    modules: &BTreeMap<String, ModuleKeys>,
) -> bool {
    let shape = |keys: &ModuleKeys, part: Part| source.shape(keys.get(&part)?).map(<[usize]>::to_vec);
    modules.iter().all(|(module, keys)| {
        let Found::Place(place) = names.find(module, component.flat) else { return false };
        let [Piece { module: path, taken, rows: None }] = place.pieces.as_slice() else { return true };
        let Some(weight) = names.weight(path).filter(|_| taken.is_empty()) else { return true };
        let outputs = shape(keys, Part::Up).and_then(|shape| shape.first().copied());
        let inputs = shape(keys, Part::Down).map(|shape| shape.iter().skip(1).product::<usize>());
        outputs.is_none_or(|outputs| weight.first() == Some(&outputs))
            && inputs.is_none_or(|inputs| weight.iter().skip(1).product::<usize>() == inputs)
    })
}

/// The error about a file with nothing for the base model.
fn nothing(names: &Names<'_>, components: &Components) -> AdapterFileError {
    let labels: Vec<&str> = components.keys().map(Component::label).collect();
    let first = components.iter().find_map(|(component, modules)| {
        let (module, keys) = modules.first_key_value()?;
        Some((component, module, keys.first_key_value()?.1))
    });
    let mut reason = match labels.as_slice() {
        [one] => format!("it has `{one}`"),
        several => format!("it has `{}`", several.join("`, `")),
    };
    if let Some((component, module, key)) = first
        && let AdapterFileError::Key { reason: unknown, .. } = names.unknown(key, module, component.flat)
    {
        reason = format!("{reason}, and `{key}` {unknown}");
    }
    AdapterFileError::NothingForBase { reason }
}
