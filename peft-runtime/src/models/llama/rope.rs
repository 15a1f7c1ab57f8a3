//! The rotary embedding: each pair of a head's values is rotated by an angle that grows with the position.
//! <https://arxiv.org/abs/2104.09864>

use std::f32::consts::TAU;

use candle_core::{DType, Device, Result, Tensor};

/// How the frequencies are changed so that a model takes longer sequences than it was first trained on.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub enum RopeScaling {
    /// Nothing.
    #[default]
    None,
    /// Every frequency is divided by `factor`.
    Linear {
        /// How much longer sequences get.
        factor: f64,
    },
    /// Llama 3: low frequencies are divided by `factor`, high ones stay, with a smooth transition in between.
    Llama3 {
        /// How much longer sequences get.
        factor: f64,
        /// Waves longer than the original length divided by this are low frequencies.
        low_freq_factor: f64,
        /// Waves shorter than the original length divided by this are high frequencies.
        high_freq_factor: f64,
        /// The longest sequence of the original training.
        original_max_position_embeddings: f64,
    },
    /// Each frequency is divided by its own factor, as GGUF files have it.
    Factors(Vec<f32>),
}

/// The frequencies of a model's rotary embedding, one for each pair.
#[derive(Clone, Debug)]
pub(super) struct Rotary {
    frequencies: Vec<f32>,
}

impl Rotary {
    /// The frequencies of heads of `size` values: powers of `base`, scaled.
    pub(super) fn new(base: f64, size: usize, scaling: &RopeScaling) -> Self {
        let base = base as f32;
        // In single precision, as the models were trained.
        let plain = (0..size / 2).map(|pair| 1.0 / base.powf((2 * pair) as f32 / size as f32));
        let scaled = plain.enumerate().map(|(pair, frequency)| scaling.scaled(pair, frequency));
        Self { frequencies: scaled.collect() }
    }

    /// The cosines and sines of the angles at `length` positions from `start` on, `[length, head size / 2]`.
    pub(super) fn at(
        &self,
        start: usize,
        length: usize,
        dtype: DType,
        device: &Device,
    ) -> Result<(Tensor, Tensor)> {
        let angles_at =
            |position: usize| self.frequencies.iter().map(move |frequency| position as f32 * frequency);
        let angles: Vec<f32> = (start..start + length).flat_map(angles_at).collect();
        let tensor = |function: fn(f32) -> f32| {
            let values: Vec<f32> = angles.iter().copied().map(function).collect();
            Tensor::from_vec(values, (length, self.frequencies.len()), &Device::Cpu)?
                .to_dtype(dtype)?
                .to_device(device)
        };
        Ok((tensor(f32::cos)?, tensor(f32::sin)?))
    }
}

impl RopeScaling {
    /// A number that is not valid as a divisor of frequencies, if there is one.
    pub(super) fn wrong_number(&self) -> Option<f64> {
        let numbers = match self {
            Self::None => Vec::new(),
            Self::Linear { factor } => vec![*factor],
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                vec![*factor, *low_freq_factor, *high_freq_factor, *original_max_position_embeddings]
            }
            Self::Factors(factors) => factors.iter().copied().map(f64::from).collect(),
        };
        numbers.into_iter().find(|number| !(number.is_finite() && *number > 0.0))
    }

    fn scaled(&self, pair: usize, frequency: f32) -> f32 {
        match self {
            Self::None => frequency,
            Self::Linear { factor } => frequency / *factor as f32,
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                let (factor, original) = (*factor as f32, *original_max_position_embeddings as f32);
                let (low, high) = (*low_freq_factor as f32, *high_freq_factor as f32);
                let wave = TAU / frequency;
                if wave < original / high {
                    return frequency;
                }
                if wave > original / low {
                    return frequency / factor;
                }
                let smooth = (original / wave - low) / (high - low);
                (1.0 - smooth) * frequency / factor + smooth * frequency
            }
            Self::Factors(factors) => frequency / factors.get(pair).copied().unwrap_or(1.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::RopeScaling;

    #[test]
    fn llama_3_leaves_high_frequencies_and_divides_low_ones() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192.0,
        };
        assert_eq!(scaling.scaled(0, 1.0), 1.0);
        assert_eq!(scaling.scaled(0, 1e-4), 1e-4 / 8.0);
        let between = scaling.scaled(0, 0.002);
        assert!(between > 0.002 / 8.0 && between < 0.002, "{between}");
    }
}
