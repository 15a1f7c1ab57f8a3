//! Where a training run is: what a checkpoint holds besides tensors.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::schedule::Schedule;
use crate::error::{Result, TrainingStateError};
use crate::layer::AdapterStack;
use crate::manage::active_adapters;
use crate::module::{Injectable, leaves};
use crate::path::ModulePath;

/// The format version of `training.json`, which is raised when an older program could misread a newer file.
const FORMAT: u32 = 1;

/// No run takes more steps, so counts below this cannot overflow.
const MOST: u64 = 1 << 53;

/// Where a training run is: the contents of a checkpoint's `training.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TrainingState {
    format: u32,
    /// How many steps the optimiser has taken.
    pub step: u64,
    /// How many batches these steps used: the position in the data.
    pub batches: u64,
    /// The learning-rate schedule.
    pub schedule: Schedule,
    /// The adapters that train.
    pub adapters: Vec<String>,
    /// How many dropout masks each layer has drawn, by `adapter/layer`; the model's own dropout is listed by `/layer`.
    pub dropout: BTreeMap<String, u64>,
    /// What the caller keeps with the run: the seed of the data's order, for example.
    #[serde(default)]
    pub notes: serde_json::Value,
    /// The sizes in bytes of the checkpoint's tensor files: a checkpoint is complete if they are all there.
    pub(super) files: BTreeMap<String, u64>,
}

impl TrainingState {
    /// The state of a model at this point of its training.
    pub(super) fn of<M: Injectable + ?Sized>(model: &M, step: u64, batches: u64, schedule: Schedule) -> Self {
        Self {
            format: FORMAT,
            step,
            batches,
            schedule,
            adapters: active_adapters(model),
            dropout: dropout_positions(model),
            notes: serde_json::Value::Null,
            files: BTreeMap::new(),
        }
    }

    pub(super) fn to_json(&self) -> Result<String> {
        let text = serde_json::to_string_pretty(self).map_err(TrainingStateError::Json)?;
        Ok(text + "\n")
    }

    pub(super) fn from_json(text: &str) -> Result<Self> {
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let Format { format } = serde_json::from_str(text).map_err(TrainingStateError::Json)?;
        if format != FORMAT {
            return Err(TrainingStateError::Format { found: format, known: FORMAT }.into());
        }
        let state: Self = serde_json::from_str(text).map_err(TrainingStateError::Json)?;
        let counts = [("step", state.step), ("batches", state.batches)];
        match counts.into_iter().find(|(_, count)| *count > MOST) {
            Some((field, count)) => Err(TrainingStateError::Count { field, count, most: MOST }.into()),
            None => Ok(state),
        }
    }
}

fn key(adapter: &str, path: &ModulePath) -> String {
    format!("{adapter}/{path}")
}

/// The name that stands for the model itself, which no adapter can have.
const BASE: &str = "";

/// How many masks each adapter has drawn on each layer, and each of the model's own dropouts.
pub(super) fn dropout_positions<M: Injectable + ?Sized>(model: &M) -> BTreeMap<String, u64> {
    let mut positions = BTreeMap::new();
    for (path, leaf) in leaves(model) {
        if let Some(dropout) = leaf.dropout() {
            positions.insert(key(BASE, &path), dropout.masks().position());
        }
        for slot in leaf.stack().into_iter().flat_map(AdapterStack::slots) {
            positions.insert(key(&slot.name, &path), slot.dropout.position());
        }
    }
    positions
}

/// Sets every stream to its position; one that is not listed stays where it is.
pub(super) fn set_dropout_positions<M: Injectable + ?Sized>(model: &M, positions: &BTreeMap<String, u64>) {
    for (path, leaf) in leaves(model) {
        if let (Some(dropout), Some(position)) = (leaf.dropout(), positions.get(&key(BASE, &path))) {
            dropout.masks().set_position(*position);
        }
        for slot in leaf.stack().into_iter().flat_map(AdapterStack::slots) {
            if let Some(position) = positions.get(&key(&slot.name, &path)) {
                slot.dropout.set_position(*position);
            }
        }
    }
}
