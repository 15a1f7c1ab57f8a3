//! The forward pass of a layer with adapters.

use candle_core::{Device, Result, Tensor, bail};

use super::scope::{self, BASE_ROW};
use super::{AdapterStack, BaseLayer, LayerInput, Slot};
use crate::adapter::{Adapter, Call, Geometry};
use crate::ops::add_promoted;

/// The output of `base` with the adapters in use, added to a residual if there is one.
pub(super) fn forward<L: BaseLayer>(
    base: &L,
    merged: Option<&L>,
    stack: &AdapterStack,
    input: LayerInput<'_>,
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    stack.note_call(scope::tracks());
    if scope::record(stack, input)? || !stack.enabled() {
        return plain(base, input, residual);
    }
    if let Some(rows) = scope::rows() {
        return added(forward_rows(base, stack, &input.tensor()?, &rows)?, residual);
    }
    if let Some(merged) = merged {
        return plain(merged, input, residual);
    }
    let slots: Vec<&Slot> = stack.active_slots().collect();
    let adapt = |layer: &L| with_borrowed(layer, stack, |borrowed| adapt(borrowed, &slots, input, residual));
    with_copy(base, &slots, adapt)
}

/// The output of a layer without adapters, added to a residual if there is one.
pub(super) fn plain<L: BaseLayer>(
    layer: &L,
    input: LayerInput<'_>,
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    match residual.and_then(|residual| layer.forward_sum(input, None, residual)) {
        Some(sum) => sum,
        None => added(layer.forward_base(&input.tensor()?)?, residual),
    }
}

fn added(output: Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
    match residual {
        Some(residual) => add_promoted(residual, &output),
        None => Ok(output),
    }
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

/// What a forward pass borrows from its layer.
struct BorrowedLayer<'l, L> {
    layer: &'l L,
    geometry: &'l Geometry,
    bias: Option<&'l Tensor>,
    weight: &'l dyn Fn() -> Result<Tensor>,
    base: &'l dyn Fn(&Tensor) -> Result<Tensor>,
    training: bool,
}

/// Calls `f` with what a pass borrows from the layer.
fn with_borrowed<L: BaseLayer, T>(
    layer: &L,
    stack: &AdapterStack,
    f: impl FnOnce(&BorrowedLayer<'_, L>) -> T,
) -> T {
    let parameters = layer.parameters();
    let bias = parameters.iter().find(|(name, _)| *name == "bias").map(|(_, bias)| *bias);
    let weight = || layer.dense_weight();
    let base = |x: &Tensor| layer.forward_base(x);
    let (geometry, training) = (stack.geometry(), stack.training());
    f(&BorrowedLayer { layer, geometry, bias, weight: &weight, base: &base, training })
}

impl<L> BorrowedLayer<'_, L> {
    /// The slot's adapter, if it has one here, and the call to pass to it.
    fn call<'f>(&'f self, slot: &'f Slot) -> Option<(&'f dyn Adapter, Call<'f>)> {
        let tracks = slot.trainable && scope::tracks();
        let call = Call {
            geometry: self.geometry,
            bias: self.bias,
            weight: self.weight,
            base: self.base,
            training: self.training,
            tracks,
            dropout: &slot.dropout,
        };
        Some((slot.adapter()?.as_ref(), call))
    }
}

/// The layer's output with the slots' adapters one after the other, rounded to the layer's own dtype at the end, and added
/// to a residual if there is one.
fn adapt<L: BaseLayer>(
    borrowed: &BorrowedLayer<'_, L>,
    slots: &[&Slot],
    input: LayerInput<'_>,
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    let layer = borrowed.layer;
    let adapters: Vec<(&dyn Adapter, Call<'_>)> =
        slots.iter().filter_map(|slot| borrowed.call(slot)).collect();
    let terms = match adapters.first() {
        Some((adapter, call)) => adapter.low_rank(call)?,
        None => None,
    };
    // No adapter, or a single one that adds a low-rank product and does nothing else.
    if let Some(residual) = residual
        && adapters.len() == usize::from(terms.is_some())
        && let Some(sum) = layer.forward_sum(input, terms.as_ref(), residual)
    {
        return sum;
    }

    // An adapter that changes the input changes it for the layer and all adapters before it, as merging would.
    let mut base_input = input.tensor()?;
    let mut inputs = vec![base_input.clone(); adapters.len()];
    for (i, (adapter, call)) in adapters.iter().enumerate().rev() {
        inputs[i] = base_input.clone();
        if let Some(changed) = adapter.adapt_input(call, &base_input)? {
            base_input = changed;
        }
    }

    let fused = terms.and_then(|terms| layer.forward_low_rank(&base_input, &terms));
    let first = usize::from(fused.is_some());
    let mut output = match fused {
        Some(output) => output?,
        None => layer.forward_base(&base_input)?,
    };
    let dtype = output.dtype();
    for ((adapter, call), input) in adapters.iter().zip(&inputs).skip(first) {
        output = adapter.adapt_output(call, input, output)?;
    }
    added(output.to_dtype(dtype)?, residual)
}

/// Rows of a batch computed by the same adapter, or by none.
struct Group<'s> {
    slot: Option<&'s Slot>,
    rows: Vec<u32>,
}

/// The output when each row of the batch has its own adapter: rows with the same adapter are computed together.
fn forward_rows<L: BaseLayer>(base: &L, stack: &AdapterStack, x: &Tensor, rows: &[String]) -> Result<Tensor> {
    let batch = x.dims().first().copied().unwrap_or_default();
    if batch != rows.len() {
        bail!("{} rows are routed to adapters, but the layer sees a batch of {batch}", rows.len())
    }
    let groups = group_rows(stack, rows);
    let compute = |slot: Option<&Slot>, x: &Tensor| {
        let slots: Vec<&Slot> = slot.into_iter().collect();
        let input = LayerInput::Tensor(x);
        let adapt = |layer: &L| with_borrowed(layer, stack, |borrowed| adapt(borrowed, &slots, input, None));
        with_copy(base, &slots, adapt)
    };
    if let [group] = groups.as_slice() {
        return compute(group.slot, x);
    }
    let order: Vec<u32> = groups.iter().flat_map(|group| group.rows.iter().copied()).collect();
    let x = select_rows(x, &order)?;
    let mut inputs = Vec::with_capacity(groups.len());
    let mut start = 0;
    for group in &groups {
        inputs.push(x.narrow(0, start, group.rows.len())?);
        start += group.rows.len();
    }
    let has_copy = |group: &Group<'_>| group.slot.is_some_and(|slot| slot.copy().is_some());
    let outputs = if groups.iter().any(has_copy) {
        groups.iter().zip(&inputs).map(|(group, x)| compute(group.slot, x)).collect::<Result<_>>()?
    } else {
        with_borrowed(base, stack, |borrowed| forward_groups(borrowed, &groups, &x, &inputs))?
    };
    let mut place = vec![0u32; order.len()];
    for (position, row) in (0..).zip(order) {
        place[row as usize] = position;
    }
    select_rows(&Tensor::cat(&outputs, 0)?, &place)
}

/// The groups in the order of their first rows. Rows whose adapter this layer does not have are plain rows.
fn group_rows<'s>(stack: &'s AdapterStack, rows: &[String]) -> Vec<Group<'s>> {
    let mut groups: Vec<Group<'s>> = Vec::new();
    for (index, row) in (0..).zip(rows) {
        let slot = if row == BASE_ROW { None } else { stack.slot(row) };
        let name = slot.map(|slot| &slot.name);
        match groups.iter_mut().find(|group| group.slot.map(|slot| &slot.name) == name) {
            Some(group) => group.rows.push(index),
            None => groups.push(Group { slot, rows: vec![index] }),
        }
    }
    groups
}

/// The outputs of the groups, with one pass of the layer itself over all of them.
fn forward_groups<L: BaseLayer>(
    borrowed: &BorrowedLayer<'_, L>,
    groups: &[Group<'_>],
    x: &Tensor,
    inputs: &[Tensor],
) -> Result<Vec<Tensor>> {
    let calls: Vec<Option<_>> =
        groups.iter().map(|group| group.slot.and_then(|slot| borrowed.call(slot))).collect();
    let mut changed = false;
    let mut base_inputs = Vec::with_capacity(inputs.len());
    for (call, x) in calls.iter().zip(inputs) {
        let changed_input = match call {
            Some((adapter, call)) => adapter.adapt_input(call, x)?,
            None => None,
        };
        changed |= changed_input.is_some();
        base_inputs.push(changed_input.unwrap_or_else(|| x.clone()));
    }
    let output = if changed {
        borrowed.layer.forward_base(&Tensor::cat(&base_inputs, 0)?)?
    } else {
        borrowed.layer.forward_base(x)?
    };
    let mut outputs = Vec::with_capacity(inputs.len());
    let mut start = 0;
    for (call, x) in calls.iter().zip(inputs) {
        let length = x.dim(0)?;
        let part = output.narrow(0, start, length)?;
        start += length;
        outputs.push(match call {
            Some((adapter, call)) => adapter.adapt_output(call, x, part)?.to_dtype(output.dtype())?,
            None => part,
        });
    }
    Ok(outputs)
}

fn select_rows(x: &Tensor, rows: &[u32]) -> Result<Tensor> {
    if (0..).zip(rows).all(|(position, row): (u32, &u32)| position == *row) {
        return x.contiguous();
    }
    let rows = Tensor::new(rows, &Device::Cpu)?.to_device(x.device())?;
    x.contiguous()?.index_select(&rows, 0)
}
