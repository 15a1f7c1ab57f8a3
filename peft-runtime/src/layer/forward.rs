//! The forward pass of a layer with adapters.

use candle_core::{Device, Result, Tensor, bail};

use super::scope::{self, BASE_ROW};
use super::{AdapterStack, BaseLayer, Slot};
use crate::adapter::{Adapter, Call};

/// The output of `base` with the adapters that act.
pub(super) fn forward<L: BaseLayer>(
    base: &L,
    merged: Option<&L>,
    stack: &AdapterStack,
    x: &Tensor,
) -> Result<Tensor> {
    if !stack.enabled() {
        return base.forward_base(x);
    }
    if let Some(rows) = scope::rows() {
        return forward_rows(base, stack, x, &rows);
    }
    if let Some(merged) = merged {
        return merged.forward_base(x);
    }
    let slots: Vec<&Slot> = stack.active_slots().collect();
    with_copy(base, &slots, |layer| adapt(layer, &slots, stack.training(), x))
}

/// Calls `f` with the layer that stands in for `base`: its copy, if one of the slots has one.
fn with_copy<L: BaseLayer>(
    base: &L,
    slots: &[&Slot],
    f: impl FnOnce(&L) -> Result<Tensor>,
) -> Result<Tensor> {
    let Some((slot, copies)) = slots.iter().find_map(|slot| Some((slot, slot.copy()?))) else {
        return f(base);
    };
    let tracks = slot.trainable && scope::tracks();
    let copy = base.map_parameters(&mut |name, own| {
        let var = copies.iter().find(|copy| copy.name == name).map(|copy| &copy.var);
        Ok(match var {
            Some(var) if tracks => var.as_tensor().clone(),
            Some(var) => var.as_detached_tensor(),
            None => own.clone(),
        })
    })?;
    f(&copy)
}

/// The layer's output with the slots' adapters one after the other, rounded to the layer's own dtype at the end.
fn adapt<L: BaseLayer>(layer: &L, slots: &[&Slot], training: bool, x: &Tensor) -> Result<Tensor> {
    let geometry = layer.geometry();
    let weight = || layer.dense_weight();
    let base = |x: &Tensor| layer.forward_base(x);
    let parameters = layer.parameters();
    let bias = parameters.iter().find(|(name, _)| *name == "bias").map(|(_, bias)| *bias);
    let adapters: Vec<(&dyn Adapter, Call<'_>)> = slots
        .iter()
        .filter_map(|slot| {
            let tracks = slot.trainable && scope::tracks();
            let (geometry, dropout) = (&geometry, &slot.dropout);
            let call = Call { geometry, bias, weight: &weight, base: &base, training, tracks, dropout };
            Some((slot.adapter()?.as_ref(), call))
        })
        .collect();

    // An adapter that changes the input changes it for the layer and all adapters before it, as merging would.
    let mut base_input = x.clone();
    let mut inputs = vec![x.clone(); adapters.len()];
    for (i, (adapter, call)) in adapters.iter().enumerate().rev() {
        inputs[i] = base_input.clone();
        if let Some(changed) = adapter.adapt_input(call, &base_input)? {
            base_input = changed;
        }
    }

    let fused = match adapters.first() {
        Some((adapter, call)) => {
            adapter.low_rank(call)?.and_then(|terms| layer.forward_low_rank(&base_input, &terms))
        }
        None => None,
    };
    let first = usize::from(fused.is_some());
    let mut output = match fused {
        Some(output) => output?,
        None => layer.forward_base(&base_input)?,
    };
    let dtype = output.dtype();
    for ((adapter, call), input) in adapters.iter().zip(&inputs).skip(first) {
        output = adapter.adapt_output(call, input, output)?;
    }
    output.to_dtype(dtype)
}

/// The output where each row of the batch has its own adapter: rows of one adapter are computed together.
fn forward_rows<L: BaseLayer>(base: &L, stack: &AdapterStack, x: &Tensor, rows: &[String]) -> Result<Tensor> {
    let batch = x.dims().first().copied().unwrap_or_default();
    if batch != rows.len() {
        bail!("{} rows are routed to adapters, but the layer sees a batch of {batch}", rows.len())
    }
    // Rows of adapters that this layer does not have are plain rows.
    let group_of = |row: &String| if row == BASE_ROW { None } else { stack.slot(row) };
    let mut groups: Vec<(Option<&Slot>, Vec<u32>)> = Vec::new();
    for (index, row) in (0..).zip(rows) {
        let slot = group_of(row);
        let name = slot.map(|slot| &slot.name);
        match groups.iter_mut().find(|(other, _)| other.map(|slot| &slot.name) == name) {
            Some((_, indices)) => indices.push(index),
            None => groups.push((slot, vec![index])),
        }
    }
    let compute = |slot: Option<&Slot>, x: &Tensor| {
        let slots: Vec<&Slot> = slot.into_iter().collect();
        with_copy(base, &slots, |layer| adapt(layer, &slots, stack.training(), x))
    };
    if let [(slot, _)] = groups.as_slice() {
        return compute(*slot, x);
    }
    let mut outputs = Vec::with_capacity(groups.len());
    for (slot, indices) in &groups {
        outputs.push(compute(*slot, &select_rows(x, indices)?)?);
    }
    let order: Vec<u32> = groups.iter().flat_map(|(_, indices)| indices.iter().copied()).collect();
    let mut place = vec![0u32; order.len()];
    for (position, row) in (0..).zip(order) {
        place[row as usize] = position;
    }
    select_rows(&Tensor::cat(&outputs, 0)?, &place)
}

fn select_rows(x: &Tensor, rows: &[u32]) -> Result<Tensor> {
    let rows = Tensor::new(rows, &Device::Cpu)?.to_device(x.device())?;
    x.contiguous()?.index_select(&rows, 0)
}
