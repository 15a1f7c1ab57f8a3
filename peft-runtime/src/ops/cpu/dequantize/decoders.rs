//! Decoders of the commonest blocks, compiled for wide vectors too. They compute what candle's do, in the same order, so that the bits
//! are the same.

use half::f16;

use crate::ops::cpu::dispatch::dispatched;

/// Two halves side by side as f32, at some place of a block.
macro_rules! half_at {
    ($block:expr, $place:expr) => {
        f16::from_le_bytes([$block[$place], $block[$place + 1]]).to_f32()
    };
}

dispatched! {
    /// 32 values: a scale d, and 16 bytes with values j and j + 16. (q − 8)·d.
    pub(super) fn q4_0[](bytes: &[u8], values: &mut [f32]) {
        for (block, values) in bytes.as_chunks::<18>().0.iter().zip(values.as_chunks_mut::<32>().0) {
            let d = half_at!(block, 0);
            let (low, high) = values.split_at_mut(16);
            for ((low, high), q) in low.iter_mut().zip(high).zip(&block[2..]) {
                *low = (i32::from(q & 0x0F) - 8) as f32 * d;
                *high = (i32::from(q >> 4) - 8) as f32 * d;
            }
        }
    }

    /// 32 values: a scale d, a smallest value m, and 16 bytes with values j and j + 16. q·d + m.
    pub(super) fn q4_1[](bytes: &[u8], values: &mut [f32]) {
        for (block, values) in bytes.as_chunks::<20>().0.iter().zip(values.as_chunks_mut::<32>().0) {
            let (d, m) = (half_at!(block, 0), half_at!(block, 2));
            let (low, high) = values.split_at_mut(16);
            for ((low, high), q) in low.iter_mut().zip(high).zip(&block[4..]) {
                *low = f32::from(q & 0x0F) * d + m;
                *high = f32::from(q >> 4) * d + m;
            }
        }
    }

    /// 32 values: a scale d, and 32 signed bytes. q·d.
    pub(super) fn q8_0[](bytes: &[u8], values: &mut [f32]) {
        for (block, values) in bytes.as_chunks::<34>().0.iter().zip(values.as_chunks_mut::<32>().0) {
            let d = half_at!(block, 0);
            for (value, q) in values.iter_mut().zip(&block[2..]) {
                *value = f32::from(*q as i8) * d;
            }
        }
    }

    /// 256 values: scales d and m, eight pairs of scales in six bits each, and 128 bytes with values j and j + 32 of each 64.
    /// (d·s)·q − m·t.
    pub(super) fn q4_k[](bytes: &[u8], values: &mut [f32]) {
        for (block, values) in bytes.as_chunks::<144>().0.iter().zip(values.as_chunks_mut::<256>().0) {
            let (d, m) = (half_at!(block, 0), half_at!(block, 2));
            let (scales, quants) = block[4..].split_at(12);
            for (i, (values, quants)) in values.chunks_exact_mut(64).zip(quants.chunks_exact(32)).enumerate() {
                let (low, high) = values.split_at_mut(32);
                let [(s, t), (next_s, next_t)] = [six_bits(scales, 2 * i), six_bits(scales, 2 * i + 1)];
                let (s, t) = (d * f32::from(s), m * f32::from(t));
                let (next_s, next_t) = (d * f32::from(next_s), m * f32::from(next_t));
                for ((low, high), q) in low.iter_mut().zip(high).zip(quants) {
                    *low = s * f32::from(q & 0x0F) - t;
                    *high = next_s * f32::from(q >> 4) - next_t;
                }
            }
        }
    }

    /// 256 values: the low four bits of two in each of 128 bytes, the high two of four in each of 64, 16 signed scales, and a scale d.
    /// (d·s)·(q − 32).
    pub(super) fn q6_k[](bytes: &[u8], values: &mut [f32]) {
        for (block, values) in bytes.as_chunks::<210>().0.iter().zip(values.as_chunks_mut::<256>().0) {
            let ((low, rest), d) = (block.split_at(128), half_at!(block, 208));
            let (high, scales) = rest.split_at(64);
            for (i, values) in values.chunks_exact_mut(128).enumerate() {
                let (low, high) = (&low[64 * i..][..64], &high[32 * i..][..32]);
                let (first, second) = low.split_at(32);
                for (j, values) in values.chunks_exact_mut(32).enumerate() {
                    let nibbles = if j % 2 == 0 { first } else { second };
                    let (shift, pair) = (4 * (j / 2), 2 * j);
                    let quants = nibbles.iter().zip(high);
                    let quants = quants.map(|(low, high)| low >> shift & 0x0F | (high >> pair & 3) << 4);
                    for (place, (value, q)) in values.iter_mut().zip(quants).enumerate() {
                        let scale = scales[8 * i + 2 * j + place / 16] as i8;
                        *value = d * f32::from(scale) * f32::from(q as i8 - 32);
                    }
                }
            }
        }
    }
}

/// The scale and the offset of group `i` among eight, from twelve bytes.
#[inline(always)]
fn six_bits(scales: &[u8], i: usize) -> (u8, u8) {
    if i < 4 {
        (scales[i] & 0x3F, scales[i + 4] & 0x3F)
    } else {
        (scales[i + 4] & 0x0F | scales[i - 4] >> 6 << 4, scales[i + 4] >> 4 | scales[i] >> 6 << 4)
    }
}
