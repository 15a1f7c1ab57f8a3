//! Named-module trees: what `#[derive(Injectable)]` implements, and the list of leaves that everything else works on.

mod containers;
mod cursor;
mod leaves;

use crate::schema::Schema;

pub use crate::declared::{Declared, DeclaredLora};
pub use cursor::{Cursor, CursorMut, Item, Leaf, LeafMut};
pub(crate) use cursor::{block_lists, leaves, leaves_mut, leaves_of, replicate, replicated_tree, tree};
pub use leaves::PlainLayer;

/// A module whose layers have names.
///
/// Derive it with `#[derive(Injectable)]`; the methods that inject, merge, save and load come from
/// [`PeftModel`](crate::PeftModel), which every `Injectable` type has.
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
