//! Walks a model and lists its leaves with their paths.

use std::fmt::Display;

use candle_core::Tensor;

use super::{Injectable, PlainLayer};
use crate::ModulePath;
use crate::layer::{AdaptedLayer, AdapterStack};
use crate::schema::{Node, Schema};

/// Collects the leaves and modules of a model; it keeps the path, so that nobody else has to.
pub struct Cursor<'a> {
    path: ModulePath,
    items: Vec<Item<'a>>,
}

/// One step of a walk through a model.
pub enum Item<'a> {
    /// A module with children begins.
    Open {
        /// Where it is.
        path: ModulePath,
        /// What it is.
        schema: &'static Schema,
    },
    /// The module that began last ends.
    Close,
    /// A layer or parameter.
    Leaf {
        /// Where it is.
        path: ModulePath,
        /// What it is.
        leaf: Leaf<'a>,
    },
}

/// A layer or parameter.
#[derive(Clone, Copy)]
pub enum Leaf<'a> {
    /// A layer that can carry adapters.
    Adapted(&'a dyn AdaptedLayer),
    /// A layer or parameter that cannot.
    Plain(&'a dyn PlainLayer),
}

/// A layer or parameter that can be changed.
pub enum LeafMut<'a> {
    /// A layer that can carry adapters.
    Adapted(&'a mut dyn AdaptedLayer),
    /// A layer or parameter that cannot.
    Plain(&'a mut dyn PlainLayer),
}

impl<'a> Item<'a> {
    /// Where the module, layer or parameter is; `None` for an end.
    pub(crate) fn path(&self) -> Option<&ModulePath> {
        match self {
            Self::Open { path, .. } | Self::Leaf { path, .. } => Some(path),
            Self::Close => None,
        }
    }

    pub(crate) fn leaf(&self) -> Option<(&ModulePath, Leaf<'a>)> {
        match self {
            Self::Leaf { path, leaf } => Some((path, *leaf)),
            Self::Open { .. } | Self::Close => None,
        }
    }

    pub(crate) fn stack(&self) -> Option<&'a AdapterStack> {
        self.leaf()?.1.stack()
    }
}

impl<'a> Leaf<'a> {
    /// The layer's own parameters by name; a bare parameter has an empty name.
    pub fn parameters(&self) -> Vec<(&'static str, &'a Tensor)> {
        match self {
            Self::Adapted(layer) => layer.parameters(),
            Self::Plain(layer) => layer.parameters(),
        }
    }

    /// The layer's adapters, if it has any.
    pub fn stack(&self) -> Option<&'a AdapterStack> {
        match self {
            Self::Adapted(layer) => layer.stack(),
            Self::Plain(_) => None,
        }
    }
}

impl<'a> Cursor<'a> {
    fn new() -> Self {
        Self { path: ModulePath::root(), items: Vec::new() }
    }

    /// Visits the child called `name`; a name may hold dots.
    pub fn child<M: Injectable + ?Sized>(&mut self, name: impl Display, module: &'a M) {
        let length = self.path.push(name);
        let before = self.items.len();
        if matches!(M::SCHEMA.node(), Node::Layer { .. } | Node::Parameter | Node::Settings) {
            module.visit(self);
        } else {
            self.items.push(Item::Open { path: self.path.clone(), schema: M::SCHEMA });
            module.visit(self);
            match self.items.get(before + 1) {
                // Nothing inside: an absent option, an empty list, a module of settings.
                None => self.items.truncate(before),
                // An enum that stands for a layer is the layer.
                Some(Item::Leaf { path, .. }) if *path == self.path => {
                    self.items.remove(before);
                }
                Some(_) => self.items.push(Item::Close),
            }
        }
        self.path.truncate(length);
    }

    /// Visits a child whose own children belong to the parent.
    pub fn flatten<M: Injectable + ?Sized>(&mut self, module: &'a M) {
        module.visit(self);
    }

    /// Records a leaf at the present path.
    pub(crate) fn leaf(&mut self, leaf: Leaf<'a>) {
        self.items.push(Item::Leaf { path: self.path.clone(), leaf });
    }
}

/// Collects the leaves of a model for changing them.
pub struct CursorMut<'a> {
    path: ModulePath,
    leaves: Vec<(ModulePath, LeafMut<'a>)>,
}

impl<'a> CursorMut<'a> {
    /// Visits the child called `name`; a name may hold dots.
    pub fn child<M: Injectable + ?Sized>(&mut self, name: impl Display, module: &'a mut M) {
        let length = self.path.push(name);
        module.visit_mut(self);
        self.path.truncate(length);
    }

    /// Visits a child whose own children belong to the parent.
    pub fn flatten<M: Injectable + ?Sized>(&mut self, module: &'a mut M) {
        module.visit_mut(self);
    }

    /// Records a leaf at the present path.
    pub(crate) fn leaf(&mut self, leaf: LeafMut<'a>) {
        self.leaves.push((self.path.clone(), leaf));
    }
}

/// All modules and leaves of a model, in order.
pub(crate) fn tree<M: Injectable + ?Sized>(model: &M) -> Vec<Item<'_>> {
    let mut cursor = Cursor::new();
    model.visit(&mut cursor);
    cursor.items
}

/// The layers and parameters of a model with their paths, in order.
pub(crate) fn leaves<M: Injectable + ?Sized>(model: &M) -> Vec<(ModulePath, Leaf<'_>)> {
    let items = tree(model).into_iter();
    items
        .filter_map(|item| match item {
            Item::Leaf { path, leaf } => Some((path, leaf)),
            Item::Open { .. } | Item::Close => None,
        })
        .collect()
}

/// The layers and parameters of a model with their paths, in the same order, for changing them.
pub(crate) fn leaves_mut<M: Injectable + ?Sized>(model: &mut M) -> Vec<(ModulePath, LeafMut<'_>)> {
    let mut cursor = CursorMut { path: ModulePath::root(), leaves: Vec::new() };
    model.visit_mut(&mut cursor);
    cursor.leaves
}
