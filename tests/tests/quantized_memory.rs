//! A training step through a quantized layer never holds anything as large as its dense weight.

use candle_core::Var;
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::utils::get_num_threads;
use candle_nn::Module;
use peft_runtime::nn::QuantizedLinear;
use peft_runtime::prelude::*;
use peft_tests::memory::{self, CountingAllocator};
use peft_tests::tensors::random;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

#[derive(Injectable)]
struct Model {
    layer: Adapted<QuantizedLinear>,
}

const OUT: usize = 16 * 1024;
const IN: usize = 1024;
const DENSE: usize = OUT * IN * size_of::<f32>();

#[test]
fn a_step_holds_only_tiles_of_the_weight() {
    let weight = random((OUT, IN));
    let weight = QTensor::quantize(&weight, GgmlDType::Q4_0).unwrap();
    let mut model = Model { layer: QuantizedLinear::new(weight, None).unwrap().into() };
    let config = LoraConfig::new(4, 4.0).with_init(LoraInit::Random).with_targets(["layer"]);
    model.inject_adapter(&config, "default").unwrap();
    for rows in [1, 16] {
        let x = Var::from_tensor(&random((rows, IN))).unwrap();
        let before = memory::start();
        let grads = model.layer.forward(&x).unwrap().sum_all().unwrap().backward().unwrap();
        let (most, largest) = (memory::most_since(before), memory::largest_of_all_threads());
        assert_eq!(grads.get_ids().count(), 3);
        assert!(
            largest <= DENSE / 8,
            "{rows} rows: one allocation of {largest} bytes; the dense weight has {DENSE}"
        );
        // 4 MB per thread: a tile, and the buffers of the `gemm` crate, which grow with the processor's cache.
        let tiles = get_num_threads() * 4_000_000;
        assert!(most <= DENSE / 8 + tiles, "{rows} rows: {most} bytes; the dense weight has {DENSE}");
    }
}
