//! Reproducible random numbers: candle's generator for the CPU cannot be seeded.
//!
//! Every tensor has its own stream, identified by a seed and a label, so its values depend neither on the order of the
//! layers nor on what else is drawn.

pub(crate) mod draws;

use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::{DType, Device, Result, Tensor, Var};
use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use self::draws::next_draw;
use crate::ops::dropout::{DropoutMask, dropout};

/// The generator of the stream `label`, at position `draw`.
pub(crate) fn stream(seed: u64, label: &str, draw: u64) -> ChaCha8Rng {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&fnv1a(label).to_le_bytes());
    key[16..24].copy_from_slice(&draw.to_le_bytes());
    ChaCha8Rng::from_seed(key)
}

/// The 64-bit FNV-1a hash, which is the same on every machine and in every version.
fn fnv1a(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// A variable with values uniform in ±`bound`.
pub(crate) fn uniform_variable(
    rng: &mut ChaCha8Rng,
    bound: f64,
    shape: &[usize],
    dtype: DType,
    device: &Device,
) -> Result<Var> {
    let mut words = vec![0u32; shape.iter().product()];
    rng.fill(&mut words[..]);
    // The upper 24 bits, which a float holds without rounding, from -2^23 to 2^23 - 1 in steps of one.
    let scale = bound as f32 / (1 << 23) as f32;
    let values = words.into_iter().map(|word| ((word >> 8) as i32 - (1 << 23)) as f32 * scale).collect();
    variable(values, shape, dtype, device)
}

/// A variable with normally distributed values, with mean 0.
pub(crate) fn normal_variable(
    rng: &mut ChaCha8Rng,
    standard_deviation: f64,
    shape: &[usize],
    dtype: DType,
    device: &Device,
) -> Result<Var> {
    let deviation = standard_deviation as f32;
    let values = standard_normal(rng, shape).map(|value| value * deviation).collect();
    variable(values, shape, dtype, device)
}

/// A tensor with normally distributed values, with mean 0.
pub(crate) fn normal(
    rng: &mut ChaCha8Rng,
    standard_deviation: f64,
    shape: &[usize],
    dtype: DType,
    device: &Device,
) -> Result<Tensor> {
    Ok(normal_variable(rng, standard_deviation, shape, dtype, device)?.as_detached_tensor())
}

fn standard_normal(rng: &mut ChaCha8Rng, shape: &[usize]) -> impl Iterator<Item = f32> {
    Distribution::<f32>::sample_iter(StandardNormal, rng).take(shape.iter().product())
}

/// A variable with these values, which are not copied if they already have the right dtype and device.
fn variable(values: Vec<f32>, shape: &[usize], dtype: DType, device: &Device) -> Result<Var> {
    if dtype == DType::F32 {
        return Var::from_vec(values, shape, device);
    }
    Var::from_tensor(&Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dtype)?.to_device(device)?)
}

/// The masks of one layer's dropout: each call draws the next one.
#[derive(Debug)]
pub(crate) struct DropoutStream {
    seed: u64,
    label: String,
    draws: AtomicU64,
}

impl DropoutStream {
    pub(crate) fn new(seed: u64, label: String) -> Self {
        Self { seed, label, draws: AtomicU64::new(0) }
    }

    /// How many masks have been drawn.
    pub(crate) fn position(&self) -> u64 {
        self.draws.load(Ordering::Relaxed)
    }

    /// Moves to the mask after the first `draws`.
    pub(crate) fn set_position(&self, draws: u64) {
        self.draws.store(draws, Ordering::Relaxed);
    }

    /// Continues with the masks of another layer, at the same position.
    pub(crate) fn set_label(&mut self, label: String) {
        self.label = label;
    }

    /// The next mask, which drops with the given probability.
    pub(crate) fn mask(&self, probability: f64) -> Result<DropoutMask> {
        let draw = next_draw(|| self.draws.fetch_add(1, Ordering::Relaxed))?;
        let key = stream(self.seed, &self.label, draw).next_u64();
        Ok(DropoutMask::new(key, probability))
    }

    /// `x` with elements zeroed with the given probability and the others scaled by `1 / (1 - probability)`.
    pub(crate) fn apply(&self, x: &Tensor, probability: f64) -> Result<Tensor> {
        dropout(x, self.mask(probability)?)
    }
}

impl Clone for DropoutStream {
    fn clone(&self) -> Self {
        Self { seed: self.seed, label: self.label.clone(), draws: AtomicU64::new(self.position()) }
    }
}

#[cfg(test)]
mod tests {
    use super::{DropoutStream, normal, stream, uniform_variable};
    use candle_core::{DType, Device, Tensor};

    #[test]
    fn the_same_seed_and_label_give_the_same_values_and_others_do_not() {
        let draw = |seed, label| {
            let mut rng = stream(seed, label, 0);
            uniform_variable(&mut rng, 0.5, &[100], DType::F32, &Device::Cpu)
                .unwrap()
                .to_vec1::<f32>()
                .unwrap()
        };
        assert_eq!(draw(1, "a"), draw(1, "a"));
        assert_ne!(draw(1, "a"), draw(2, "a"));
        assert_ne!(draw(1, "a"), draw(1, "b"));
        assert!(draw(1, "a").iter().all(|value| value.abs() <= 0.5));
    }

    #[test]
    fn uniform_values_fill_the_interval_and_have_its_mean_and_deviation() {
        let values =
            uniform_variable(&mut stream(0, "u", 0), 0.5, &[10_000], DType::F32, &Device::Cpu).unwrap();
        let values = values.to_vec1::<f32>().unwrap();
        let mean = values.iter().sum::<f32>() / 1e4;
        let deviation = (values.iter().map(|value| (value - mean).powi(2)).sum::<f32>() / 1e4).sqrt();
        assert!(mean.abs() < 0.01, "{mean}");
        assert!((deviation - 1.0 / 12f32.sqrt()).abs() < 0.005, "{deviation}");
        assert!(values.iter().any(|value| *value > 0.499) && values.iter().any(|value| *value < -0.499));
    }

    #[test]
    fn normal_values_have_the_standard_deviation_asked_for() {
        let values = normal(&mut stream(0, "n", 0), 0.02, &[10_000], DType::F32, &Device::Cpu).unwrap();
        let deviation = values.sqr().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
        assert!((deviation - 0.02).abs() < 0.001, "{deviation}");
    }

    #[test]
    fn dropout_keeps_the_mean_and_draws_a_new_mask_each_time() {
        let x = Tensor::ones(10_000, DType::F32, &Device::Cpu).unwrap();
        let stream = DropoutStream::new(0, "layer".to_owned());
        let first = stream.apply(&x, 0.25).unwrap();
        let mean = first.mean_all().unwrap().to_scalar::<f32>().unwrap();
        assert!((mean - 1.0).abs() < 0.03, "{mean}");
        let second = stream.apply(&x, 0.25).unwrap().to_vec1::<f32>().unwrap();
        assert_ne!(first.to_vec1::<f32>().unwrap(), second);
        stream.set_position(1);
        assert_eq!(stream.apply(&x, 0.25).unwrap().to_vec1::<f32>().unwrap(), second);
    }
}
