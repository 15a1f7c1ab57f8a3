//! `peft combine`: several adapters as one, without a model.

use std::path::PathBuf;

use peft_runtime::{CombineOptions, StoredAdapter};
use serde_json::json;

use crate::arguments::{CombineArguments, weights};
use crate::failure::Failure;
use crate::files::{check_free, open_adapter, open_base_weights, warn_of_left_out};
use crate::float_type::rounded;
use crate::terminal::{print, print_json};

/// Runs the command.
///
/// # Errors
/// If a file cannot be read or written, or the adapters cannot be combined.
pub fn run(arguments: &CombineArguments) -> Result<(), Failure> {
    check_free(&arguments.output, StoredAdapter::is_in(&arguments.output), arguments.force)?;
    let base = open_base_weights(&arguments.base)?;
    let open = |path: &PathBuf| open_adapter(path, base.as_ref());
    let adapters = arguments.adapters.iter().map(open).collect::<Result<Vec<_>, _>>()?;
    adapters.iter().for_each(warn_of_left_out);
    let parts: Vec<(&StoredAdapter, f64)> =
        adapters.iter().zip(weights(&arguments.weights, adapters.len())).collect();
    let combined = StoredAdapter::combine(&parts, &options(arguments), base.as_ref())?;
    let combined = match arguments.dtype {
        Some(dtype) => rounded(&combined, dtype)?,
        None => combined,
    };
    combined.save(&arguments.output)?;
    let layers = combined.layers()?;
    let ranks: Vec<usize> = layers.iter().filter_map(|layer| layer.rank).collect();
    let rank = ranks.iter().max();
    if arguments.json {
        return print_json(&json!({
            "output": arguments.output,
            "type": arguments.combination.name(),
            "layers": layers.len(),
            "rank": rank,
        }));
    }
    let rank = rank.map(|rank| format!(" of rank {rank}")).unwrap_or_default();
    print(&format!(
        "{}: the `{}` combination of {} adapters, {} layers{rank}\n",
        arguments.output.display(),
        arguments.combination,
        adapters.len(),
        layers.len(),
    ))
}

fn options(arguments: &CombineArguments) -> CombineOptions {
    let mut options = CombineOptions::new(arguments.combination)
        .with_majority_sign(arguments.majority_sign)
        .with_restarts(arguments.restart)
        .with_seed(arguments.seed);
    if let Some(rank) = arguments.svd_rank {
        options = options.with_svd_rank(rank);
    }
    if let Some(quantile) = arguments.svd_clamp {
        options = options.with_svd_clamp(quantile);
    }
    if let Some(density) = arguments.density {
        options = options.with_density(density);
    }
    options
}
