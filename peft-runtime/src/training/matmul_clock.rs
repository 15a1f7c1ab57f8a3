//! How much of a run's time goes into matrix products.

use crate::ops::cpu::{clock, threads};

/// Measures how long the matrix products of this crate's layers and kernels take, in all threads of the process.
///
/// Only the multiplying itself counts, in main memory: not candle's own products, nor the dequantization of weights. A
/// process that never starts a clock pays nothing for it.
///
/// It tells whether a run is bound by arithmetic, which only another processor makes faster, or by the rest, which a
/// different batch size or fewer trainable layers may make faster.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::{Linear, Module};
/// use peft_runtime::Adapted;
/// use peft_runtime::train::MatmulClock;
///
/// let clock = MatmulClock::start();
/// let linear = Adapted::new(Linear::new(Tensor::ones((64, 64), DType::F32, &Device::Cpu)?, None));
/// linear.forward(&Tensor::ones((64, 64), DType::F32, &Device::Cpu)?)?;
/// assert!(clock.seconds() > 0.0);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct MatmulClock {
    start: u64,
}

impl MatmulClock {
    /// A clock that starts now.
    pub fn start() -> Self {
        clock::start();
        Self { start: clock::nanoseconds() }
    }

    /// The seconds since then in which products ran: the time of all threads, divided by the number of threads.
    pub fn seconds(&self) -> f64 {
        let nanoseconds = clock::nanoseconds() - self.start;
        nanoseconds as f64 / 1e9 / threads::count() as f64
    }
}
