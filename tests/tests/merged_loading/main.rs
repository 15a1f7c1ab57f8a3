//! Adapters merged in while a model loads: models of candle-transformers as they are, fused and renamed checkpoints, and
//! what is refused.

mod bases;
mod models;
mod weights;
