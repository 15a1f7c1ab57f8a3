//! How LoRA's factors start: at random, or as a part that is taken out of the base weight.

use candle_core::Tensor;

use super::loftq::loftq;
use super::{EMBEDDING_KEYS, Keys, LAYER_KEYS, LoraConfig, LoraInit};
use crate::adapter::{Geometry, Init, LowRank, Site};
use crate::error::{ConfigError, Error, Result};
use crate::ops::decompose::{self, Svd, qr, randomised_svd, svd};
use crate::ops::matmul::product;
use crate::ops::random::{normal, stream};
use crate::schema::Family;

/// Factors that were computed from the base weight, and the weight that goes with them.
pub(super) struct Decomposed {
    pub(super) factors: LowRank,
    /// What remains of the base weight, in its dtype and shape, if the factors are taken out of it.
    pub(super) weight: Option<Tensor>,
}

/// The initial values of the factors if they are drawn.
pub(super) fn drawn(
    config: &LoraConfig,
    geometry: &Geometry,
    rank: usize,
) -> (Keys, Init<'static>, Init<'static>) {
    #[expect(clippy::cast_precision_loss, reason = "a rank is far below 2^53")]
    let per_rank = 1.0 / rank.max(1) as f64;
    let zeros = Init::Constant(0.0);
    match (geometry.family(), config.init()) {
        (Family::Embedding, LoraInit::Random) => (EMBEDDING_KEYS, Init::Normal(1.0), Init::Normal(1.0)),
        // As in PEFT, whatever the config says.
        (Family::Embedding, _) => (EMBEDDING_KEYS, zeros, Init::Normal(1.0)),
        (_, LoraInit::Gaussian) => (LAYER_KEYS, Init::Normal(per_rank), zeros),
        (_, LoraInit::Random) => {
            let groups = match geometry {
                Geometry::Conv { settings, .. } => settings.groups.max(1),
                _ => 1,
            };
            (LAYER_KEYS, Init::kaiming(geometry.fan_in()), Init::kaiming(rank / groups))
        }
        _ => (LAYER_KEYS, Init::kaiming(geometry.fan_in()), zeros),
    }
}

/// The factors of an init that depends on the base weight or draws both factors together; `None` for the others.
pub(super) fn worked_out(
    config: &LoraConfig,
    site: &Site<'_>,
    rank: usize,
    scaling: f64,
) -> Result<Option<Decomposed>> {
    if site.geometry.family() != Family::Linear {
        return Ok(None);
    }
    let needs_factorising = !config.init().draws_factors() && config.init() != LoraInit::Eva;
    if needs_factorising && !decompose::IS_AVAILABLE {
        let init = config.init().describe();
        return Err(Error::no_decompositions(format!("`init_lora_weights` = \"{init}\"")));
    }
    let matrix =
        || -> Result<Tensor> { Ok(site.geometry.to_matrix(&site.weight()?.to_dtype(site.wide_dtype())?)?) };
    let factors = match config.init() {
        LoraInit::Pissa => from_singular_values(&svd(&matrix()?)?, rank, scaling)?,
        LoraInit::PissaIterations(iterations) => {
            let mut rng = stream(config.seed(), &format!("{}/pissa", site.path), 0);
            let factors = randomised_svd(&matrix()?, rank, iterations, &mut rng)?;
            from_singular_values(&factors, rank, scaling)?
        }
        LoraInit::Olora => {
            // PEFT decomposes the weight as it is stored, which gives useless factors for a transposed one.
            let (q, r) = qr(&matrix()?)?;
            let rank = rank.min(q.dim(1)?);
            LowRank {
                a: r.narrow(0, 0, rank)?.contiguous()?,
                b: q.narrow(1, 0, rank)?.contiguous()?,
                scaling,
            }
        }
        LoraInit::Loftq => {
            let settings = config.loftq();
            let (factors, weight) = loftq(&matrix()?, rank, scaling, settings)?;
            return Ok(Some(Decomposed { factors, weight: Some(stored(site, &weight)?) }));
        }
        LoraInit::Orthogonal => {
            let factors = orthogonal(config, site, rank, scaling)?;
            return Ok(Some(Decomposed { factors, weight: None }));
        }
        _ => return Ok(None),
    };
    let residual = (matrix()? - product(&factors.b, &factors.a, factors.scaling)?)?;
    Ok(Some(Decomposed { weight: Some(stored(site, &residual)?), factors }))
}

/// Whether an init takes its factors out of the base weight.
pub(super) fn takes_from_base(init: LoraInit) -> bool {
    matches!(init, LoraInit::Pissa | LoraInit::PissaIterations(_) | LoraInit::Olora)
}

/// A matrix `[out, in]` as the layer stores its weight.
fn stored(site: &Site<'_>, matrix: &Tensor) -> Result<Tensor> {
    Ok(site.geometry.stored_from_matrix(matrix)?.contiguous()?.to_dtype(site.dtype)?)
}

/// PiSSA: A = √S·Vᵀ, B = U·√S of the leading singular values, divided by the scaling. <https://arxiv.org/abs/2404.02948>
fn from_singular_values(factors: &Svd, rank: usize, scaling: f64) -> Result<LowRank> {
    let rank = rank.min(factors.s.dim(0)?);
    let root = (factors.s.narrow(0, 0, rank)? / scaling)?.sqrt()?;
    let a = factors.vt.narrow(0, 0, rank)?.broadcast_mul(&root.unsqueeze(1)?)?;
    let b = factors.u.narrow(1, 0, rank)?.broadcast_mul(&root.unsqueeze(0)?)?;
    Ok(LowRank { a: a.contiguous()?, b: b.contiguous()?, scaling })
}

/// Random factors with B·A = 0, from the even and odd rows of one orthogonal matrix.
fn orthogonal(config: &LoraConfig, site: &Site<'_>, rank: usize, scaling: f64) -> Result<LowRank> {
    if !rank.is_multiple_of(2) {
        let reason = format!("the rank of `{}` is {rank}; the orthogonal init needs an even one", site.path);
        return Err(Error::Config(ConfigError::Invalid { field: "r", reason }));
    }
    let mut rng = stream(config.seed(), &format!("{}/orthogonal", site.path), 0);
    let dtype = site.wide_dtype();
    let mut draw = |shape: &[usize]| normal(&mut rng, 1.0, shape, dtype, site.device);
    let (q, _) = qr(&draw(&[rank, rank])?)?;
    let half = rank / 2;
    let (left, right) =
        (draw(&[site.geometry.in_features(), half])?, draw(&[half, site.geometry.out_features()])?);
    let rows = q.reshape((half, 2, rank))?;
    let (even, odd) = (rows.narrow(1, 0, 1)?.squeeze(1)?, rows.narrow(1, 1, 1)?.squeeze(1)?);
    let a = product(&left, &even.contiguous()?, 0.1)?.t()?.contiguous()?;
    let b = product(&right.t()?, &odd.contiguous()?, 0.1)?;
    Ok(LowRank { a, b, scaling })
}
