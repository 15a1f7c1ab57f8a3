//! A training step through a quantized layer never holds anything of the size of its dense weight.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::utils::get_num_threads;
use candle_core::{Device, Tensor, Var};
use candle_nn::Module;
use peft_runtime::nn::QuantizedLinear;
use peft_runtime::prelude::*;

/// The system's allocator, with an account of what is in use, of the most there was, and of the largest single piece.
struct Counting;

static IN_USE: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);
static LARGEST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let in_use = IN_USE.fetch_add(layout.size(), Relaxed) + layout.size();
        MOST.fetch_max(in_use, Relaxed);
        LARGEST.fetch_max(layout.size(), Relaxed);
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[derive(Injectable)]
struct Model {
    layer: Adapted<QuantizedLinear>,
}

const OUT: usize = 16 * 1024;
const IN: usize = 1024;
const DENSE: usize = OUT * IN * size_of::<f32>();

#[test]
fn a_step_holds_tiles_of_the_weight_alone() {
    let weight = Tensor::randn(0f32, 1., (OUT, IN), &Device::Cpu).unwrap();
    let weight = QTensor::quantize(&weight, GgmlDType::Q4_0).unwrap();
    let mut model = Model { layer: QuantizedLinear::new(weight, None).unwrap().into() };
    let config = LoraConfig::new(4, 4.0).with_init(LoraInit::Random).with_targets(["layer"]);
    model.inject_adapter(&config, "default").unwrap();
    for rows in [1, 16] {
        let x = Var::from_tensor(&Tensor::randn(0f32, 1., (rows, IN), &Device::Cpu).unwrap()).unwrap();
        let before = IN_USE.load(Relaxed);
        MOST.store(before, Relaxed);
        LARGEST.store(0, Relaxed);
        let grads = model.layer.forward(&x).unwrap().sum_all().unwrap().backward().unwrap();
        let (most, largest) = (MOST.load(Relaxed) - before, LARGEST.load(Relaxed));
        assert_eq!(grads.get_ids().count(), 3);
        assert!(
            largest <= DENSE / 8,
            "{rows} rows: one piece of {largest} bytes; the dense weight has {DENSE}"
        );
        // 4 MB a thread: a tile, and the buffers of the `gemm` crate, which grow with the processor's cache.
        let tiles = get_num_threads() * 4_000_000;
        assert!(most <= DENSE / 8 + tiles, "{rows} rows: {most} bytes; the dense weight has {DENSE}");
    }
}
