//! Containers of modules: their items have indices, keys, or the container's own path.

use std::collections::BTreeMap;

use super::{Cursor, CursorMut, Injectable};
use crate::declared::Declared;
use crate::schema::{Field, Schema};

impl<T: Injectable> Injectable for Vec<T> {
    const SCHEMA: &'static Schema = &Schema::list(T::SCHEMA);

    fn visit<'a>(&'a self, cursor: &mut Cursor<'a>) {
        for (index, item) in self.iter().enumerate() {
            cursor.child(index, item);
        }
    }

    fn visit_mut<'a>(&'a mut self, cursor: &mut CursorMut<'a>) {
        for (index, item) in self.iter_mut().enumerate() {
            cursor.child(index, item);
        }
    }
}

impl<T: Injectable, const N: usize> Injectable for [T; N] {
    const SCHEMA: &'static Schema = &Schema::list(T::SCHEMA);

    fn visit<'a>(&'a self, cursor: &mut Cursor<'a>) {
        for (index, item) in self.iter().enumerate() {
            cursor.child(index, item);
        }
    }

    fn visit_mut<'a>(&'a mut self, cursor: &mut CursorMut<'a>) {
        for (index, item) in self.iter_mut().enumerate() {
            cursor.child(index, item);
        }
    }
}

impl<T: Injectable> Injectable for BTreeMap<String, T> {
    const SCHEMA: &'static Schema = &Schema::map(T::SCHEMA);

    fn visit<'a>(&'a self, cursor: &mut Cursor<'a>) {
        for (key, item) in self {
            cursor.child(key, item);
        }
    }

    fn visit_mut<'a>(&'a mut self, cursor: &mut CursorMut<'a>) {
        for (key, item) in self {
            cursor.child(key, item);
        }
    }
}

impl<T: Injectable> Injectable for Option<T> {
    const SCHEMA: &'static Schema = T::SCHEMA;
    const DECLARED: Declared = T::DECLARED;

    fn model_type(&self) -> Option<&str> {
        self.as_ref().and_then(T::model_type)
    }

    fn visit<'a>(&'a self, cursor: &mut Cursor<'a>) {
        if let Some(module) = self {
            module.visit(cursor);
        }
    }

    fn visit_mut<'a>(&'a mut self, cursor: &mut CursorMut<'a>) {
        if let Some(module) = self {
            module.visit_mut(cursor);
        }
    }
}

impl<T: Injectable + ?Sized> Injectable for Box<T> {
    const SCHEMA: &'static Schema = T::SCHEMA;
    const DECLARED: Declared = T::DECLARED;

    fn model_type(&self) -> Option<&str> {
        (**self).model_type()
    }

    fn visit<'a>(&'a self, cursor: &mut Cursor<'a>) {
        (**self).visit(cursor);
    }

    fn visit_mut<'a>(&'a mut self, cursor: &mut CursorMut<'a>) {
        (**self).visit_mut(cursor);
    }
}

macro_rules! impl_tuple {
    ($(($member:tt, $name:literal, $type:ident)),+) => {
        impl<$($type: Injectable),+> Injectable for ($($type,)+) {
            const SCHEMA: &'static Schema = &Schema::module("tuple", &[$(Field($name, $type::SCHEMA)),+]);

            fn visit<'a>(&'a self, cursor: &mut Cursor<'a>) {
                $(cursor.child($member, &self.$member);)+
            }

            fn visit_mut<'a>(&'a mut self, cursor: &mut CursorMut<'a>) {
                $(cursor.child($member, &mut self.$member);)+
            }
        }
    };
}

impl_tuple!((0, "0", A));
impl_tuple!((0, "0", A), (1, "1", B));
impl_tuple!((0, "0", A), (1, "1", B), (2, "2", C));
impl_tuple!((0, "0", A), (1, "1", B), (2, "2", C), (3, "3", D));
impl_tuple!((0, "0", A), (1, "1", B), (2, "2", C), (3, "3", D), (4, "4", E));
impl_tuple!((0, "0", A), (1, "1", B), (2, "2", C), (3, "3", D), (4, "4", E), (5, "5", F));
