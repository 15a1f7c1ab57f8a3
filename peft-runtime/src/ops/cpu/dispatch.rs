//! Kernels compiled twice, for any processor and for AVX2; the copy to run is chosen at run time.
//!
//! Whatever chooses a kernel at run time asks here which instructions the processor has; the vectors of matrix products
//! come from `pulp`, which has its own detection.

/// Declares functions whose bodies are compiled a second time for AVX2; a call uses that copy if the processor has
/// AVX2.
///
/// A body is plain scalar code with loops that the compiler vectorises. Nothing in it fuses a product with a sum, so both
/// copies give the same bits. Type parameters stand in square brackets: `fn name[T: Real](x: &[T]) -> T { … }`.
macro_rules! dispatched {
    ($(
        $(#[$meta:meta])*
        $visibility:vis fn $name:ident[$($generic:ident: $bound:ident),*](
            $($argument:ident: $type:ty),* $(,)?
        ) $(-> $output:ty)? $body:block
    )*) => {$(
        $(#[$meta])*
        $visibility fn $name<$($generic: $bound),*>($($argument: $type),*) $(-> $output)? {
            #[inline(always)]
            fn body<$($generic: $bound),*>($($argument: $type),*) $(-> $output)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                fn with_avx2<$($generic: $bound),*>($($argument: $type),*) $(-> $output)? {
                    body::<$($generic),*>($($argument),*)
                }

                if $crate::ops::cpu::dispatch::has_avx2() {
                    // SAFETY: the processor has AVX2, the only feature that the function needs.
                    #[expect(unsafe_code, reason = "the kernels of operations are declared by this macro too")]
                    return unsafe { with_avx2::<$($generic),*>($($argument),*) };
                }
            }
            body::<$($generic),*>($($argument),*)
        }
    )*};
}

pub(crate) use dispatched;

/// Whether there are vectors of eight f32.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) fn has_avx() -> bool {
    is_x86_feature_detected!("avx")
}

/// Whether these vectors hold integers too.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2")
}

/// Whether there are vectors of eight f32 with fused products and sums, and conversions of f16.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) fn has_avx2_fma_f16c() -> bool {
    has_avx2() && has_f16c() && is_x86_feature_detected!("fma")
}

/// Whether there are vectors of sixteen f32, and instructions for halves in them.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) fn has_avx512() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
}

/// Whether these vectors have products of bf16.
#[cfg(target_arch = "x86_64")]
pub(crate) fn has_avx512_bf16() -> bool {
    has_avx512() && is_x86_feature_detected!("avx512bf16")
}

/// Whether the processor converts between f16 and f32.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) fn has_f16c() -> bool {
    has_avx() && is_x86_feature_detected!("f16c")
}
