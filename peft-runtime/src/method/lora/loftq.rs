//! LoftQ: a quantised base and factors that compensate for the loss. <https://arxiv.org/abs/2310.08659>

use candle_core::{DType, Device, Result, Tensor, bail};

use super::init::LoftqConfig;
use crate::adapter::LowRank;
use crate::ops::decompose::svd;
use crate::ops::matmul::product;

/// The 16 values of the 4-bit normal float: <https://arxiv.org/abs/2305.14314>.
const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// How many values share one scale.
const BLOCK: usize = 64;

/// Factors and the dequantised base weight, both in the orientation `[out, in]`; the scaling is not compensated for, as
/// in PEFT.
pub(super) fn loftq(
    weight: &Tensor,
    rank: usize,
    scaling: f64,
    settings: LoftqConfig,
) -> Result<(LowRank, Tensor)> {
    let mut rest = weight.clone();
    for iteration in 1..=settings.iterations {
        let quantised = quantise(&rest, settings.bits)?;
        let factors = svd(&(weight - &quantised)?)?;
        let rank = rank.min(factors.s.dim(0)?);
        let root = factors.s.narrow(0, 0, rank)?.sqrt()?;
        let b = factors.u.narrow(1, 0, rank)?.broadcast_mul(&root.unsqueeze(0)?)?.contiguous()?;
        let a = factors.vt.narrow(0, 0, rank)?.broadcast_mul(&root.unsqueeze(1)?)?.contiguous()?;
        if iteration == settings.iterations {
            return Ok((LowRank { a, b, scaling }, quantised));
        }
        rest = (weight - product(&b, &a, 1.0)?)?;
    }
    bail!("LoftQ needs at least one iteration")
}

/// The weight after quantising and dequantising.
fn quantise(weight: &Tensor, bits: usize) -> Result<Tensor> {
    let values = weight.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    let quantised = match bits {
        4 => values.chunks(BLOCK).flat_map(nearest_nf4).collect(),
        8 => by_rows(&values, weight.dim(1)?),
        other => bail!("LoftQ quantises to 4 or 8 bits, not to {other}"),
    };
    Tensor::from_vec(quantised, weight.shape(), &Device::Cpu)?
        .to_dtype(weight.dtype())?
        .to_device(weight.device())
}

fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |largest: f32, value| largest.max(value.abs()))
}

/// A block with every value rounded to the nearest of the 16, scaled by the largest.
fn nearest_nf4(block: &[f32]) -> Vec<f32> {
    let scale = largest(block);
    if scale == 0.0 {
        return block.to_vec();
    }
    let nearest = |value: &f32| {
        let wanted = value / scale;
        let distance = |code: &f32| (code - wanted).abs();
        NF4.into_iter().min_by(|a, b| distance(a).total_cmp(&distance(b))).unwrap_or_default() * scale
    };
    block.iter().map(nearest).collect()
}

/// Rows of 8-bit integers, each scaled by its largest value.
fn by_rows(values: &[f32], columns: usize) -> Vec<f32> {
    let row = |row: &[f32]| {
        let scale = largest(row) / 127.0;
        row.iter()
            .map(|value| if scale == 0.0 { 0.0 } else { (value / scale).round() * scale })
            .collect::<Vec<_>>()
    };
    values.chunks(columns.max(1)).flat_map(row).collect()
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::{LoftqConfig, NF4, loftq, nearest_nf4};
    use crate::ops::random::{normal, stream};

    #[test]
    fn values_of_the_code_are_kept_and_others_go_to_the_nearest() {
        let block: Vec<f32> = NF4.iter().map(|value| value * 3.0).collect();
        assert_eq!(nearest_nf4(&block), block);
        assert_eq!(nearest_nf4(&[1.0, 0.12, -0.6]), [1.0, NF4[8], NF4[2]]);
    }

    #[test]
    fn more_iterations_bring_quantised_base_and_factors_nearer_to_the_weight() {
        let drawn = normal(&mut stream(0, "weight", 0), 1.0, &[32, 48], DType::F32, &Device::Cpu);
        let weight = drawn.unwrap();
        let error = |iterations, bits| {
            let (factors, base) = loftq(&weight, 8, 1.0, LoftqConfig { bits, iterations }).unwrap();
            let sum = (base + factors.b.matmul(&factors.a).unwrap()).unwrap();
            (sum - &weight).unwrap().sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap()
        };
        let plain = {
            let base = super::quantise(&weight, 4).unwrap();
            (base - &weight).unwrap().sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap()
        };
        assert!(error(1, 4) < plain && error(5, 4) < error(1, 4));
        assert!(error(1, 8) < error(1, 4) / 10.0);
    }
}
