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
/// strings, and `Vec`, arrays, `Option`, `Box`, tuples and string-keyed `BTreeMap`s of those. A field's name is its part of the
/// path; items of lists have their index.
///
/// ```
/// use candle_nn::Linear;
/// use peft_runtime::prelude::*;
///
/// #[derive(Injectable)]
/// struct Attention {
///     q_proj: Adapted<Linear>,
///     k_proj: Adapted<Linear>,
///     heads: usize,
/// }
///
/// #[derive(Injectable)]
/// #[peft(target = "q_proj")]
/// struct Model {
///     layers: Vec<Attention>,
/// }
///
/// assert_eq!(Model::SCHEMA.leaf_paths(), ["layers.*.q_proj", "layers.*.k_proj"]);
/// ```
///
/// A tuple variant with one field stands for its field, and so does a transparent struct; other unnamed fields are called
/// `0`, `1`, `2`. Each attribute below links to its example.
///
/// | attribute of the type | meaning |
/// | --- | --- |
/// | [`target`](#target) | the modules to adapt where a config names none |
/// | [`feedforward`](#feedforward) | those of the targets whose input IA3 scales |
/// | [`lora`](#lora) | a whole LoRA config, for `inject_declared` |
/// | [`model_type`](#model_type) | transformers' name for the architecture, which decides PEFT's default targets |
/// | [`input_embedding`, `output_embedding`](#input_embedding-and-output_embedding) | the layers that read token ids and write logits |
/// | [`transparent`](#transparent) | the one field stands for the type |
/// | [`bound`](#bound) | replaces the where-clause that the derive infers |
/// | [`crate`](#crate) | where `peft_runtime` is |
///
/// | attribute of a field | meaning |
/// | --- | --- |
/// | [`rename`](#rename) | the name in paths |
/// | [`flatten`](#flatten) | the field's own fields belong to the parent |
/// | [`skip`](#skip) | the field is not visited |
/// | [`blocks`](#blocks) | the list that `layer_replication` builds anew |
/// | [`rank`](#rank) | the rank of this layer in the declared LoRA config |
///
/// # Attributes of the type
///
/// ## `target`
///
/// The modules to adapt where a config names none: one name or a list. A name is the end of a path, by whole segments; `*` is any
/// one segment. The attribute may be repeated.
///
/// ```
/// # use candle_nn::Linear;
/// # use peft_runtime::prelude::*;
/// #[derive(Injectable)]
/// #[peft(target = ["query", "value"])]
/// struct Attention {
///     query: Adapted<Linear>,
///     key: Adapted<Linear>,
///     value: Adapted<Linear>,
/// }
///
/// assert_eq!(Attention::DECLARED.targets, ["query", "value"]);
/// ```
///
/// The names are checked when this is compiled. A wrong one is answered with up to five that are near:
///
/// ```compile_fail
/// # use candle_nn::Linear;
/// # use peft_runtime::prelude::*;
/// #[derive(Injectable)]
/// #[peft(target = "qery")] // error: no module named `qery` in `Attention`; did you mean `query`?
/// struct Attention {
///     query: Adapted<Linear>,
/// }
/// ```
///
/// ## `feedforward`
///
/// Those of the targets whose input IA3 scales, where it scales the output of all others. It is written as `target` is.
///
/// ```
/// # use candle_nn::Linear;
/// # use peft_runtime::prelude::*;
/// #[derive(Injectable)]
/// #[peft(target = ["key", "value", "down"], feedforward = "down")]
/// struct Block {
///     key: Adapted<Linear>,
///     value: Adapted<Linear>,
///     down: Adapted<Linear>,
/// }
///
/// assert_eq!(Block::DECLARED.feedforward, ["down"]);
/// ```
///
/// ## `lora`
///
/// A whole LoRA config for the declared targets, which `inject_declared` injects. `rank` is required; alpha is the rank, dropout 0
/// and bias `"none"` unless they are given.
///
/// ```
/// # use candle_nn::Linear;
/// # use peft_runtime::prelude::*;
/// #[derive(Injectable)]
/// #[peft(target = ["query", "value"], lora(rank = 8, alpha = 16, dropout = 0.1, rslora, bias = "lora_only"))]
/// struct Attention {
///     query: Adapted<Linear>,
///     value: Adapted<Linear>,
/// }
///
/// let config = Attention::declared_config().unwrap();
/// assert_eq!((config.rank(), config.alpha(), config.use_rslora()), (8, 16.0, true));
/// ```
///
/// ## `model_type`
///
/// Transformers' name for the architecture. It decides the targets, as PEFT's tables have them, where neither config nor model
/// names any. It is a string, or an expression over `self` for types that are several architectures.
///
/// ```
/// # use candle_nn::Linear;
/// # use peft_runtime::prelude::*;
/// #[derive(Injectable)]
/// #[peft(model_type = "bert")]
/// struct Bert {
///     query: Adapted<Linear>,
///     value: Adapted<Linear>,
/// }
///
/// #[derive(Injectable)]
/// #[peft(model_type = self.architecture)]
/// struct Decoder {
///     q_proj: Adapted<Linear>,
///     v_proj: Adapted<Linear>,
///     architecture: String,
/// }
/// ```
///
/// ## `input_embedding` and `output_embedding`
///
/// The layers that read token ids and write logits. Trainable tokens and embedding weights in files are about the one;
/// `all-linear` leaves out the other. The names are checked as those of `target` are.
///
/// ```
/// # use candle_nn::{Embedding, Linear};
/// # use peft_runtime::prelude::*;
/// #[derive(Injectable)]
/// #[peft(input_embedding = "embed_tokens", output_embedding = "lm_head")]
/// struct LanguageModel {
///     embed_tokens: Adapted<Embedding>,
///     hidden: Adapted<Linear>,
///     lm_head: Adapted<Linear>,
/// }
///
/// assert_eq!(LanguageModel::DECLARED.output_embedding, Some("lm_head"));
/// ```
///
/// ## `transparent`
///
/// The one field that is not skipped stands for the type, which gets no path segment of its own.
///
/// ```
/// # use candle_nn::Linear;
/// # use peft_runtime::prelude::*;
/// #[derive(Injectable)]
/// #[peft(transparent)]
/// struct Timed {
///     layer: Adapted<Linear>,
///     #[peft(skip)]
///     started: Option<std::time::Instant>,
/// }
///
/// #[derive(Injectable)]
/// struct Model {
///     dense: Timed,
/// }
///
/// assert_eq!(Model::SCHEMA.leaf_paths(), ["dense"]);
/// ```
///
/// ## `bound`
///
/// Replaces the where-clause that the derive infers, `FieldType: Injectable` for each field; written without `where`.
///
/// ```
/// # use candle_nn::Linear;
/// # use peft_runtime::prelude::*;
/// use peft_runtime::layer::BaseLayer;
///
/// #[derive(Injectable)]
/// #[peft(bound = "L: BaseLayer")]
/// struct Residual<L> {
///     layer: Adapted<L>,
/// }
///
/// assert_eq!(Residual::<Linear>::SCHEMA.leaf_paths(), ["layer"]);
/// ```
///
/// ## `crate`
///
/// Where `peft_runtime` is, if not at `::peft_runtime`.
///
/// ```standalone_crate
/// # use candle_nn::Linear;
/// # use peft_runtime::prelude::*;
/// mod adapters {
///     pub use ::peft_runtime as runtime;
/// }
///
/// #[derive(Injectable)]
/// #[peft(crate = "crate::adapters::runtime")]
/// struct Model {
///     dense: Adapted<Linear>,
/// }
/// # fn main() {}
/// ```
///
/// # Attributes of a field
///
/// ## `rename`
///
/// The name in paths, where it is not the field's own. It may hold dots: one field can stand for several levels of a checkpoint.
///
/// ```
/// # use candle_nn::Linear;
/// # use peft_runtime::prelude::*;
/// #[derive(Injectable)]
/// struct Attention {
///     query: Adapted<Linear>,
/// }
///
/// #[derive(Injectable)]
/// struct Layer {
///     #[peft(rename = "attention.self")]
///     attention: Attention,
/// }
///
/// assert_eq!(Layer::SCHEMA.leaf_paths(), ["attention.self.query"]);
/// ```
///
/// ## `flatten`
///
/// The field's own fields belong to the parent: the field gives no path segment.
///
/// ```
/// # use candle_nn::Linear;
/// # use peft_runtime::prelude::*;
/// #[derive(Injectable)]
/// struct Head {
///     lm_head: Adapted<Linear>,
/// }
///
/// #[derive(Injectable)]
/// struct Model {
///     #[peft(flatten)]
///     head: Head,
/// }
///
/// assert_eq!(Model::SCHEMA.leaf_paths(), ["lm_head"]);
/// ```
///
/// ## `skip`
///
/// The field is not visited: it is neither frozen, nor shown, nor saved. For types that hold nothing of that kind.
///
/// ```
/// # use candle_nn::Linear;
/// # use peft_runtime::prelude::*;
/// #[derive(Injectable)]
/// struct Model {
///     dense: Adapted<Linear>,
///     #[peft(skip)]
///     log: std::sync::Mutex<Vec<f32>>,
/// }
///
/// assert_eq!(Model::SCHEMA.leaf_paths(), ["dense"]);
/// ```
///
/// ## `blocks`
///
/// The field is the `Vec` of the model's blocks, which `with_layer_replication` builds anew. The items are `Clone`.
///
/// ```
/// # use candle_nn::Linear;
/// # use peft_runtime::prelude::*;
/// #[derive(Clone, Injectable)]
/// struct Block {
///     dense: Adapted<Linear>,
/// }
///
/// #[derive(Injectable)]
/// struct Model {
///     #[peft(blocks)]
///     layers: Vec<Block>,
/// }
///
/// let config = LoraConfig::new(8, 16.0).with_targets(["dense"]).with_layer_replication([0..4, 2..6]);
/// # let _ = config;
/// ```
///
/// ## `rank`
///
/// The rank of this layer in the config that `lora(…)` declares.
///
/// ```
/// # use candle_nn::Linear;
/// # use peft_runtime::prelude::*;
/// #[derive(Injectable)]
/// #[peft(target = ["query", "value"], lora(rank = 8, alpha = 16))]
/// struct Attention {
///     query: Adapted<Linear>,
///     #[peft(rank = 4)]
///     value: Adapted<Linear>,
/// }
///
/// assert_eq!(Attention::declared_config().unwrap().rank_pattern().iter().count(), 1);
/// ```
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
