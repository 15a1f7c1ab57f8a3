//! What is in a folder of mlx-lm's.

use std::collections::BTreeSet;

use serde_json::Value;

use super::Search;
use crate::check::feature::Feature;

impl Search<'_> {
    /// What mlx-lm's own folder has.
    pub(super) fn mlx(&mut self) {
        let is_factor = |name: &str| [".lora_a", ".lora_b", ".m"].iter().any(|end| name.ends_with(end));
        let is_full = self.adapter.field("fine_tune_type").is_some_and(|kind| kind == "full");
        let names = self.keys.iter().map(|(name, _)| name).filter(|name| !is_full && !is_factor(name));
        let strangers: Vec<String> = names.cloned().collect();
        self.add_if(Feature::Strangers, "tensors that are no factors", strangers, false);
        let missing =
            ["num_layers", "lora_parameters"].into_iter().find(|field| self.adapter.field(field).is_none());
        if let Some(field) = missing.filter(|_| !is_full) {
            self.add(Feature::Inconsistent, format!("a config without `{field}`"), Vec::new());
        }
        let rank = self
            .adapter
            .field("lora_parameters")
            .and_then(|parameters| parameters.get("rank"))
            .and_then(Value::as_u64);
        // [in, rank], and [rank, out] of each expert.
        let factors = self
            .adapter
            .tensors
            .iter()
            .filter(|tensor| tensor.key.ends_with(".lora_a") && tensor.shape.len() == 2);
        let others = factors.filter(|tensor| tensor.shape.last().map(|last| *last as u64) != rank);
        let others: Vec<String> = others.map(|tensor| tensor.key.clone()).collect();
        self.add_if(Feature::MixedRanks, "factors of another rank than the config's", others, false);
        let of = |end: &str| -> BTreeSet<&str> {
            self.keys.iter().filter_map(|(name, _)| name.strip_suffix(end)).collect()
        };
        let (a, b) = (of(".lora_a"), of(".lora_b"));
        let half: Vec<String> = a.symmetric_difference(&b).map(|path| (*path).to_owned()).collect();
        self.add_if(Feature::HalfPairs, "modules with one factor only", half, false);
    }
}
