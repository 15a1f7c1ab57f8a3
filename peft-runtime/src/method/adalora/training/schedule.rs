//! How the budget of ranks falls with the steps.

use super::rank_allocator::RankAllocator;

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

impl RankAllocator {
    /// The budget at `step`: the full one, then along a cubic curve down to the target.
    pub fn budget_at(&self, step: usize) -> usize {
        let (first, last) = (self.full_budget(), self.config.target_rank() * self.layers.len());
        let (start, end) = (self.config.warm_up(), self.last_cut());
        if step <= start {
            first
        } else if step > end {
            last
        } else {
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
    }

    /// The budget at the beginning: the initial rank on every layer.
    pub(super) fn full_budget(&self) -> usize {
        self.config.init_rank() * self.layers.len()
    }

    /// The step of the last cut.
    fn last_cut(&self) -> usize {
        self.config.total_steps().saturating_sub(self.config.final_phase())
    }

    /// The phase in which `step` lies.
    pub(super) fn phase(&self, step: usize) -> Phase {
        let last = self.last_cut();
        let due = step > self.config.warm_up() && step.is_multiple_of(self.config.interval());
        match step {
            step if step > last => Phase::Final,
            step if step == last => Phase::LastCut,
            _ if due => Phase::Cut,
            _ => Phase::Watch,
        }
    }
}
