//! Blocks of sums by the tiles of AMX. Rust has no stable functions for them, so they are written in assembly.

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count};
use std::sync::OnceLock;

use super::block::{BLOCK, Kernel, Line, SumLine};

/// Bytes between the lines of a tile of the right factor, and between the rows of a block of sums.
const LINE: usize = size_of::<Line>();
const SUM_ROW: usize = 2 * size_of::<SumLine>();

/// Why the tiles cannot be used, if they cannot. The system is asked for them once, for all threads of the process.
pub(in crate::ops::cpu::gemm) fn missing() -> Option<&'static str> {
    static MISSING: OnceLock<Option<&'static str>> = OnceLock::new();
    *MISSING.get_or_init(|| {
        if !processor_has_tiles() {
            Some("this processor has no AMX tiles for bf16")
        } else if !system_saves_tiles() {
            Some("the operating system does not save AMX tiles")
        } else if !permitted() {
            Some("the operating system refused the use of AMX tiles")
        } else {
            None
        }
    })
}

/// Leaf 7 of `cpuid` has a bit for tiles and one for products of bf16 in them.
fn processor_has_tiles() -> bool {
    const BF16: u32 = 1 << 22;
    const TILE: u32 = 1 << 24;
    __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & (BF16 | TILE) == BF16 | TILE
}

/// Whether the system has set up the state of tiles: their configuration, and their data.
fn system_saves_tiles() -> bool {
    const OSXSAVE: u32 = 1 << 27;
    const TILES: u32 = 0b11 << 17;
    if __cpuid(1).ecx & OSXSAVE == 0 {
        return false;
    }
    let state: u32;
    // SAFETY: the system has enabled the instruction; it writes two registers.
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") state, out("edx") _, options(nomem, nostack)) };
    state & TILES == TILES
}

/// Asks Linux for the data of tiles, which a process has to do once.
fn permitted() -> bool {
    const ARCH_PRCTL: usize = 158;
    const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
    const TILE_DATA: usize = 18;
    let result: isize;
    // SAFETY: this system call reads and writes no memory of the process; the kernel overwrites rcx and r11.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") TILE_DATA,
            out("rcx") _,
            out("r11") _,
            options(nostack),
        );
    }
    result == 0
}

/// What `ldtilecfg` reads.
#[repr(C, align(64))]
struct Configuration([u8; 64]);

/// Palette 1, and eight tiles of 16 rows of 64 bytes.
static CONFIGURATION: Configuration = {
    let mut bytes = [0; 64];
    bytes[0] = 1;
    let mut tile = 0;
    while tile < 8 {
        bytes[16 + 2 * tile] = LINE as u8;
        bytes[48 + tile] = 16;
        tile += 1;
    }
    Configuration(bytes)
};

/// The tiles of a thread, as long as it uses them: what they hold makes switching between threads slower.
pub(in crate::ops::cpu::gemm) struct Amx;

impl Drop for Amx {
    fn drop(&mut self) {
        // SAFETY: the value exists only where the processor has tiles.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

impl Kernel for Amx {
    unsafe fn begin() -> Self {
        // SAFETY: the caller vouches for the tiles; the configuration is 64 bytes.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const CONFIGURATION.0, options(nostack, readonly)) };
        Self
    }

    /// Four tiles of sums, two of the left factor, two of the right one.
    unsafe fn block(
        &self,
        left: &[Line],
        stride: usize,
        right: &[Line],
        steps: usize,
        sums: &mut [SumLine],
        continues: bool,
    ) {
        if steps == 0 {
            return;
        }
        let left = left[..(BLOCK - 1) * stride + steps].as_ptr();
        let right = right[..steps * BLOCK].as_ptr();
        let sums = sums[..2 * BLOCK].as_mut_ptr();
        // SAFETY: the caller vouches for the tiles, which `begin` configured on this thread. The slices were cut to what is read and
        // written: 32 rows of a line for each step, 32 lines for each step, and 32 rows of two lines.
        unsafe {
            asm!(
                "test {continues:e}, {continues:e}",
                "jz 2f",
                "tileloadd tmm0, [{sums} + {sum_row}*1]",
                "tileloadd tmm1, [{sums} + {sum_row}*1 + 64]",
                "tileloadd tmm2, [{sums} + {sum_row}*1 + 2048]",
                "tileloadd tmm3, [{sums} + {sum_row}*1 + 2112]",
                "jmp 3f",
                "2:",
                "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                "3:",
                "tileloadd tmm4, [{left} + {stride}*1]",
                "tileloadd tmm6, [{right} + {line}*1]",
                "tileloadd tmm7, [{right} + {line}*1 + 1024]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{below} + {stride}*1]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {left}, 64", "add {below}, 64", "add {right}, 2048",
                "dec {steps}",
                "jnz 3b",
                "tilestored [{sums} + {sum_row}*1], tmm0",
                "tilestored [{sums} + {sum_row}*1 + 64], tmm1",
                "tilestored [{sums} + {sum_row}*1 + 2048], tmm2",
                "tilestored [{sums} + {sum_row}*1 + 2112], tmm3",
                continues = in(reg) u32::from(continues),
                sums = in(reg) sums,
                sum_row = in(reg) SUM_ROW,
                left = inout(reg) left => _,
                below = inout(reg) left.wrapping_add(16 * stride) => _,
                stride = in(reg) stride * LINE,
                right = inout(reg) right => _,
                line = in(reg) LINE,
                steps = inout(reg) steps => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}
