//! The adapter methods, as a table: a method that has its rows here is under every law.
//!
//! A row says how to make the config, on which layer kinds the method works, and what holds for it. The laws, the properties
//! of files and the tests of single subjects iterate over [`METHODS`] or [`every_pair`].

mod table;

use peft_runtime::adapter::AdapterMethod;

use crate::specimen::Kind;

pub use table::METHODS;

/// How the output of a fresh adapter compares with that of the base model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// The same bits: what is added is zero, or what is multiplied is one.
    Exact,
    /// The same up to rounding: a part of the weight, or the bias, is taken away and added again.
    Close,
    /// Another output: all values are drawn.
    Random,
}

/// What the random numbers of initial values depend on, apart from the layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Draws {
    /// Nothing is drawn.
    Nothing,
    /// On the seed.
    BySeed,
    /// On the seed and the adapter's name.
    BySeedAndName,
}

/// What making the adapter does to the layer's weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightChange {
    /// Nothing.
    Kept,
    /// It loses the product of the factors, which deleting the adapter gives back.
    TakenFrom,
    /// It is quantised for good.
    Quantised,
}

/// The layers that a config is for, and its seed.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// Their names.
    pub layers: &'a [&'a str],
    /// What initial values are drawn with.
    pub seed: u64,
}

/// A method with its settings.
#[derive(Clone, Copy)]
pub struct Method {
    /// What it is, for messages.
    pub name: &'static str,
    /// Makes its config.
    config: fn(Target<'_>) -> Box<dyn AdapterMethod>,
    /// The layer kinds that it works on.
    pub kinds: &'static [Kind],
    /// What a fresh adapter does to the output.
    pub start: Start,
    /// What is drawn for a fresh adapter.
    pub draws: Draws,
    /// What it does to the weight.
    pub weight: WeightChange,
    /// Whether what several such adapters do to the output adds up.
    pub additive: bool,
    /// Whether there is a weight that computes the same for a convolution in groups; there is one for all other layers.
    merges_groups: bool,
    /// Whether it works on a linear layer whose weight is quantized; otherwise that is refused.
    pub quantized: bool,
    /// Whether it can be saved in the form it has.
    pub saves: bool,
    /// Whether the model may have another adapter of the same config.
    pub pairs: bool,
    /// Whether it has dropout, which acts in training mode.
    dropout: bool,
    /// Whether biases of the base model train along.
    pub trains_biases: bool,
    /// Whether its backward pass takes the norm of the weight for a constant, so that only the gradient of the lengths
    /// is that of the function.
    pub constant_norm: bool,
}

impl Method {
    /// Its config for a target.
    pub fn config_for(&self, target: Target<'_>) -> Box<dyn AdapterMethod> {
        (self.config)(target)
    }

    /// Its config for the layer of a [`Specimen`](crate::specimen::Specimen).
    pub fn config(&self) -> Box<dyn AdapterMethod> {
        self.config_for(Target { layers: &["layer"], seed: 0 })
    }

    /// Whether there is a weight of the layer that computes the same.
    pub fn merges(&self, kind: Kind) -> bool {
        self.merges_groups || kind != Kind::GroupedConv2d
    }

    /// Whether dropout acts on it in training mode: indices have nothing to drop.
    pub fn drops(&self, kind: Kind) -> bool {
        self.dropout && !kind.is_embedding()
    }
}

impl std::fmt::Debug for Method {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// Every method on every layer kind that it works on.
pub fn every_pair() -> impl Iterator<Item = (Kind, Method)> {
    let methods_on = |kind: Kind| METHODS.iter().filter(move |method| method.kinds.contains(&kind));
    Kind::ALL.into_iter().flat_map(move |kind| methods_on(kind).map(move |method| (kind, *method)))
}
