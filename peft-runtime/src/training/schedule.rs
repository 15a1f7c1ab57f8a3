//! Learning-rate schedules, as in transformers.

use serde::{Deserialize, Serialize};

/// The factor of the learning rate in each step: a linear warm-up from 0, then one of three shapes.
///
/// ```
/// use peft_runtime::train::Schedule;
///
/// let schedule = Schedule::linear(10).with_warm_up(4);
/// assert_eq!(schedule.factor(0), 0.0);
/// assert_eq!(schedule.factor(2), 0.5);
/// assert_eq!(schedule.factor(4), 1.0);
/// assert_eq!(schedule.factor(7), 0.5);
/// assert_eq!(schedule.factor(10), 0.0);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schedule {
    shape: Shape,
    warm_up: u64,
    total: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Shape {
    Constant,
    Linear,
    Cosine,
}

impl Schedule {
    /// 1 in every step: `get_constant_schedule`, or with a warm-up `get_constant_schedule_with_warmup`.
    pub fn constant() -> Self {
        Self { shape: Shape::Constant, warm_up: 0, total: 0 }
    }

    /// Falls linearly to 0 at step `total`, and stays there: `get_linear_schedule_with_warmup`.
    pub fn linear(total: u64) -> Self {
        Self { shape: Shape::Linear, warm_up: 0, total }
    }

    /// Falls along half a cosine wave to 0 at step `total`: `get_cosine_schedule_with_warmup`.
    ///
    /// After that it stays at 0, where the one in transformers rises again.
    pub fn cosine(total: u64) -> Self {
        Self { shape: Shape::Cosine, warm_up: 0, total }
    }

    /// Lets the factor rise linearly from 0 over the first `steps` steps, which count towards the total.
    #[must_use]
    pub fn with_warm_up(mut self, steps: u64) -> Self {
        self.warm_up = steps;
        self
    }

    /// The number of steps until the factor is 0; `None` for a constant one.
    pub fn total_steps(&self) -> Option<u64> {
        (self.shape != Shape::Constant).then_some(self.total)
    }

    /// The number of steps of the warm-up.
    pub fn warm_up(&self) -> u64 {
        self.warm_up
    }

    /// The factor of step `step`, counted from 0: with a warm-up, that of the first step is 0.
    pub fn factor(&self, step: u64) -> f64 {
        let (step, warm_up, total) = (step as f64, self.warm_up as f64, self.total as f64);
        if step < warm_up {
            return step / warm_up;
        }
        let rest = (total - warm_up).max(1.0);
        match self.shape {
            Shape::Constant => 1.0,
            Shape::Linear => ((total - step) / rest).max(0.0),
            Shape::Cosine => {
                let progress = ((step - warm_up) / rest).min(1.0);
                (0.5 * (1.0 + (std::f64::consts::PI * progress).cos())).max(0.0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Schedule;

    /// The factors of the first steps next to the expected ones.
    fn check(schedule: Schedule, expected: &[f64]) {
        for (step, expected) in (0..).zip(expected) {
            let found = schedule.factor(step);
            assert!((found - expected).abs() < 1e-15, "{schedule:?} at {step}: {found} {expected}");
        }
    }

    #[test]
    fn factors_are_those_of_transformers() {
        // transformers 5.23: the learning rates of an optimiser with lr = 1 under get_*_schedule_with_warmup, step by step.
        check(Schedule::constant(), &[1.0; 12]);
        check(Schedule::constant().with_warm_up(4), &[0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0]);
        let linear = [0.8333333333333334, 0.6666666666666666, 0.5, 0.3333333333333333, 0.16666666666666666];
        let warm_up = [0.0, 0.25, 0.5, 0.75, 1.0];
        check(Schedule::linear(10).with_warm_up(4), &[&warm_up[..], &linear, &[0.0, 0.0]].concat());
        check(Schedule::linear(10), &[1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0, 0.0]);
        let cosine = [0.9330127018922194, 0.75, 0.5, 0.2500000000000001, 0.06698729810778065, 0.0];
        check(Schedule::cosine(10).with_warm_up(4), &[&warm_up[..], &cosine].concat());
        let cosine =
            [1.0, 0.9755282581475768, 0.9045084971874737, 0.7938926261462366, 0.6545084971874737, 0.5];
        check(Schedule::cosine(10), &cosine);
    }

    #[test]
    fn after_the_last_step_the_rate_stays_at_zero() {
        for schedule in [Schedule::linear(10), Schedule::cosine(10), Schedule::cosine(4).with_warm_up(6)] {
            assert!((10..40).all(|step| schedule.factor(step) < 1e-15), "{schedule:?}");
        }
    }

    #[test]
    fn a_schedule_survives_json() {
        let schedule = Schedule::cosine(1000).with_warm_up(30);
        let text = serde_json::to_string(&schedule).unwrap();
        assert_eq!(text, r#"{"shape":"cosine","warm_up":30,"total":1000}"#);
        assert_eq!(serde_json::from_str::<Schedule>(&text).unwrap(), schedule);
    }
}
