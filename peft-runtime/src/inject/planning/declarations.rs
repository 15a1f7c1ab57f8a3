//! What a model declares about itself.

use crate::declared::Declared;
use crate::module::{Injectable, Item};
use crate::path::ModulePath;
use crate::schema::Schema;

/// What a model says about itself.
#[derive(Clone, Copy)]
pub(crate) struct Declarations<'m> {
    pub(super) declared: &'m Declared,
    pub(super) model_type: Option<&'m str>,
    pub(super) schema: &'m Schema,
}

impl<'m> Declarations<'m> {
    pub(crate) fn of<M: Injectable + ?Sized>(model: &'m M) -> Self {
        Self { declared: &M::DECLARED, model_type: model.model_type(), schema: M::SCHEMA }
    }

    /// The layer that `all-linear` leaves out: the one that computes the logits or, in a classifier, the head.
    pub(super) fn head(&self, items: &[Item<'_>], task_type: Option<&str>) -> Option<ModulePath> {
        let find = |name: &str| {
            let mut paths = items.iter().filter_map(Item::path);
            paths.find(|path| path.ends_with(name)).cloned()
        };
        match self.declared.output_embedding {
            Some(name) => find(name),
            None if self.model_type.is_some() && task_type == Some("SEQ_CLS") => {
                ["score", "classifier"].into_iter().find_map(find)
            }
            None => None,
        }
    }
}
