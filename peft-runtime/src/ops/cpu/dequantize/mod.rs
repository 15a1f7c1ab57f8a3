//! Dequantizes GGML's blocks, a rectangle of a matrix at a time.

mod decoders;

use std::borrow::Cow;
use std::ops::Range;

use candle_core::quantized::k_quants::{
    BlockQ2K, BlockQ3K, BlockQ5_0, BlockQ5_1, BlockQ5K, BlockQ8_1, BlockQ8K,
};
use candle_core::quantized::{GgmlDType, GgmlType, QTensor};
use candle_core::{Result, bail};
use half::{bf16, f16};

/// A quantized matrix in main memory: rows of blocks, where each block is a fixed number of neighbours in a row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QuantizedMatrix<'a> {
    bytes: &'a [u8],
    dtype: GgmlDType,
    rows: usize,
    columns: usize,
}

impl<'a> QuantizedMatrix<'a> {
    /// A view of `weight`, which has two dimensions and is in main memory.
    pub(crate) fn new(weight: &'a QTensor) -> Result<Self> {
        let (rows, columns) = weight.shape().dims2()?;
        let dtype = weight.dtype();
        // The bytes of other devices would be copied.
        if !weight.device().is_cpu() {
            bail!("the quantized weight is on another device")
        }
        let Cow::Borrowed(bytes) = weight.data()? else {
            bail!("the quantized weight is not in main memory")
        };
        let whole_rows = columns.is_multiple_of(dtype.block_size());
        if !whole_rows || bytes.len() != rows * columns / dtype.block_size() * dtype.type_size() {
            bail!("{} bytes are not a {rows}x{columns} matrix of {dtype:?}", bytes.len())
        }
        Ok(Self { bytes, dtype, rows, columns })
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    /// How many neighbours in a row make one block: ranges of columns begin and end at its multiples.
    pub(crate) fn block_size(&self) -> usize {
        self.dtype.block_size()
    }

    /// Writes the values of some rows and columns into `values`, row by row, with exactly the bits that candle
    /// dequantizes them to.
    pub(crate) fn dequantize(
        &self,
        rows: Range<usize>,
        columns: Range<usize>,
        values: &mut [f32],
    ) -> Result<()> {
        let block = self.block_size();
        let whole_blocks = columns.start.is_multiple_of(block) && columns.end.is_multiple_of(block);
        if !whole_blocks || rows.end > self.rows || columns.end > self.columns {
            bail!(
                "rows {rows:?} and columns {columns:?} are not all in a {}x{} matrix with blocks of {block}",
                self.rows,
                self.columns
            )
        }
        if values.len() != rows.len() * columns.len() {
            bail!("{}x{} values do not fit {} places", rows.len(), columns.len(), values.len())
        }
        if values.is_empty() {
            return Ok(());
        }
        let (size, decode) = (self.dtype.type_size(), decoder(self.dtype));
        let bytes_of_row = self.columns / block * size;
        let wanted = columns.start / block * size..columns.end / block * size;
        for (row, values) in rows.zip(values.chunks_exact_mut(columns.len())) {
            let bytes = &self.bytes[row * bytes_of_row..][wanted.clone()];
            decode(bytes, values)?;
        }
        Ok(())
    }
}

/// Writes the values of blocks.
type Decoder = fn(&[u8], &mut [f32]) -> Result<()>;

/// The decoder of a type: an own one for the commonest types, and else candle's.
fn decoder(dtype: GgmlDType) -> Decoder {
    macro_rules! own {
        ($decode:path) => {
            |bytes, values| {
                $decode(bytes, values);
                Ok(())
            }
        };
    }
    match dtype {
        GgmlDType::Q4_0 => own!(decoders::q4_0),
        GgmlDType::Q4_1 => own!(decoders::q4_1),
        GgmlDType::Q8_0 => own!(decoders::q8_0),
        GgmlDType::Q4K => own!(decoders::q4_k),
        GgmlDType::Q6K => own!(decoders::q6_k),
        GgmlDType::F32 => by_candle::<f32>,
        GgmlDType::F16 => by_candle::<f16>,
        GgmlDType::BF16 => by_candle::<bf16>,
        GgmlDType::Q5_0 => by_candle::<BlockQ5_0>,
        GgmlDType::Q5_1 => by_candle::<BlockQ5_1>,
        GgmlDType::Q8_1 => by_candle::<BlockQ8_1>,
        GgmlDType::Q2K => by_candle::<BlockQ2K>,
        GgmlDType::Q3K => by_candle::<BlockQ3K>,
        GgmlDType::Q5K => by_candle::<BlockQ5K>,
        GgmlDType::Q8K => by_candle::<BlockQ8K>,
    }
}

fn by_candle<B: Block>(bytes: &[u8], values: &mut [f32]) -> Result<()> {
    B::to_float(blocks_of::<B>(bytes)?, values);
    Ok(())
}

/// A type of block.
///
/// # Safety
/// Every bit pattern is a valid value of the type.
unsafe trait Block: GgmlType {}

macro_rules! impl_block {
    ($($type:ty),+ $(,)?) => {$(
        // SAFETY: the type is a float, or a `repr(C)` struct of floats, integers and arrays of those.
        unsafe impl Block for $type {}
    )+};
}

impl_block!(f32, f16, bf16, BlockQ5_0, BlockQ5_1, BlockQ8_1, BlockQ2K, BlockQ3K, BlockQ5K, BlockQ8K);

/// `bytes` as blocks.
fn blocks_of<B: Block>(bytes: &[u8]) -> Result<&[B]> {
    let start = bytes.as_ptr().cast::<B>();
    let size = size_of::<B>();
    if !start.is_aligned() || !bytes.len().is_multiple_of(size) {
        bail!("{} bytes are not aligned blocks of {size} bytes each", bytes.len())
    }
    // SAFETY: the pointer is aligned and comes from a slice that is as long as the blocks together and is borrowed for as
    // long as they are; any bytes are a value of `B`.
    Ok(unsafe { std::slice::from_raw_parts(start, bytes.len() / size) })
}

#[cfg(test)]
pub(crate) mod tests {
    use candle_core::quantized::{GgmlDType, QTensor};
    use candle_core::{DType, Device, Tensor};

    use super::{QuantizedMatrix, blocks_of};
    use crate::ops::testing::random_as;

    /// Every type of block that candle reads.
    pub(crate) const GGML_TYPES: [GgmlDType; 15] = [
        GgmlDType::F32,
        GgmlDType::F16,
        GgmlDType::BF16,
        GgmlDType::Q4_0,
        GgmlDType::Q4_1,
        GgmlDType::Q5_0,
        GgmlDType::Q5_1,
        GgmlDType::Q8_0,
        GgmlDType::Q8_1,
        GgmlDType::Q2K,
        GgmlDType::Q3K,
        GgmlDType::Q4K,
        GgmlDType::Q5K,
        GgmlDType::Q6K,
        GgmlDType::Q8K,
    ];

    const ROWS: usize = 5;
    const COLUMNS: usize = 768;

    fn quantized(dtype: GgmlDType) -> QTensor {
        QTensor::quantize(&random_as(DType::F32, "values", &[ROWS, COLUMNS]), dtype).unwrap()
    }

    #[test]
    fn every_rectangle_has_the_bits_of_candles_own_dense_matrix() {
        for dtype in GGML_TYPES {
            let weight = quantized(dtype);
            let dense = weight.dequantize(&Device::Cpu).unwrap().to_vec2::<f32>().unwrap();
            let matrix = QuantizedMatrix::new(&weight).unwrap();
            for (rows, columns) in
                [(0..5, 0..768), (1..2, 256..512), (2..5, 512..768), (3..3, 0..256), (0..5, 256..256)]
            {
                let mut values = vec![f32::NAN; rows.len() * columns.len()];
                matrix.dequantize(rows.clone(), columns.clone(), &mut values).unwrap();
                let expected: Vec<f32> =
                    dense[rows.clone()].iter().flat_map(|row| row[columns.clone()].to_vec()).collect();
                let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&values), bits(&expected), "{dtype:?} {rows:?} {columns:?}");
            }
        }
    }

    #[test]
    fn parts_of_blocks_and_places_outside_are_refused() {
        let weight = quantized(GgmlDType::Q4_0);
        let matrix = QuantizedMatrix::new(&weight).unwrap();
        let mut values = [0f32; 64];
        assert!(matrix.dequantize(0..1, 0..64, &mut values).is_ok());
        assert!(matrix.dequantize(0..1, 0..32, &mut values).is_err(), "too many places");
        assert!(matrix.dequantize(0..2, 16..48, &mut values).is_err());
        assert!(matrix.dequantize(4..6, 0..32, &mut values).is_err());
        assert!(matrix.dequantize(0..2, 768..800, &mut values).is_err());
    }

    #[test]
    fn weights_of_other_than_two_dimensions_are_refused() {
        let values = Tensor::zeros((2, 3, 32), DType::F32, &Device::Cpu).unwrap();
        assert!(QuantizedMatrix::new(&QTensor::quantize(&values, GgmlDType::Q8_0).unwrap()).is_err());
    }

    #[test]
    fn bytes_that_are_not_blocks_are_refused() {
        let bytes = [0u8; 16];
        let start = bytes.as_ptr().align_offset(align_of::<f32>());
        assert!(blocks_of::<f32>(&bytes[start + 1..start + 5]).is_err());
        assert!(blocks_of::<f32>(&bytes[start..start + 5]).is_err());
        assert_eq!(blocks_of::<f32>(&bytes[start..start + 8]).unwrap(), [0.0, 0.0]);
    }
}
