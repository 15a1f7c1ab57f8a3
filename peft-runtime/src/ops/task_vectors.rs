//! Sums of several tensors that were trained separately: weighted, pruned, with elected signs.

use candle_core::{DType, Device, Result, Tensor};
use rand::Rng;

use crate::ops::random::stream;

/// `Σ weight · tensor`, summed in double precision and rounded once.
pub(crate) fn weighted_sum(tensors: &[Tensor], weights: &[f64]) -> Result<Tensor> {
    let Some(first) = tensors.first() else { candle_core::bail!("there is nothing to add") };
    let mut sums = vec![0.0; first.elem_count()];
    for (tensor, weight) in tensors.iter().zip(weights) {
        if tensor.dims() != first.dims() {
            candle_core::bail!("tensors of shape {:?} and {:?} cannot be added", first.dims(), tensor.dims())
        }
        sums.iter_mut().zip(to_vec(tensor)?).for_each(|(sum, value)| *sum += value * weight);
    }
    from_vec(sums, first)
}

/// The tensor with all but its `density · n` elements of largest magnitude set to zero.
pub(crate) fn prune_by_magnitude(tensor: &Tensor, density: f64) -> Result<Tensor> {
    if density >= 1.0 {
        return Ok(tensor.clone());
    }
    let mut values = to_vec(tensor)?;
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "as PEFT"
    )]
    let kept = (density * values.len() as f64) as usize;
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*b].abs().total_cmp(&values[*a].abs()));
    order[kept..].iter().for_each(|position| values[*position] = 0.0);
    from_vec(values, tensor)
}

/// The tensor with each element set to zero or, with probability `density`, divided by it.
pub(crate) fn drop_at_random(tensor: &Tensor, density: f64, seed: u64, label: &str) -> Result<Tensor> {
    if density >= 1.0 {
        return Ok(tensor.clone());
    }
    let mut rng = stream(seed, label, 0);
    let keep = |value: f64| if rng.random_bool(density) { value / density } else { 0.0 };
    from_vec(to_vec(tensor)?.into_iter().map(keep).collect(), tensor)
}

/// The mean of the weighted elements whose sign is the elected one: that of the sum of all elements, or that of most of
/// them.
pub(crate) fn elected_mean(tensors: &[Tensor], weights: &[f64], by_frequency: bool) -> Result<Tensor> {
    let Some(first) = tensors.first() else { candle_core::bail!("there is nothing to add") };
    let columns = tensors.iter().map(to_vec).collect::<Result<Vec<_>>>()?;
    let mean = |position: usize| {
        let values = || columns.iter().map(|column| column[position]);
        let vote: f64 = if by_frequency { values().map(sign).sum() } else { values().sum() };
        let elected = if vote >= 0.0 { 1.0 } else { -1.0 };
        let agreeing = values().zip(weights).filter(|(value, _)| sign(*value) == elected);
        let (sum, count) =
            agreeing.fold((0.0, 0.0), |(sum, count), (value, weight)| (sum + value * weight, count + 1.0));
        sum / f64::max(count, 1.0)
    };
    from_vec((0..first.elem_count()).map(mean).collect(), first)
}

/// −1, 0 or 1.
fn sign(value: f64) -> f64 {
    if value == 0.0 { 0.0 } else { value.signum() }
}

/// Clamps both tensors to ± the quantile of all their elements, interpolated linearly between neighbours.
pub(crate) fn clamp_to_quantile(a: &Tensor, b: &Tensor, quantile: f64) -> Result<(Tensor, Tensor)> {
    let mut all = [to_vec(a)?, to_vec(b)?].concat();
    all.sort_by(f64::total_cmp);
    #[expect(clippy::cast_precision_loss, reason = "a count is far below 2^53")]
    let position = quantile * all.len().saturating_sub(1) as f64;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index")]
    let below = position.floor() as usize;
    let at = |index: usize| all.get(index).or(all.last()).copied().unwrap_or_default();
    let high = at(below) + (at(below + 1) - at(below)) * position.fract();
    // With bounds in the wrong order, torch's clamp returns the upper one.
    let clamp = |tensor: &Tensor| match high < 0.0 {
        true => tensor.ones_like()? * high,
        false => tensor.clamp(-high, high),
    };
    Ok((clamp(a)?, clamp(b)?))
}

fn to_vec(tensor: &Tensor) -> Result<Vec<f64>> {
    tensor.to_device(&Device::Cpu)?.flatten_all()?.to_dtype(DType::F64)?.to_vec1()
}

fn from_vec(values: Vec<f64>, like: &Tensor) -> Result<Tensor> {
    Tensor::from_vec(values, like.shape(), &Device::Cpu)?.to_dtype(like.dtype())?.to_device(like.device())
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::{clamp_to_quantile, drop_at_random, elected_mean, prune_by_magnitude, weighted_sum};

    fn tensor(values: &[f32]) -> Tensor {
        Tensor::new(values, &Device::Cpu).unwrap()
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        tensor.to_vec1().unwrap()
    }

    #[test]
    fn pruning_keeps_the_largest_elements_whatever_their_sign() {
        let pruned = prune_by_magnitude(&tensor(&[1., -4., 2., 3., -0.5]), 0.5).unwrap();
        assert_eq!(values(&pruned), [0., -4., 0., 3., 0.]);
        let whole = tensor(&[1., 2.]);
        assert_eq!(values(&prune_by_magnitude(&whole, 1.5).unwrap()), [1., 2.]);
        assert_eq!(values(&prune_by_magnitude(&whole, 0.0).unwrap()), [0., 0.]);
    }

    #[test]
    fn random_drops_keep_the_mean_and_depend_on_the_seed() {
        let ones = Tensor::ones(10_000, candle_core::DType::F32, &Device::Cpu).unwrap();
        let dropped = drop_at_random(&ones, 0.25, 1, "a").unwrap();
        let mean = dropped.mean_all().unwrap().to_scalar::<f32>().unwrap();
        assert!((mean - 1.0).abs() < 0.1, "{mean}");
        assert!(values(&dropped).iter().all(|value| *value == 0.0 || *value == 4.0));
        assert_eq!(values(&dropped), values(&drop_at_random(&ones, 0.25, 1, "a").unwrap()));
        assert_ne!(values(&dropped), values(&drop_at_random(&ones, 0.25, 2, "a").unwrap()));
    }

    #[test]
    fn only_elements_with_the_elected_sign_count() {
        let (a, b, c) = (tensor(&[1., 5., 0.]), tensor(&[2., -1., 0.]), tensor(&[-4., -1., 0.]));
        let tensors = [a, b, c];
        // By the sum, −1, the first element's sign is negative; by frequency it is positive.
        assert_eq!(values(&elected_mean(&tensors, &[1., 1., 2.], false).unwrap()), [-8., 5., 0.]);
        assert_eq!(values(&elected_mean(&tensors, &[1., 1., 2.], true).unwrap()), [1.5, -1.5, 0.]);
        assert_eq!(values(&weighted_sum(&tensors, &[1., 0.5, 0.25]).unwrap()), [1., 4.25, 0.]);
    }

    #[test]
    fn the_quantile_lies_between_its_neighbours() {
        let (a, b) = clamp_to_quantile(&tensor(&[0., 1., 2.]), &tensor(&[3., -4.]), 0.625).unwrap();
        assert_eq!((values(&a), values(&b)), (vec![0., 1., 1.5], vec![1.5, -1.5]));
    }
}
