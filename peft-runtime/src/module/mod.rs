//! Named-module trees: what `#[derive(Injectable)]` implements, and the list of leaves that everything else works on.

mod containers;
mod cursor;
mod leaves;

pub use crate::declared::{Declared, DeclaredLora};
pub use cursor::{Cursor, CursorMut, Injectable, Item};
pub(crate) use cursor::{block_lists, leaves, leaves_mut, leaves_of, replicate, replicated_tree, tree};
