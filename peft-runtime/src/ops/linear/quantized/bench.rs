//! Linear layers with quantized weights. candle's `QMatMul` rounds its input, and has no gradient.

use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_nn::{Linear, Module};
use divan::Bencher;
use peft_runtime::Adapted;
use peft_runtime::nn::QuantizedLinear;

use super::{ROWS, SIZE, WIDE, backward, random, variable};

const TYPES: [GgmlDType; 3] = [GgmlDType::Q4_0, GgmlDType::Q4_1, GgmlDType::Q8_0];

fn layer(dtype: GgmlDType) -> Adapted<QuantizedLinear> {
    let dense = Linear::new(random(&[WIDE, SIZE]), None);
    Adapted::new(QuantizedLinear::from_linear(&dense, dtype).unwrap())
}

fn candles(dtype: GgmlDType) -> QMatMul {
    QMatMul::from_qtensor(QTensor::quantize(&random(&[WIDE, SIZE]), dtype).unwrap()).unwrap()
}

#[divan::bench(args = TYPES, max_time = 1)]
fn forward(bencher: Bencher, dtype: GgmlDType) {
    let (layer, x) = (layer(dtype), random(&[ROWS, SIZE]));
    bencher.bench_local(|| layer.forward(&x).unwrap());
}

#[divan::bench(args = TYPES, max_time = 1)]
fn forward_candle(bencher: Bencher, dtype: GgmlDType) {
    let (layer, x) = (candles(dtype), random(&[ROWS, SIZE]));
    bencher.bench_local(|| layer.forward(&x).unwrap());
}

#[divan::bench(args = TYPES, max_time = 1)]
fn one_row_forward(bencher: Bencher, dtype: GgmlDType) {
    let (layer, x) = (layer(dtype), random(&[1, SIZE]));
    bencher.bench_local(|| layer.forward(&x).unwrap());
}

#[divan::bench(args = TYPES, max_time = 1)]
fn one_row_forward_candle(bencher: Bencher, dtype: GgmlDType) {
    let (layer, x) = (candles(dtype), random(&[1, SIZE]));
    bencher.bench_local(|| layer.forward(&x).unwrap());
}

#[divan::bench(args = TYPES, max_time = 1)]
fn step(bencher: Bencher, dtype: GgmlDType) {
    let (layer, x) = (layer(dtype), variable(&[ROWS, SIZE]));
    bencher.bench_local(|| backward(layer.forward(&x)));
}
