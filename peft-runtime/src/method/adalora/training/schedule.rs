//! How the budget of ranks falls with the steps.

use crate::method::AdaLoraConfig;

/// Where in the schedule a step lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The budget is still the full one, or no cut is due.
    Watch,
    /// Ranks are cut to the budget.
    Cut,
    /// Ranks are cut for the last time.
    LastCut,
    /// The ranks stay as the last cut left them.
    Final,
}

/// The budget of all layers together, by step.
#[derive(Clone, Copy, Debug)]
pub(super) struct BudgetSchedule {
    /// The budget at the beginning: the initial rank on every layer.
    pub(super) first: usize,
    /// The budget after the last cut: the target rank on every layer.
    last: usize,
    /// The last step of the warm-up.
    start: usize,
    /// The step of the last cut.
    end: usize,
    /// The steps between two cuts.
    interval: usize,
}

impl BudgetSchedule {
    /// The schedule of an adapter on so many layers.
    pub(super) fn new(config: &AdaLoraConfig, layers: usize) -> Self {
        Self {
            first: config.init_rank() * layers,
            last: config.target_rank() * layers,
            start: config.warm_up(),
            end: config.total_steps().saturating_sub(config.final_phase()),
            interval: config.interval(),
        }
    }

    /// The budget at `step`: the full one, then along a cubic curve down to the target.
    pub(super) fn budget_at(&self, step: usize) -> usize {
        let Self { first, last, start, end, .. } = *self;
        if step <= start {
            return first;
        }
        if step > end {
            return last;
        }
        #[expect(clippy::cast_precision_loss, reason = "steps and ranks are far below 2^53")]
        let (first, last, left) =
            (first as f64, last as f64, 1.0 - (step - start) as f64 / (end - start) as f64);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the value lies between the two budgets"
        )]
        let budget = ((first - last) * left.powi(3) + last) as usize;
        budget
    }

    /// The phase in which `step` lies.
    pub(super) fn phase(&self, step: usize) -> Phase {
        let due = step > self.start && step.is_multiple_of(self.interval);
        match step {
            step if step > self.end => Phase::Final,
            step if step == self.end => Phase::LastCut,
            _ if due => Phase::Cut,
            _ => Phase::Watch,
        }
    }
}
