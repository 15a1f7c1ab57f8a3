//! Continuing a text token by token.

use candle_core::{DType, Device, Tensor, bail};
use rand::RngCore;
use rand_chacha::ChaCha8Rng;

use crate::error::{Error, Result};
use crate::layer::no_grad;
use crate::ops::random::stream;

pub use super::cache::KvCache;

/// A language model that can continue sequences.
pub trait CausalModel {
    /// An empty cache for this model.
    fn new_cache(&self) -> KvCache;

    /// The logits after the last of `input_ids`, `[batch, vocabulary]`.
    ///
    /// `input_ids` have the shape `[batch, length]` and continue what `cache` holds; they are added to it. No gradient
    /// reaches what was added before.
    ///
    /// # Errors
    /// If the shapes do not fit, or the sequence gets longer than the model can take.
    fn next_logits(&self, input_ids: &Tensor, cache: &mut KvCache) -> candle_core::Result<Tensor>;

    /// Where the model's weights are.
    fn device(&self) -> &Device;
}

/// How to continue a text.
///
/// ```
/// use peft_runtime::models::generate::GenerateOptions;
///
/// let options = GenerateOptions::new(64).with_temperature(0.8).with_top_p(0.95).with_seed(7).with_stop_tokens([2]);
/// assert_eq!(options.max_new_tokens, 64);
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct GenerateOptions {
    /// The number of tokens after which generation always stops.
    pub max_new_tokens: usize,
    /// What the logits are divided by before a token is drawn; at 0 the most probable token is taken.
    pub temperature: f64,
    /// Tokens are drawn from the most probable ones that together have this probability.
    pub top_p: f64,
    /// The seed of the random numbers: the same seed draws the same tokens.
    pub seed: u64,
    /// The tokens that end the text; they are not part of it.
    pub stop_tokens: Vec<u32>,
}

impl GenerateOptions {
    /// Takes the most probable token each time, until there are `max_new_tokens`.
    pub fn new(max_new_tokens: usize) -> Self {
        Self { max_new_tokens, temperature: 0.0, top_p: 1.0, seed: 0, stop_tokens: Vec::new() }
    }

    /// Draws tokens; a higher temperature draws improbable ones more often.
    #[must_use]
    pub fn with_temperature(mut self, temperature: f64) -> Self {
        self.temperature = temperature;
        self
    }

    /// Draws only from the most probable tokens that together have the probability `top_p`.
    #[must_use]
    pub fn with_top_p(mut self, top_p: f64) -> Self {
        self.top_p = top_p;
        self
    }

    /// Sets the seed of the random numbers.
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Ends the text at any of these tokens.
    #[must_use]
    pub fn with_stop_tokens(mut self, tokens: impl IntoIterator<Item = u32>) -> Self {
        self.stop_tokens = tokens.into_iter().collect();
        self
    }

    fn check(&self) -> Result<()> {
        let Self { temperature, top_p, .. } = self;
        if !(temperature.is_finite() && *temperature >= 0.0) {
            let expected = "a finite number and at least 0";
            return Err(Error::Setting { setting: "temperature", value: *temperature, expected });
        }
        if !(*top_p > 0.0 && *top_p <= 1.0) {
            let expected = "above 0 and at most 1";
            return Err(Error::Setting { setting: "top_p", value: *top_p, expected });
        }
        Ok(())
    }
}

/// Continues `prompt` and returns the new tokens; `on_token` is called with each as it is generated.
///
/// The active adapters apply. Call `eval()` on the model first if it was in training mode: otherwise dropout applies as
/// well.
///
/// ```no_run
/// use candle_core::Device;
/// use peft_runtime::models::generate::{GenerateOptions, generate};
/// use peft_runtime::models::llama::LlamaModel;
///
/// let model = LlamaModel::from_gguf("path/to/model.gguf", &Device::Cpu)?;
/// let tokens = generate(&model, &[1, 504, 1270], &GenerateOptions::new(32), |_| ())?;
/// # let _ = tokens;
/// # Ok::<(), peft_runtime::Error>(())
/// ```
///
/// # Errors
/// If an option or the prompt is invalid, or the model cannot take the sequence.
pub fn generate<M: CausalModel + ?Sized>(
    model: &M,
    prompt: &[u32],
    options: &GenerateOptions,
    mut on_token: impl FnMut(u32),
) -> Result<Vec<u32>> {
    options.check()?;
    if prompt.is_empty() {
        return Err(Error::EmptyPrompt);
    }
    let mut sampler = Sampler::new(options);
    let mut cache = model.new_cache();
    let mut tokens: Vec<u32> = Vec::new();
    no_grad(|| -> Result<Vec<u32>> {
        while tokens.len() < options.max_new_tokens {
            let input = tokens.last().map_or(prompt, std::slice::from_ref);
            let ids = Tensor::new(input, model.device())?.unsqueeze(0)?;
            let token = sampler.choose(&model.next_logits(&ids, &mut cache)?.squeeze(0)?)?;
            if options.stop_tokens.contains(&token) {
                break;
            }
            on_token(token);
            tokens.push(token);
        }
        Ok(tokens)
    })
}

/// Chooses tokens by their logits.
struct Sampler {
    temperature: f64,
    top_p: f64,
    random: ChaCha8Rng,
}

impl Sampler {
    fn new(options: &GenerateOptions) -> Self {
        let GenerateOptions { temperature, top_p, seed, .. } = *options;
        Self { temperature, top_p, random: stream(seed, "generate", 0) }
    }

    /// A token for logits `[vocabulary]`.
    fn choose(&mut self, logits: &Tensor) -> candle_core::Result<u32> {
        let logits = logits.to_dtype(DType::F32)?.to_vec1::<f32>()?;
        if logits.is_empty() || logits.iter().any(|logit| logit.is_nan()) {
            bail!("the logits of the next token are empty or contain NaN")
        }
        let best = most_probable(&logits);
        let token = if self.temperature == 0.0 { best } else { self.draw(&logits, best) };
        Ok(token as u32)
    }

    fn draw(&mut self, logits: &[f32], best: usize) -> usize {
        let highest = f64::from(logits[best]);
        let weight = |logit: &f32| ((f64::from(*logit) - highest) / self.temperature).exp();
        let mut weights: Vec<(usize, f64)> = logits.iter().map(weight).enumerate().collect();
        // A stable sort: tokens of equal weight keep their order.
        weights.sort_by(|(_, a), (_, b)| b.total_cmp(a));
        let total: f64 = weights.iter().map(|(_, weight)| weight).sum();
        let (mut count, mut kept) = (0, 0.0);
        while count < weights.len() && kept < self.top_p * total {
            kept += weights[count].1;
            count += 1;
        }
        weights.truncate(count);
        let mut left = self.uniform() * kept;
        for (token, weight) in &weights {
            left -= weight;
            if left < 0.0 {
                return *token;
            }
        }
        best
    }

    /// A number from 0 (inclusive) to 1 (exclusive).
    fn uniform(&mut self) -> f64 {
        (self.random.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// The index of the highest logit; of equal ones, the first.
fn most_probable(logits: &[f32]) -> usize {
    let mut best = 0;
    for (token, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = token;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::{GenerateOptions, Sampler};
    use candle_core::{Device, Tensor};

    fn tokens(options: &GenerateOptions, logits: &[f32], count: usize) -> Vec<u32> {
        let logits = Tensor::new(logits, &Device::Cpu).unwrap();
        let mut sampler = Sampler::new(options);
        (0..count).map(|_| sampler.choose(&logits).unwrap()).collect()
    }

    #[test]
    fn without_temperature_the_first_of_the_most_probable_is_taken() {
        assert_eq!(tokens(&GenerateOptions::new(1), &[0.0, 3.0, 3.0, -1.0], 2), [1, 1]);
    }

    #[test]
    fn tokens_are_drawn_as_often_as_they_are_probable() {
        let options = GenerateOptions::new(1).with_temperature(2.0);
        let logits = [2.0 * 0.7f32.ln(), f32::NEG_INFINITY, 2.0 * 0.3f32.ln()];
        let drawn = tokens(&options, &logits, 20_000);
        let share = drawn.iter().filter(|token| **token == 0).count() as f64 / 20_000.0;
        assert!((share - 0.7).abs() < 0.02, "{share}");
        assert!(!drawn.contains(&1));
    }

    #[test]
    fn top_p_leaves_the_improbable_out() {
        let options = GenerateOptions::new(1).with_temperature(1.0).with_top_p(0.75);
        let logits = [0.1f32.ln(), 0.5f32.ln(), 0.3f32.ln(), 0.1f32.ln()];
        let drawn = tokens(&options, &logits, 1_000);
        assert!(drawn.contains(&1) && drawn.contains(&2) && !drawn.contains(&0) && !drawn.contains(&3));
        assert_eq!(tokens(&options.with_top_p(1e-9), &logits, 5), [1; 5]);
    }

    #[test]
    fn the_same_seed_draws_the_same_tokens() {
        let draw =
            |seed| tokens(&GenerateOptions::new(1).with_temperature(1.0).with_seed(seed), &[0.0; 50], 20);
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let options = GenerateOptions::new(1);
        assert!(options.clone().with_temperature(-1.0).check().is_err());
        assert!(options.clone().with_temperature(f64::NAN).check().is_err());
        assert!(options.clone().with_top_p(0.0).check().is_err());
        assert!(options.with_top_p(1.5).check().is_err());
    }
}
