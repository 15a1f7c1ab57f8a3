//! The custom layer kind under every method, and the custom method wherever a built-in one is known.

mod commands;
mod files;
mod model;
mod own_layer;
mod own_method;
mod without_model;
