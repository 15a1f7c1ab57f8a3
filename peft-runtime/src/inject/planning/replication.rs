//! `layer_replication`: a model's list of blocks rebuilt from ranges of it, before any adapter is added.

use crate::error::Fault;
use crate::layer::{AdapterStack, Slot};
use crate::module::{Injectable, block_lists, leaves};

/// The most blocks that a model can get.
const MOST_BLOCKS: usize = 4096;

/// The numbers of the blocks that `ranges` make up, each range excluding its end; `None` if the list stays as it is,
/// because nothing is requested or because another adapter has already done the same.
pub(super) fn plan<M: Injectable + ?Sized>(
    model: &M,
    ranges: &[(usize, usize)],
) -> Result<Option<Vec<usize>>, Fault> {
    if ranges.is_empty() {
        return Ok(None);
    }
    let wrong = |reason: String| Fault::Config { field: "layer_replication", reason };
    let all = leaves(model);
    let slots: Vec<&Slot> =
        all.iter().filter_map(|(_, leaf)| leaf.stack()).flat_map(AdapterStack::slots).collect();
    if slots.iter().any(|slot| slot.method.selection().replication == ranges) {
        return Ok(None);
    }
    if let Some(slot) = slots.first() {
        let reason =
            "its layers would be repeated with it; replicate before adding the first adapter".to_owned();
        return Err(Fault::Conflict { other: slot.name.clone(), reason });
    }
    let lists = block_lists(model);
    let [list] = lists.as_slice() else { return Err(Fault::BlockLists { lists: lists.len() }) };
    if let Some((start, end)) = ranges.iter().find(|(_, end)| *end > list.length) {
        let (start, end, path, blocks) = (*start, *end, list.path.clone(), list.length);
        return Err(Fault::ReplicatedRange { start, end, path, blocks });
    }
    if let Some((start, end)) = ranges.iter().find(|(start, end)| start >= end) {
        return Err(wrong(format!("the range {start}..{end} holds no block")));
    }
    let count: usize = ranges.iter().map(|(start, end)| end.saturating_sub(*start)).sum();
    if count > MOST_BLOCKS {
        return Err(wrong(format!("the ranges make {count} blocks, and at most {MOST_BLOCKS} are allowed")));
    }
    Ok(Some(ranges.iter().flat_map(|(start, end)| *start..*end).collect()))
}
