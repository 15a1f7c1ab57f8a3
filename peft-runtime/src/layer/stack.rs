//! The adapters of one layer: by name, with what is active, merged and enabled.

use std::sync::Arc;

use candle_core::Var;

use super::calls::{Called, Calls};
use crate::adapter::{Adapter, AdapterMethod, Geometry};
use crate::ops::random::DropoutStream;
use crate::path::ModulePath;

/// The adapters of one layer, in the order in which they were added.
#[derive(Clone, Debug)]
pub struct AdapterStack {
    path: ModulePath,
    geometry: Geometry,
    slots: Vec<Slot>,
    merged: Vec<String>,
    state: StackState,
    calls: Calls,
}

/// What all layers of a model have in common: which adapters are active, and how they are applied.
#[derive(Clone, Debug)]
pub(crate) struct StackState {
    pub(crate) active: Vec<String>,
    pub(crate) enabled: bool,
    pub(crate) training: bool,
}

/// One adapter's place on a layer.
#[derive(Clone, Debug)]
pub struct Slot {
    /// The adapter's name.
    pub name: String,
    /// The settings the adapter was made with.
    pub method: Arc<dyn AdapterMethod>,
    /// What the adapter has on this layer.
    pub content: Content,
    /// Whether the adapter's tensors are part of the graph.
    pub trainable: bool,
    /// Whether the adapter's tensors are held in f32 if the layer is in half precision.
    pub autocasts: bool,
    pub(crate) dropout: DropoutStream,
}

/// What an adapter has on a layer.
#[derive(Clone, Debug)]
pub enum Content {
    /// The state of its method.
    Adapter(Arc<dyn Adapter>),
    /// A full copy of the layer's parameters (`modules_to_save`).
    Copy(Vec<CopiedParameter>),
}

/// One parameter of a layer that trains in full.
#[derive(Clone, Debug)]
pub struct CopiedParameter {
    /// The parameter's name in the layer.
    pub name: &'static str,
    /// The copy.
    pub var: Var,
}

impl Slot {
    /// Whether the adapter replaces the layer's values with its own, which only one active adapter can do.
    pub(crate) fn replaces_values(&self) -> bool {
        match &self.content {
            Content::Adapter(adapter) => adapter.replaces_values(),
            Content::Copy(_) => true,
        }
    }

    /// The state of the adapter's method, unless the adapter has a full copy here.
    pub fn adapter(&self) -> Option<&Arc<dyn Adapter>> {
        match &self.content {
            Content::Adapter(adapter) => Some(adapter),
            Content::Copy(_) => None,
        }
    }

    /// The adapter's full copy of the layer's parameters, if it has one.
    pub fn copy(&self) -> Option<&[CopiedParameter]> {
        match &self.content {
            Content::Adapter(_) => None,
            Content::Copy(parameters) => Some(parameters),
        }
    }
}

impl AdapterStack {
    /// A place for the adapters of the layer at `path`, with the model-wide state that applies to them.
    pub(crate) fn new(path: ModulePath, geometry: Geometry, state: StackState) -> Self {
        Self { path, geometry, slots: Vec::new(), merged: Vec::new(), state, calls: Calls::none() }
    }

    /// Where the layer is in its model. If the layer is moved, the next operation on the adapters of the model that
    /// contains it corrects the path.
    pub fn path(&self) -> &ModulePath {
        &self.path
    }

    /// The layer's shape, which no operation changes.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The adapters in the order in which they were added.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// The adapter called `name`.
    pub fn slot(&self, name: &str) -> Option<&Slot> {
        self.slots.iter().find(|slot| slot.name == name)
    }

    /// The names of the active adapters in order; this layer need not have all of them.
    pub fn active(&self) -> &[String] {
        &self.state.active
    }

    /// The names of the adapters merged into the layer's weight, in order.
    pub fn merged(&self) -> &[String] {
        &self.merged
    }

    /// Whether adapters take effect at all.
    pub fn enabled(&self) -> bool {
        self.state.enabled
    }

    /// Whether dropout is applied.
    pub fn training(&self) -> bool {
        self.state.training
    }

    pub(crate) fn state(&self) -> &StackState {
        &self.state
    }

    pub(crate) fn set_path(&mut self, path: ModulePath) {
        self.path = path;
    }

    /// The error with the layer's path as its context.
    pub(super) fn on_layer(&self, error: candle_core::Error) -> candle_core::Error {
        if self.path.is_root() { error } else { error.context(format!("on `{}`", self.path)) }
    }

    /// Records that the layer runs, as part of a graph or not.
    pub(super) fn note_call(&self, tracks: bool) {
        self.calls.note(tracks);
    }

    /// How the layer has run so far.
    pub(crate) fn called(&self) -> Called {
        self.calls.highest()
    }

    /// The active adapters that this layer has, in their order; one named twice appears twice.
    pub(crate) fn active_slots(&self) -> impl Iterator<Item = &Slot> {
        self.state.active.iter().filter_map(|name| self.slot(name))
    }

    /// The adapters that act on the layer now, in their order: those that are merged, where any is, otherwise the active ones;
    /// none while adapters are disabled.
    pub fn acting(&self) -> Vec<&Slot> {
        let names = match (self.state.enabled, self.merged.is_empty()) {
            (false, _) => return Vec::new(),
            (true, true) => &self.state.active,
            (true, false) => &self.merged,
        };
        names.iter().filter_map(|name| self.slot(name)).collect()
    }

    pub(crate) fn slot_mut(&mut self, name: &str) -> Option<&mut Slot> {
        self.slots.iter_mut().find(|slot| slot.name == name)
    }

    pub(crate) fn push(&mut self, slot: Slot) {
        self.slots.push(slot);
    }

    /// Removes only an adapter's slot, and returns its position.
    pub(crate) fn take(&mut self, name: &str) -> Option<usize> {
        let place = self.slots.iter().position(|slot| slot.name == name)?;
        self.slots.remove(place);
        Some(place)
    }

    /// Moves the last slot to `place`, if it is the adapter's.
    pub(crate) fn move_last_to(&mut self, name: &str, place: usize) {
        if self.slots.last().is_some_and(|slot| slot.name == name) {
            let from = place.min(self.slots.len() - 1);
            self.slots[from..].rotate_right(1);
        }
    }

    /// Gives an adapter another name.
    pub(crate) fn rename(&mut self, name: &str, new_name: &str) {
        let slots = self.slots.iter_mut().map(|slot| &mut slot.name);
        for known in
            slots.chain(&mut self.state.active).chain(&mut self.merged).filter(|known| *known == name)
        {
            new_name.clone_into(known);
        }
    }

    pub(crate) fn set_active(&mut self, active: &[String]) {
        self.state.active = active.to_vec();
    }

    pub(crate) fn set_merged(&mut self, merged: Vec<String>) {
        self.merged = merged;
    }

    pub(crate) fn set_enabled(&mut self, enabled: bool) {
        self.state.enabled = enabled;
    }

    pub(crate) fn set_training(&mut self, training: bool) {
        self.state.training = training;
    }

    /// The adapters that add to the layer and do not put values of their own in its place.
    pub(crate) fn adding(&self) -> impl Iterator<Item = &Slot> {
        self.slots.iter().filter(|slot| !slot.replaces_values())
    }

    /// The active adapters once `name` is deleted: if it was the only one, the layer's first other by name that adds to it.
    pub(crate) fn active_without(&self, name: &str) -> Vec<String> {
        let mut active = self.state.active.clone();
        active.retain(|active| active != name);
        if active.is_empty() && self.state.active.iter().any(|active| active == name) {
            active.extend(self.adding().map(|slot| &slot.name).filter(|other| *other != name).min().cloned());
        }
        active
    }

    /// Takes an adapter away, also from the active ones of a layer that does not have it.
    ///
    /// If it was the only active one, the layer's first other by name that adds to it becomes active. `chosen` is the adapter
    /// that is active on the model's first layer from now on: its rows become active, and its full copy where the deleted
    /// adapter had one. Where it has no rows, those of the first other adapter take the place of the deleted one's, as in PEFT.
    pub(crate) fn delete(&mut self, name: &str, chosen: Option<&str>) {
        let was_active = self.state.active.iter().any(|active| active == name);
        let mut active = self.active_without(name);
        let place = self.slots.iter().position(|slot| slot.name == name);
        let deleted = place.map(|place| self.slots.remove(place));
        let has_rows = |slot: &&Slot| slot.replaces_values() && slot.copy().is_none();
        let copied = deleted.as_ref().is_some_and(|deleted| deleted.copy().is_some());
        let left = deleted.as_ref().is_some_and(|deleted| was_active && has_rows(&deleted));
        let chosen = chosen.and_then(|chosen| self.slot(chosen));
        let woken = match chosen.filter(|slot| slot.replaces_values()) {
            Some(slot) => Some(slot).filter(|slot| copied || has_rows(slot)),
            None if left => self.slots.iter().filter(has_rows).min_by_key(|slot| &slot.name),
            None => None,
        };
        active.extend(woken.map(|slot| slot.name.clone()).filter(|woken| !active.contains(woken)));
        self.state.active = active;
    }
}
