//! Activations, by themselves and as gates.

use crate::ops::cpu::dispatch::dispatched;
use crate::ops::cpu::real::Real;

/// √(2 / π).
const SQRT_2_OVER_PI: f64 = 0.7978845608028654;
/// 1 / √(2 π).
const DENSITY_AT_ZERO: f64 = 0.3989422804014327;
const CUBIC: f64 = 0.044715;

/// A function of one number, with its derivative.
pub(crate) trait Activation: Send + Sync + 'static {
    fn value<T: Real>(x: T) -> T;

    /// The function's value and its derivative.
    fn value_and_slope<T: Real>(x: T) -> (T, T);
}

/// `x · σ(x)`.
pub(crate) struct Silu;

/// The approximation of GELU by a tanh: `x / 2 · (1 + tanh(u)) = x · σ(2u)` with `u = √(2/π) · (x + 0.044715 x³)`.
pub(crate) struct GeluTanh;

/// `x · Φ(x)`.
pub(crate) struct GeluErf;

#[inline(always)]
fn sigmoid<T: Real>(x: T) -> T {
    T::ONE / (T::ONE + (-x).exp())
}

impl Activation for Silu {
    #[inline(always)]
    fn value<T: Real>(x: T) -> T {
        x * sigmoid(x)
    }

    #[inline(always)]
    fn value_and_slope<T: Real>(x: T) -> (T, T) {
        let gate = sigmoid(x);
        (x * gate, gate * (T::ONE + x * (T::ONE - gate)))
    }
}

impl Activation for GeluTanh {
    #[inline(always)]
    fn value<T: Real>(x: T) -> T {
        x * sigmoid(T::of(2.0 * SQRT_2_OVER_PI) * (x + T::of(CUBIC) * x * x * x))
    }

    #[inline(always)]
    fn value_and_slope<T: Real>(x: T) -> (T, T) {
        let gate = sigmoid(T::of(2.0 * SQRT_2_OVER_PI) * (x + T::of(CUBIC) * x * x * x));
        let inner = T::of(2.0 * SQRT_2_OVER_PI) * (T::ONE + T::of(3.0 * CUBIC) * x * x);
        (x * gate, gate + x * gate * (T::ONE - gate) * inner)
    }
}

impl Activation for GeluErf {
    #[inline(always)]
    fn value<T: Real>(x: T) -> T {
        x * normal_distribution(x)
    }

    #[inline(always)]
    fn value_and_slope<T: Real>(x: T) -> (T, T) {
        let below = normal_distribution(x);
        let density = T::of(DENSITY_AT_ZERO) * (-x * x * T::of(0.5)).exp();
        (x * below, below + x * density)
    }
}

/// Φ(x).
#[inline(always)]
fn normal_distribution<T: Real>(x: T) -> T {
    T::of(0.5) * (T::ONE + (x * T::of(std::f64::consts::FRAC_1_SQRT_2)).erf())
}

dispatched! {
    /// a(x).
    pub(crate) fn activate[A: Activation, T: Real](y: &mut [T], x: &[T]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y = A::value(*x);
        }
    }

    /// dx = dy · a′(x).
    pub(crate) fn activate_gradient[A: Activation, T: Real](dx: &mut [T], x: &[T], dy: &[T]) {
        for ((dx, x), dy) in dx.iter_mut().zip(x).zip(dy) {
            *dx = *dy * A::value_and_slope(*x).1;
        }
    }

    /// a(gate) · up.
    pub(crate) fn gate[A: Activation, T: Real](y: &mut [T], gate: &[T], up: &[T]) {
        for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
            *y = A::value(*gate) * *up;
        }
    }

    /// dgate = dy · up · a′(gate), dup = dy · a(gate).
    pub(crate) fn gate_gradients[A: Activation, T: Real](
        dgate: &mut [T],
        dup: &mut [T],
        gate: &[T],
        up: &[T],
        dy: &[T],
    ) {
        let inputs = gate.iter().zip(up).zip(dy);
        for ((dgate, dup), ((gate, up), dy)) in dgate.iter_mut().zip(dup).zip(inputs) {
            let (value, slope) = A::value_and_slope(*gate);
            *dgate = *dy * *up * slope;
            *dup = *dy * value;
        }
    }
}
