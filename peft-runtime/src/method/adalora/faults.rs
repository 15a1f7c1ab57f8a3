//! What can be wrong with AdaLoRA's settings.

use super::config::AdaLoraSettings;
use crate::config::{ConfigFault, TokenIndices, finite_fault, large_rank_fault, probability_fault};

impl AdaLoraSettings {
    fn schedule_fault(&self) -> Option<ConfigFault> {
        let total = self.total_steps.filter(|steps| *steps > 0);
        let Some(total) = total else {
            return Some(("total_step", "the number of training steps must be given and above 0".to_owned()));
        };
        if self.warm_up.saturating_add(self.final_phase) >= total {
            let reason = format!(
                "{} steps of warm-up and {} of the final phase (`tfinal`) leave none of the {total} in between",
                self.warm_up, self.final_phase
            );
            return Some(("tinit", reason));
        }
        (self.interval == 0).then(|| ("deltaT", "there must be at least 1 step between two cuts".to_owned()))
    }

    /// Everything that is wrong with the values.
    pub(super) fn faults(&self) -> Vec<ConfigFault> {
        let mut faults: Vec<ConfigFault> = self.schedule_fault().into_iter().collect();
        faults.extend(large_rank_fault("init_r", self.init_rank));
        faults.extend(large_rank_fault("target_r", self.target_rank));
        faults.extend(finite_fault("lora_alpha", self.alpha));
        faults.extend(probability_fault("lora_dropout", self.dropout));
        faults.extend(self.trainable_token_indices.iter().flat_map(TokenIndices::faults));
        if !self.orthogonality_weight.is_finite() || self.orthogonality_weight < 0.0 {
            faults.push((
                "orth_reg_weight",
                format!("the weight is {}; it must be at least 0", self.orthogonality_weight),
            ));
        }
        faults
    }
}
