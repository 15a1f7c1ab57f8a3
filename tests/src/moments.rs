//! Random moments at which processes are killed: different ones in each run, so that over time every moment comes up.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// A source of random moments.
pub struct Moments {
    /// The seed, which a test prints when it fails.
    pub seed: u64,
    generator: ChaCha8Rng,
}

impl Moments {
    /// A source whose seed is the time of day.
    pub fn of_this_run() -> Self {
        let seed = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        Self { seed, generator: ChaCha8Rng::seed_from_u64(seed) }
    }

    /// A duration below `limit`, in steps of a microsecond.
    pub fn below(&mut self, limit: Duration) -> Duration {
        let microseconds = u64::try_from(limit.as_micros()).unwrap_or(u64::MAX).max(1);
        Duration::from_micros(self.generator.next_u64() % microseconds)
    }
}
