//! How long requests took.

use std::time::Duration;

/// The times of the requests that were computed in one way.
#[derive(Default)]
pub struct Timings {
    /// One for each request.
    pub latencies: Vec<Duration>,
    /// The time in which all of them were served, concurrently.
    pub wall: Duration,
}

impl Timings {
    /// The latency that this share of the requests stays within, in milliseconds.
    pub fn percentile(&self, share: f64) -> f64 {
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        let place = (share * sorted.len() as f64).ceil() as usize;
        sorted.get(place.saturating_sub(1)).map_or(0.0, |latency| 1e3 * latency.as_secs_f64())
    }

    /// How many rows were computed in a second, if a request has `rows`.
    pub fn rows_per_second(&self, rows: usize) -> f64 {
        (self.latencies.len() * rows) as f64 / self.wall.as_secs_f64()
    }
}
