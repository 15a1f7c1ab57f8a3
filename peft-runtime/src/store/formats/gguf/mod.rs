//! llama.cpp's adapters.
//!
//! A file has `general.type = adapter`, `adapter.type = lora`, one alpha, and for each weight of the base model two tensors,
//! `NAME.lora_a` `[rank, in]` and `NAME.lora_b` `[out, rank]`. llama.cpp adds alpha / rank · B·A, with the rank of each
//! tensor, or B·A if alpha is 0. Its rotary embedding of Llama rotates neighbouring pairs, that of transformers the two halves of a
//! head, so the rows of queries and keys are in another order.

mod architecture;
mod reader;
mod writer;

pub(super) use reader::Gguf;
pub(in crate::store) use writer::GgufNames;
