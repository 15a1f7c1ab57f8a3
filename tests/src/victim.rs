//! The small model that hostile files are aimed at, and the adapters that killed processes save.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use candle_nn::{Embedding, Linear, Module};
use peft_runtime::Result;
use peft_runtime::prelude::*;

/// A model with a name on which patterns backtrack, and with a list of blocks.
#[derive(Clone, Injectable)]
pub struct Victim {
    embed: Adapted<Embedding>,
    #[peft(blocks)]
    blocks: Vec<Block>,
    lin0: Adapted<Linear>,
    lin1: Adapted<Linear>,
    #[peft(rename = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa")]
    long: Adapted<Linear>,
}

/// A block of one layer.
#[derive(Clone, Injectable)]
pub struct Block {
    up: Adapted<Linear>,
}

/// The name of the layer that patterns backtrack on.
pub const LONG_NAME: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

/// Values that look random and are the same every time.
fn wave(shape: &[usize], salt: f32) -> candle_core::Result<Tensor> {
    let count = shape.iter().product::<usize>();
    let values: Vec<f32> = (0..count).map(|i| 0.5 * (salt + 1.3 * i as f32).sin()).collect();
    Tensor::from_vec(values, shape, &Device::Cpu)
}

fn linear(inputs: usize, outputs: usize, salt: f32) -> candle_core::Result<Adapted<Linear>> {
    Ok(Adapted::new(Linear::new(wave(&[outputs, inputs], salt)?, Some(wave(&[outputs], salt + 0.5)?))))
}

impl Victim {
    /// The model without adapters.
    ///
    /// # Errors
    /// If a tensor cannot be created.
    pub fn new() -> candle_core::Result<Self> {
        Ok(Self {
            embed: Adapted::new(Embedding::new(wave(&[7, 5], 1.0)?, 5)),
            blocks: vec![Block { up: linear(5, 5, 2.0)? }, Block { up: linear(5, 5, 3.0)? }],
            lin0: linear(5, 6, 4.0)?,
            lin1: linear(6, 2, 5.0)?,
            long: linear(2, 2, 6.0)?,
        })
    }

    /// The model's output for ids.
    ///
    /// # Errors
    /// If an id has no row.
    pub fn forward(&self, ids: &Tensor) -> candle_core::Result<Tensor> {
        let mut hidden = self.embed.forward(ids)?;
        for block in &self.blocks {
            hidden = (&hidden + block.up.forward(&hidden)?)?;
        }
        self.long.forward(&self.lin1.forward(&self.lin0.forward(&hidden)?)?)
    }

    /// Ids for the model: two rows.
    ///
    /// # Errors
    /// If a tensor cannot be created.
    pub fn ids() -> candle_core::Result<Tensor> {
        Tensor::new(&[[0u32, 3, 6], [1, 2, 5]], &Device::Cpu)
    }
}

/// The adapters that are saved over each other: any two differ in config and weights, and some in shapes as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variant(pub usize);

impl Variant {
    /// How many variants there are.
    pub const COUNT: usize = 4;

    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..Self::COUNT).map(Self)
    }

    /// The variant after this one; the first comes after the last.
    #[must_use]
    pub fn following(self) -> Self {
        Self((self.0 + 1) % Self::COUNT)
    }

    fn config(self) -> LoraConfig {
        // The first two have the same shapes: a mixture of them would load.
        let (rank, alpha) = [(2, 4.0), (2, 16.0), (3, 4.0), (5, 1.0)][self.0 % Self::COUNT];
        LoraConfig::new(rank, alpha).with_targets(targets!(Victim; "lin0", "lin1"))
    }

    /// A model with this adapter as `name`.
    ///
    /// # Errors
    /// If a tensor cannot be created.
    pub fn model(self, name: &str) -> Result<Victim> {
        let mut model = Victim::new()?;
        model.inject_adapter(&self.config(), name)?;
        let mut state = model.adapter_state_dict(name)?;
        for (place, tensor) in state.values_mut().enumerate() {
            *tensor = wave(tensor.dims(), 10.0 * self.0 as f32 + place as f32)?;
        }
        model.load_adapter_state_dict(&state, name)?;
        Ok(model)
    }
}

/// Config and tensors of an adapter, bit for bit.
type Contents = (String, BTreeMap<String, Vec<u32>>);

fn contents(model: &Victim, name: &str) -> Result<Contents> {
    let config = model.adapter_config(name)?.to_json(&[])?;
    let mut tensors = BTreeMap::new();
    for (key, tensor) in model.adapter_state_dict(name)? {
        let values = tensor.flatten_all()?.to_vec1::<f32>()?;
        tensors.insert(key, values.into_iter().map(f32::to_bits).collect());
    }
    Ok((config, tensors))
}

/// The variants as they are when loaded from a folder.
pub struct KnownVariants {
    name: String,
    all: Vec<Contents>,
}

impl KnownVariants {
    /// The variants, for an adapter called `name`.
    ///
    /// # Errors
    /// If a tensor cannot be created.
    pub fn new(name: &str) -> Result<Self> {
        let all =
            Variant::all().map(|variant| contents(&variant.model(name)?, name)).collect::<Result<_>>()?;
        Ok(Self { name: name.to_owned(), all })
    }

    /// The variant that `folder` holds; `None` if it does not hold a complete one.
    ///
    /// # Errors
    /// If it cannot be loaded.
    pub fn in_folder(&self, folder: &Path) -> Result<Option<Variant>> {
        let mut model = Victim::new()?;
        model.load_adapter(folder, &self.name)?;
        let found = contents(&model, &self.name)?;
        Ok(self.all.iter().position(|known| *known == found).map(Variant))
    }
}
