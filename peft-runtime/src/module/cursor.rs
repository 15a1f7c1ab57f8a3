//! What adapters see of a model, and the walk that lists its leaves with their paths.

use std::fmt::Display;

use crate::declared::Declared;
use crate::layer::{AdapterStack, Layer};
use crate::path::ModulePath;
use crate::schema::{Node, Schema};

/// A module whose layers have names.
///
/// Derive it with `#[derive(Injectable)]`; the methods that inject, merge, save and load come from
/// [`PeftModel`](crate::PeftModel), which every `Injectable` type implements.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a module that adapters know how to visit",
    label = "no layer or setting of this type is known",
    note = "if `{Self}` is a module of yours, add `#[derive(Injectable)]` to it",
    note = "if it is a layer of yours, implement `BaseLayer` for it and hold it as `Adapted<{Self}>`",
    note = "if it holds nothing to adapt or to save, mark the field `#[peft(skip)]`"
)]
pub trait Injectable {
    /// The names and kinds of everything inside, known at compile time.
    const SCHEMA: &'static Schema;

    /// What the `#[peft(…)]` attributes of the type declare.
    const DECLARED: Declared = Declared::NOTHING;

    /// Transformers' name for the architecture, which decides the targets where neither config nor model names any:
    /// `#[peft(model_type = "…")]`.
    fn model_type(&self) -> Option<&str> {
        None
    }

    /// Shows every field to the cursor, in order.
    fn visit<'a>(&'a self, cursor: &mut Cursor<'a>);

    /// Shows every field to the cursor, in the same order.
    fn visit_mut<'a>(&'a mut self, cursor: &mut CursorMut<'a>);
}

/// Collects the leaves and modules of a model; it keeps track of the path, so that nothing else has to.
pub struct Cursor<'a> {
    path: ModulePath,
    items: Vec<Item<'a>>,
    /// The blocks that a list of blocks is to have, by their indices in the current one.
    replication: Option<&'a [usize]>,
    block_lists: Vec<BlockList>,
}

/// A list of blocks: a field that is marked `#[peft(blocks)]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BlockList {
    /// Where it is.
    pub(crate) path: ModulePath,
    /// How many blocks it has.
    pub(crate) length: usize,
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
    /// The module that was opened last ends.
    Close,
    /// A layer or parameter.
    Leaf {
        /// Where it is.
        path: ModulePath,
        /// What it is.
        layer: &'a dyn Layer,
    },
}

impl<'a> Item<'a> {
    /// Where the module, layer or parameter is; `None` for an end.
    pub(crate) fn path(&self) -> Option<&ModulePath> {
        match self {
            Self::Open { path, .. } | Self::Leaf { path, .. } => Some(path),
            Self::Close => None,
        }
    }

    pub(crate) fn leaf(&self) -> Option<(&ModulePath, &'a dyn Layer)> {
        match self {
            Self::Leaf { path, layer } => Some((path, *layer)),
            Self::Open { .. } | Self::Close => None,
        }
    }

    pub(crate) fn stack(&self) -> Option<&'a AdapterStack> {
        self.leaf()?.1.stack()
    }
}

impl<'a> Cursor<'a> {
    fn new(replication: Option<&'a [usize]>) -> Self {
        Self { path: ModulePath::root(), items: Vec::new(), replication, block_lists: Vec::new() }
    }

    /// Visits the child called `name`, as [`child`](Self::child) does, and returns the cursor for the next call: what
    /// the derive generates, in the form that costs the compiler least.
    pub fn field<M: Injectable + ?Sized>(&mut self, name: &'static str, module: &'a M) -> &mut Self {
        self.child(name, module);
        self
    }

    /// Visits the child called `name`; a name may hold dots.
    pub fn child<M: Injectable + ?Sized>(&mut self, name: impl Display, module: &'a M) {
        self.enter(name, M::SCHEMA, |cursor| module.visit(cursor));
    }

    /// Visits the list of blocks called `name`, which `layer_replication` rebuilds.
    pub fn blocks<M: Injectable + Clone>(&mut self, name: impl Display, blocks: &'a Vec<M>) -> &mut Self {
        self.enter(name, Vec::<M>::SCHEMA, |cursor| {
            cursor.block_lists.push(BlockList { path: cursor.path.clone(), length: blocks.len() });
            match cursor.replication {
                None => blocks.visit(cursor),
                Some(order) => {
                    let blocks = order.iter().filter_map(|number| blocks.get(*number));
                    blocks.enumerate().for_each(|(index, block)| cursor.child(index, block));
                }
            }
        });
        self
    }

    fn enter(&mut self, name: impl Display, schema: &'static Schema, visit: impl FnOnce(&mut Self)) {
        let length = self.path.push(name);
        let before = self.items.len();
        if matches!(schema.node(), Node::Layer { .. } | Node::Parameter | Node::Settings) {
            visit(self);
        } else {
            self.items.push(Item::Open { path: self.path.clone(), schema });
            visit(self);
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
    pub fn flatten<M: Injectable + ?Sized>(&mut self, module: &'a M) -> &mut Self {
        module.visit(self);
        self
    }

    /// Records a leaf at the current path; an [`Injectable`] type that is a layer or a parameter calls this.
    pub fn leaf(&mut self, layer: &'a dyn Layer) {
        self.items.push(Item::Leaf { path: self.path.clone(), layer });
    }
}

/// Collects the leaves of a model for changing them.
pub struct CursorMut<'a> {
    path: ModulePath,
    leaves: Vec<(ModulePath, &'a mut dyn Layer)>,
    /// The blocks that a list of blocks gets, by their indices in the current one.
    replication: Option<&'a [usize]>,
}

impl<'a> CursorMut<'a> {
    /// Visits the child called `name`, as [`child`](Self::child) does, and returns the cursor for the next call: what
    /// the derive generates, in the form that costs the compiler least.
    pub fn field<M: Injectable + ?Sized>(&mut self, name: &'static str, module: &'a mut M) -> &mut Self {
        self.child(name, module);
        self
    }

    /// Visits the child called `name`; a name may hold dots.
    pub fn child<M: Injectable + ?Sized>(&mut self, name: impl Display, module: &'a mut M) {
        let length = self.path.push(name);
        module.visit_mut(self);
        self.path.truncate(length);
    }

    /// Visits the list of blocks called `name`, which `layer_replication` rebuilds.
    pub fn blocks<M: Injectable + Clone>(&mut self, name: impl Display, blocks: &'a mut Vec<M>) -> &mut Self {
        if let Some(order) = self.replication {
            *blocks = order.iter().filter_map(|number| blocks.get(*number).cloned()).collect();
        }
        self.child(name, blocks);
        self
    }

    /// Visits a child whose own children belong to the parent.
    pub fn flatten<M: Injectable + ?Sized>(&mut self, module: &'a mut M) -> &mut Self {
        module.visit_mut(self);
        self
    }

    /// Records a leaf at the current path; an [`Injectable`] type that is a layer or a parameter calls this.
    pub fn leaf(&mut self, layer: &'a mut dyn Layer) {
        self.leaves.push((self.path.clone(), layer));
    }
}

/// All modules and leaves of a model, in order.
pub(crate) fn tree<M: Injectable + ?Sized>(model: &M) -> Vec<Item<'_>> {
    let mut cursor = Cursor::new(None);
    model.visit(&mut cursor);
    cursor.items
}

/// All modules and leaves as they would be if the model's list of blocks were made of the blocks in `order`.
pub(crate) fn replicated_tree<'a, M: Injectable + ?Sized>(model: &'a M, order: &'a [usize]) -> Vec<Item<'a>> {
    let mut cursor = Cursor::new(Some(order));
    model.visit(&mut cursor);
    cursor.items
}

/// The lists of blocks that a model marks.
pub(crate) fn block_lists<M: Injectable + ?Sized>(model: &M) -> Vec<BlockList> {
    let mut cursor = Cursor::new(None);
    model.visit(&mut cursor);
    cursor.block_lists
}

/// Rebuilds the model's list of blocks from the blocks in `order`; copies share their parameters.
pub(crate) fn replicate<M: Injectable + ?Sized>(model: &mut M, order: &[usize]) {
    model.visit_mut(&mut CursorMut {
        path: ModulePath::root(),
        leaves: Vec::new(),
        replication: Some(order),
    });
}

/// The layers and parameters of a model with their paths, in order.
pub(crate) fn leaves<M: Injectable + ?Sized>(model: &M) -> Vec<(ModulePath, &dyn Layer)> {
    leaves_of(tree(model))
}

/// The layers and parameters among the items of a walk.
pub(crate) fn leaves_of(items: Vec<Item<'_>>) -> Vec<(ModulePath, &dyn Layer)> {
    let leaf = |item| match item {
        Item::Leaf { path, layer } => Some((path, layer)),
        Item::Open { .. } | Item::Close => None,
    };
    items.into_iter().filter_map(leaf).collect()
}

/// The layers and parameters of a model with their paths, in the same order, for changing them.
pub(crate) fn leaves_mut<M: Injectable + ?Sized>(model: &mut M) -> Vec<(ModulePath, &mut dyn Layer)> {
    let mut cursor = CursorMut { path: ModulePath::root(), leaves: Vec::new(), replication: None };
    model.visit_mut(&mut cursor);
    cursor.leaves
}
