//! Kernels compiled twice, for any processor and for AVX2; which copy runs is decided at run time.

/// Declares functions whose bodies are compiled a second time for AVX2; a call takes that copy where the processor has it.
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

                if is_x86_feature_detected!("avx2") {
                    // SAFETY: the processor has AVX2, the one feature that the function needs.
                    return unsafe { with_avx2::<$($generic),*>($($argument),*) };
                }
            }
            body::<$($generic),*>($($argument),*)
        }
    )*};
}

pub(super) use dispatched;
