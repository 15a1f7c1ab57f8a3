//! How several adapters become one.

use std::fmt;
use std::str::FromStr;

use crate::error::{CombinationError, Error, Result};
use crate::schema::nearest_names;

/// How the tensors of several adapters become those of one; the names are PEFT's `combination_type`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum CombinationType {
    /// Sums of the factors: `(Σ a·A)` and `(Σ b·B)`, whose product also has terms between different adapters.
    Linear,
    /// The factors concatenated: exact, with the sum of the ranks as the rank.
    Cat,
    /// The sum of the updates, truncated to the requested rank.
    #[default]
    Svd,
    /// Pruning, electing signs and averaging what agrees: <https://arxiv.org/abs/2306.01708>.
    Ties,
    /// The same on updates, truncated to the requested rank.
    TiesSvd,
    /// Dropping elements at random and scaling up the rest: <https://arxiv.org/abs/2311.03099>.
    DareLinear,
    /// The same on updates, truncated to the requested rank.
    DareLinearSvd,
    /// Dropping elements at random, then electing signs.
    DareTies,
    /// The same on updates, truncated to the requested rank.
    DareTiesSvd,
    /// Sums of the factors without their smallest elements.
    MagnitudePrune,
    /// The same on updates, truncated to the requested rank.
    MagnitudePruneSvd,
}

/// What is done to each set of tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Merge {
    Sum,
    Concatenation,
    Ties,
    DareSum,
    DareTies,
    PrunedSum,
}

impl CombinationType {
    /// All types.
    pub const ALL: [Self; 11] = [
        Self::Linear,
        Self::Cat,
        Self::Svd,
        Self::Ties,
        Self::TiesSvd,
        Self::DareLinear,
        Self::DareLinearSvd,
        Self::DareTies,
        Self::DareTiesSvd,
        Self::MagnitudePrune,
        Self::MagnitudePruneSvd,
    ];

    /// PEFT's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::Cat => "cat",
            Self::Svd => "svd",
            Self::Ties => "ties",
            Self::TiesSvd => "ties_svd",
            Self::DareLinear => "dare_linear",
            Self::DareLinearSvd => "dare_linear_svd",
            Self::DareTies => "dare_ties",
            Self::DareTiesSvd => "dare_ties_svd",
            Self::MagnitudePrune => "magnitude_prune",
            Self::MagnitudePruneSvd => "magnitude_prune_svd",
        }
    }

    pub(crate) fn merge(self) -> Merge {
        match self {
            Self::Linear | Self::Svd => Merge::Sum,
            Self::Cat => Merge::Concatenation,
            Self::Ties | Self::TiesSvd => Merge::Ties,
            Self::DareLinear | Self::DareLinearSvd => Merge::DareSum,
            Self::DareTies | Self::DareTiesSvd => Merge::DareTies,
            Self::MagnitudePrune | Self::MagnitudePruneSvd => Merge::PrunedSum,
        }
    }

    /// Whether the updates are merged and then factorised, rather than merging the factors themselves.
    pub(crate) fn factorises(self) -> bool {
        matches!(
            self,
            Self::Svd | Self::TiesSvd | Self::DareLinearSvd | Self::DareTiesSvd | Self::MagnitudePruneSvd
        )
    }

    fn prunes(self) -> bool {
        !matches!(self.merge(), Merge::Sum | Merge::Concatenation)
    }
}

impl fmt::Display for CombinationType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for CombinationType {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == text)
            .ok_or_else(|| unknown_name("combination_type", text, &Self::ALL.map(Self::name)))
    }
}

/// How signs are elected where tensors disagree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MajoritySign {
    /// By the sum of the values.
    #[default]
    Total,
    /// By the number of tensors with each sign.
    Frequency,
}

impl FromStr for MajoritySign {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "total" => Ok(Self::Total),
            "frequency" => Ok(Self::Frequency),
            other => Err(unknown_name("majority_sign_method", other, &["total", "frequency"])),
        }
    }
}

/// An option given a name that none of its values has.
fn unknown_name(option: &'static str, name: &str, known: &[&str]) -> Error {
    let nearest = nearest_names(name, known.iter().copied());
    let known = known.iter().map(|name| (*name).to_owned()).collect();
    CombinationError::UnknownName { option, name: name.to_owned(), nearest, known }.into()
}

/// How to combine adapters.
///
/// ```
/// use peft_runtime::{CombinationType, CombineOptions};
///
/// let options = CombineOptions::new(CombinationType::Ties).with_density(0.5);
/// assert_eq!(options, CombineOptions::new("ties".parse()?).with_density(0.5));
/// # Ok::<(), peft_runtime::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct CombineOptions {
    pub(crate) combination: CombinationType,
    pub(crate) svd_rank: Option<usize>,
    pub(crate) svd_clamp: Option<f64>,
    pub(crate) density: Option<f64>,
    pub(crate) majority_sign: MajoritySign,
    pub(crate) seed: u64,
    pub(crate) restarts: bool,
}

impl CombineOptions {
    /// Combines in this way.
    pub fn new(combination: CombinationType) -> Self {
        Self { combination, ..Self::default() }
    }

    /// The rank that updates are truncated to; by default the largest of the adapters' ranks.
    #[must_use]
    pub fn with_svd_rank(mut self, rank: usize) -> Self {
        self.svd_rank = Some(rank);
        self
    }

    /// Clamps the elements of the new factors to this quantile of all of them.
    #[must_use]
    pub fn with_svd_clamp(mut self, quantile: f64) -> Self {
        self.svd_clamp = Some(quantile);
        self
    }

    /// The share of elements that pruning keeps.
    #[must_use]
    pub fn with_density(mut self, density: f64) -> Self {
        self.density = Some(density);
        self
    }

    /// How signs are elected; by the sum of the values by default.
    #[must_use]
    pub fn with_majority_sign(mut self, majority_sign: MajoritySign) -> Self {
        self.majority_sign = majority_sign;
        self
    }

    /// The seed of random pruning.
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Lets what PEFT does not combine start again, as it does in PEFT without a word: full copies of the first adapter's
    /// modules from the base model's, DoRA's magnitudes from those of the base weights, the biases of B from zero.
    ///
    /// Otherwise the copies are taken over as they are, the biases are combined, and DoRA adapters are refused.
    #[must_use]
    pub fn with_restarts(mut self, restarts: bool) -> Self {
        self.restarts = restarts;
        self
    }

    /// Refuses options that are out of range or missing.
    pub(crate) fn check(&self) -> Result<()> {
        let out_of_range = |setting, value, expected| Err(Error::Setting { setting, value, expected });
        let combination = self.combination.name();
        match self.density {
            None if self.combination.prunes() => {
                return Err(CombinationError::MissingDensity { combination }.into());
            }
            Some(density) if density.is_nan() || density < 0.0 => {
                return out_of_range("density", density, "at least 0");
            }
            Some(0.0) if matches!(self.combination.merge(), Merge::DareSum | Merge::DareTies) => {
                return Err(CombinationError::ZeroDensity { combination }.into());
            }
            _ => {}
        }
        match (self.svd_rank, self.svd_clamp) {
            (Some(0), _) => out_of_range("svd_rank", 0.0, "at least 1"),
            (_, Some(clamp)) if !(0.0..=1.0).contains(&clamp) => {
                out_of_range("svd_clamp", clamp, "between 0 and 1")
            }
            _ => Ok(()),
        }
    }
}
