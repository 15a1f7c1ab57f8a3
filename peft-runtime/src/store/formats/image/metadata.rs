//! What diffusers writes into a file's header: the config of each component, its fields with the component's name before them.

use serde_json::{Map, Value};

use super::component::Component;
use crate::config::PatternMap;
use crate::error::{AdapterFileError, Error, Fault, Result};
use crate::store::formats::Source;

/// The header's field with it.
pub(super) const FIELD: &str = "lora_adapter_metadata";

/// The config of one component.
pub(super) struct Metadata {
    fields: Map<String, Value>,
    rank: Option<usize>,
    alpha: Option<f64>,
    rank_pattern: PatternMap<usize>,
    alpha_pattern: PatternMap<f64>,
    stabilised: bool,
    pub(super) has_lengths: bool,
}

fn wrong(reason: String) -> Error {
    AdapterFileError::Field { field: FIELD.to_owned(), reason }.into()
}

impl Metadata {
    /// What the header says of a component, if it says anything.
    pub(super) fn of(source: &Source, component: &Component) -> Result<Option<Self>> {
        let Some(text) = source.metadata().get(FIELD).filter(|_| !component.prefix.is_empty()) else {
            return Ok(None);
        };
        let value: Value =
            serde_json::from_str(text).map_err(|error| wrong(format!("is not JSON: {error}")))?;
        let Value::Object(all) = value else { return Err(wrong("is not an object".to_owned())) };
        let own = all.into_iter().filter_map(|(field, value)| {
            let field = field.strip_prefix(component.prefix)?.to_owned();
            (!field.is_empty() && !value.is_null()).then_some((field, value))
        });
        let fields: Map<String, Value> = own.collect();
        if fields.is_empty() {
            return Ok(None);
        }
        Self::read(fields).map(Some)
    }

    fn read(fields: Map<String, Value>) -> Result<Self> {
        fn field<T: serde::de::DeserializeOwned>(
            fields: &Map<String, Value>,
            name: &str,
        ) -> Result<Option<T>> {
            let value = fields.get(name).cloned();
            let value = value.map(serde_json::from_value).transpose();
            value.map_err(|error| wrong(format!("has a wrong `{name}`: {error}")))
        }
        Ok(Self {
            rank: field(&fields, "r")?,
            alpha: field(&fields, "lora_alpha")?,
            rank_pattern: field(&fields, "rank_pattern")?.unwrap_or_default(),
            alpha_pattern: field(&fields, "alpha_pattern")?.unwrap_or_default(),
            stabilised: field(&fields, "use_rslora")?.unwrap_or_default(),
            has_lengths: field(&fields, "use_dora")?.unwrap_or_default(),
            fields,
        })
    }

    /// The alpha of the module at `path`, whose factors have this rank, and whether the rank's root divides it.
    pub(super) fn alpha(&self, path: &str, rank: usize) -> Result<Option<(f64, bool)>> {
        let pattern = |fault: Fault| wrong(format!("has a wrong pattern: {fault}"));
        let expected =
            self.rank_pattern.value("rank_pattern", path, self.rank.unwrap_or(rank)).map_err(pattern)?;
        if expected != rank {
            return Err(wrong(format!("gives `{path}` the rank {expected}, and its tensors have {rank}")));
        }
        let Some(alpha) = self.alpha else { return Ok(None) };
        let alpha = self.alpha_pattern.value("alpha_pattern", path, alpha).map_err(pattern)?;
        Ok(Some((alpha, self.stabilised)))
    }

    /// The fields that say more than which modules are adapted and how strongly.
    pub(super) fn template(self) -> Map<String, Value> {
        const TOLD_BY_TENSORS: [&str; 8] = [
            "exclude_modules",
            "layers_pattern",
            "layers_to_transform",
            "target_modules",
            "rank_pattern",
            "alpha_pattern",
            "inference_mode",
            "auto_mapping",
        ];
        let mut fields = self.fields;
        fields.retain(|field, _| !TOLD_BY_TENSORS.contains(&field.as_str()));
        fields
    }
}
