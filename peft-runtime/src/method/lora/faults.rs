//! What is wrong with the values of a LoRA config.

use super::config::LoraSettings;
use super::eva_config::EvaConfig;
use super::init::LoraInit;
use crate::config::{ConfigFault, TokenIndices, finite_fault, probability_fault, rank_fault};

/// The most iterations of an init: a config from elsewhere does not keep a program busy for good.
const MOST_ITERATIONS: usize = 1000;

impl LoraSettings {
    /// All that is wrong with the values.
    pub(super) fn faults(&self) -> Vec<ConfigFault> {
        let mut faults: Vec<ConfigFault> = rank_fault("r", self.rank).into_iter().collect();
        faults.extend(finite_fault("lora_alpha", self.alpha));
        faults.extend(probability_fault("lora_dropout", self.dropout));
        faults.extend(self.rank_pattern.faults("rank_pattern", |rank| rank_fault("rank_pattern", *rank)));
        faults.extend(
            self.alpha_pattern.faults("alpha_pattern", |alpha| finite_fault("alpha_pattern", *alpha)),
        );
        if let Some((start, end)) = self.layer_replication.iter().flatten().find(|(start, end)| start >= end)
        {
            faults.push(("layer_replication", format!("the range {start}..{end} holds no block")));
        }
        faults.extend(self.trainable_token_indices.iter().flat_map(TokenIndices::faults));
        faults.extend(self.eva_config.as_ref().and_then(EvaConfig::fault));
        if self.lora_bias && !matches!(self.init, LoraInit::Default | LoraInit::Random) {
            let reason =
                format!("a bias on B needs the default or the random init, not `{}`", self.init.describe());
            faults.push(("lora_bias", reason));
        }
        if self.lora_bias && self.use_dora {
            faults.push(("lora_bias", "a bias on B and `use_dora` exclude each other".to_owned()));
        }
        let loftq = self.loftq_config.unwrap_or_default();
        let iterates = (1..=MOST_ITERATIONS).contains(&loftq.iterations);
        if self.init == LoraInit::Loftq && !(matches!(loftq.bits, 4 | 8) && iterates) {
            let reason =
                format!("`loftq_bits` is 4 or 8, and `loftq_iter` at least 1 and at most {MOST_ITERATIONS}");
            faults.push(("loftq_config", reason));
        }
        if let LoraInit::PissaIterations(iterations) = self.init
            && iterations > MOST_ITERATIONS
        {
            let reason =
                format!("{iterations} iterations are too many; {MOST_ITERATIONS} are enough for any weight");
            faults.push(("init_lora_weights", reason));
        }
        faults
    }
}
