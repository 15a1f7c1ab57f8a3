//! The derive and the target macro of `peft-runtime`, which re-exports both; depend on that crate instead.

mod ast;
mod attr;
mod bound;
mod check;
mod declared;
mod diag;
mod expand;
mod fallback;
mod schema;
mod symbol;
mod targets;
#[cfg(test)]
mod tests;
mod value;
mod visit;

use proc_macro::TokenStream;

/// Gives a struct or enum a named-module tree, so that adapters can be injected into it.
///
/// Fields may be `Adapted` layers, plain layers of candle, tensors, other `Injectable` types, settings such as numbers and
/// strings, and `Vec`, arrays, `Option`, `Box`, tuples and string-keyed `BTreeMap`s of those.
///
/// # Attributes of the type
///
/// | attribute | meaning |
/// | --- | --- |
/// | `#[peft(target = "q_proj")]`, `#[peft(target = ["q_proj", "v_proj"])]` | the modules to adapt where a config names none; checked at compile time; may be repeated |
/// | `#[peft(feedforward = "down_proj")]` | those of the targets whose input IA3 scales |
/// | `#[peft(lora(rank = 8, alpha = 16, dropout = 0.1, rslora, bias = "none"))]` | a whole LoRA config, for `inject_declared` |
/// | `#[peft(model_type = "bert")]`, `#[peft(model_type = self.model_type)]` | transformers' name for the architecture, which decides PEFT's default targets |
/// | `#[peft(input_embedding = "embed_tokens")]` | the layer that reads token ids |
/// | `#[peft(output_embedding = "lm_head")]` | the layer that writes logits, which `all-linear` leaves out |
/// | `#[peft(transparent)]` | the one field stands for the type: no path segment of its own |
/// | `#[peft(bound = "T: Trait")]` | replaces the where-clause that the derive infers |
/// | `#[peft(crate = "path::to::peft_runtime")]` | where `peft_runtime` is, if not at `::peft_runtime` |
///
/// # Attributes of a field
///
/// | attribute | meaning |
/// | --- | --- |
/// | `#[peft(rename = "attention.self")]` | the name in paths, which may hold dots |
/// | `#[peft(flatten)]` | the field's own fields belong to the parent |
/// | `#[peft(skip)]` | the field is not visited |
/// | `#[peft(blocks)]` | the field is the `Vec` of the model's blocks, which `layer_replication` builds anew; the items are `Clone` |
/// | `#[peft(rank = 4)]` | the rank of this layer in the declared LoRA config |
///
/// A tuple variant with one field stands for its field, and so does a transparent struct; other unnamed fields are called
/// `0`, `1`, `2`.
#[proc_macro_derive(Injectable, attributes(peft))]
pub fn derive_injectable(input: TokenStream) -> TokenStream {
    expand::expand(input.into()).into()
}

/// What `peft_runtime::targets!` calls, with the path of that crate first.
#[doc(hidden)]
#[proc_macro]
pub fn targets_in(input: TokenStream) -> TokenStream {
    targets::expand(input.into()).into()
}
