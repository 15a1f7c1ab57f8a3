//! Random orders and batches, reproducible with a seed.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// The numbers from 0 up to but not including `count`, in a random order.
pub fn shuffled(count: usize, seed: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    order.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    order
}

/// The items of `items` in a random order, in batches of `size`; the last one may be smaller.
pub fn shuffled_batches(items: &[usize], size: usize, seed: u64) -> Vec<Vec<usize>> {
    let order = shuffled(items.len(), seed);
    order.chunks(size.max(1)).map(|batch| batch.iter().map(|index| items[*index]).collect()).collect()
}
