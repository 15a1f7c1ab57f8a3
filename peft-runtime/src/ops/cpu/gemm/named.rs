//! Kernels that have names: the environment says which to use, or, without it, what was measured here.

use std::sync::OnceLock;

use candle_core::{Result, bail};
use half::bf16;

#[cfg(target_arch = "x86_64")]
use super::bf16 as pairs;
use super::measured::is_faster;
use super::panels::Destination;
use crate::ops::cpu::matrix::Matrix;

/// A comma separated list of names.
const VARIABLE: &str = "PEFT_CPU_KERNELS";

/// A kernel that has a name. The first that is named and there computes a product; this is the order of preference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Named {
    /// Products of bf16 with bf16 in AMX tiles.
    Amx,
    /// Products of bf16 with bf16 by `vdpbf16ps`.
    Avx512Bf16,
}

impl Named {
    const ALL: [Self; 2] = [Self::Amx, Self::Avx512Bf16];

    /// Those that have run on processors that have them. The others are used only if they are named.
    const TRIED: [Self; 1] = [Self::Avx512Bf16];

    fn name(self) -> &'static str {
        match self {
            Self::Amx => "amx",
            Self::Avx512Bf16 => "avx512bf16",
        }
    }

    /// Why it cannot run here, if it cannot.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    pub(super) fn missing(self) -> Option<&'static str> {
        match self {
            Self::Amx => pairs::amx::missing(),
            Self::Avx512Bf16 => pairs::avx512::missing(),
        }
    }

    /// Why it cannot run here, if it cannot.
    #[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
    pub(super) fn missing(self) -> Option<&'static str> {
        match self {
            Self::Amx => Some("AMX tiles are used on Linux only"),
            Self::Avx512Bf16 => pairs::avx512::missing(),
        }
    }

    /// Why it cannot run here, if it cannot.
    #[cfg(not(target_arch = "x86_64"))]
    pub(super) fn missing(self) -> Option<&'static str> {
        Some("this is not an x86-64 processor")
    }

    /// `destination (+)= scale · lhs · rhs` for an inner dimension that is not empty.
    ///
    /// # Safety
    /// It is not missing. The destination has as many rows as `lhs` and as many columns as `rhs`, and nothing else reads or
    /// writes them meanwhile.
    pub(super) unsafe fn multiply(
        self,
        destination: Destination,
        lhs: Matrix<'_, bf16>,
        rhs: Matrix<'_, bf16>,
    ) {
        // SAFETY: as the caller vouches.
        unsafe {
            match self {
                #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
                Self::Amx => pairs::multiply::<pairs::amx::Amx>(destination, lhs, rhs),
                #[cfg(target_arch = "x86_64")]
                Self::Avx512Bf16 => pairs::multiply::<pairs::avx512::Avx512>(destination, lhs, rhs),
                #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
                _ => {
                    let _ = (destination, lhs, rhs);
                }
            }
        }
    }
}

/// The kernel that the environment names, if it names any; without the environment's list, one that is faster here than f32, which is
/// measured once.
///
/// # Errors
/// If a name is unknown, or its kernel cannot run here.
pub(super) fn chosen() -> Result<Option<Named>> {
    static FASTEST: OnceLock<Option<Named>> = OnceLock::new();
    match (listed()?, FASTEST.get()) {
        (Some(chosen), _) => Ok(chosen),
        (None, Some(fastest)) => Ok(*fastest),
        (None, None) => {
            let found = fastest()?;
            Ok(*FASTEST.get_or_init(|| found))
        }
    }
}

/// An error if the environment names a kernel that is unknown or cannot run here.
pub(in crate::ops::cpu) fn check_names() -> Result<()> {
    listed().map(|_| ())
}

/// What the environment's list says, if there is one; it is read once.
fn listed() -> Result<Option<Option<Named>>> {
    static LISTED: OnceLock<std::result::Result<Option<Option<Named>>, String>> = OnceLock::new();
    let read = || match std::env::var(VARIABLE) {
        Ok(names) => first(&names, Named::missing).map(Some),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(std::env::VarError::NotUnicode(_)) => {
            Err(format!("the environment variable {VARIABLE} is not text"))
        }
    };
    match LISTED.get_or_init(read) {
        Ok(listed) => Ok(*listed),
        Err(message) => bail!("{message}"),
    }
}

/// A kernel that was tried, is there, and is faster here than f32, if there is one.
fn fastest() -> Result<Option<Named>> {
    for kernel in Named::TRIED {
        // SAFETY: the kernel is not missing, and what measures it passes a destination that fits.
        let multiply = |destination, lhs: Matrix<'_, bf16>, rhs: Matrix<'_, bf16>| unsafe {
            kernel.multiply(destination, lhs, rhs);
        };
        if kernel.missing().is_none() && is_faster(multiply)? {
            return Ok(Some(kernel));
        }
    }
    Ok(None)
}

/// The kernel to prefer among the names of a list.
fn first(
    names: &str,
    missing: impl Fn(Named) -> Option<&'static str>,
) -> std::result::Result<Option<Named>, String> {
    let mut named = Vec::new();
    for name in names.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        let Some(kernel) = Named::ALL.into_iter().find(|kernel| kernel.name() == name) else {
            let known = Named::ALL.map(Named::name).join("`, `");
            return Err(format!(
                "the environment variable {VARIABLE} names a kernel `{name}`; there are `{known}`"
            ));
        };
        if let Some(reason) = missing(kernel) {
            return Err(format!(
                "the environment variable {VARIABLE} names the kernel `{name}`, but {reason}"
            ));
        }
        named.push(kernel);
    }
    Ok(Named::ALL.into_iter().find(|kernel| named.contains(kernel)))
}

#[cfg(test)]
mod tests {
    use super::{Named, fastest, first};

    #[test]
    fn the_preferred_of_the_named_kernels_is_chosen_in_any_order() {
        let there = |_| None;
        assert_eq!(first("", there), Ok(None));
        assert_eq!(first(" , ", there), Ok(None));
        assert_eq!(first("avx512bf16", there), Ok(Some(Named::Avx512Bf16)));
        assert_eq!(first(" avx512bf16 , amx", there), Ok(Some(Named::Amx)));
    }

    #[test]
    fn without_a_list_only_kernels_that_were_tried_and_are_there_are_used() {
        let kernel = fastest().unwrap();
        assert!(kernel.is_none_or(|kernel| kernel != Named::Amx && kernel.missing().is_none()), "{kernel:?}");
    }

    #[test]
    fn unknown_names_and_kernels_that_cannot_run_are_errors_in_words() {
        assert_eq!(
            first("amx,avx", |_| None).unwrap_err(),
            "the environment variable PEFT_CPU_KERNELS names a kernel `avx`; there are `amx`, `avx512bf16`"
        );
        let no_tiles = |kernel| (kernel == Named::Amx).then_some("this processor has no tiles");
        assert_eq!(first("avx512bf16", no_tiles), Ok(Some(Named::Avx512Bf16)));
        assert_eq!(
            first("avx512bf16,amx", no_tiles).unwrap_err(),
            "the environment variable PEFT_CPU_KERNELS names the kernel `amx`, but this processor has no tiles"
        );
    }
}
