//! A training step through a layer of half precision never holds its weight in f32.

use candle_core::{DType, Var};
use candle_nn::{Linear, Module};
use peft_runtime::nn::TransposedLinear;
use peft_runtime::prelude::*;
use peft_tests::memory::{self, CountingAllocator};
use peft_tests::tensors::random;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

#[derive(Injectable)]
struct Model {
    plain: Adapted<Linear>,
    transposed: Adapted<TransposedLinear>,
}

const WIDE: usize = 4096;
const NARROW: usize = 2048;
const WEIGHT: usize = WIDE * NARROW * size_of::<f32>();

#[test]
fn a_step_holds_only_panels_of_the_weights_in_f32() {
    for dtype in [DType::BF16, DType::F16] {
        let weight = || random((WIDE, NARROW)).to_dtype(dtype).unwrap();
        let mut model = Model {
            plain: Linear::new(weight(), None).into(),
            transposed: TransposedLinear::new(weight(), None).into(),
        };
        let config = LoraConfig::new(4, 4.0).with_init(LoraInit::Random).with_targets(["plain"]);
        model.inject_adapter(&config, "default").unwrap();
        for rows in [1, 16] {
            let x = Var::from_tensor(&random((rows, NARROW)).to_dtype(dtype).unwrap()).unwrap();
            let before = memory::start();
            let hidden = model.plain.forward(&x).unwrap();
            let y = model.transposed.forward(&hidden).unwrap();
            let grads = y.sum_all().unwrap().backward().unwrap();
            let (most, largest) = (memory::most_since(before), memory::largest_of_all_threads());
            assert_eq!(grads.get(&x).unwrap().dtype(), dtype);
            assert!(largest <= WEIGHT / 16, "{dtype:?}, {rows} rows: one allocation of {largest} bytes");
            assert!(most <= WEIGHT / 4, "{dtype:?}, {rows} rows: {most} bytes; a weight in f32 has {WEIGHT}");
        }
    }
}
