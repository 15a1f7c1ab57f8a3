//! The UCI handwritten digits, as pictures and as a shifted domain.

use std::io::Read;

use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor};
use flate2::read::GzDecoder;

/// The data set, compressed; see `examples/data/README.md` for its origin and licence.
const COMPRESSED: &[u8] = include_bytes!("../../data/digits.csv.gz");

const SIDE: usize = 8;
const PIXELS: usize = SIDE * SIDE;

/// Pictures with their digits.
pub struct Digits {
    pixels: Vec<[f32; PIXELS]>,
    labels: Vec<u32>,
}

impl Digits {
    /// Unpacks the data set.
    ///
    /// # Errors
    /// If the embedded file is damaged.
    pub fn load() -> Result<Self> {
        let mut text = String::new();
        GzDecoder::new(COMPRESSED).read_to_string(&mut text).context("unpacking the digits")?;
        let (mut pixels, mut labels) = (Vec::new(), Vec::new());
        for line in text.lines() {
            let values: Vec<f32> = line.split(',').map(str::parse).collect::<Result<_, _>>()?;
            ensure!(
                values.len() == PIXELS + 1,
                "a line has {} values instead of {}",
                values.len(),
                PIXELS + 1
            );
            let mut picture = [0.0; PIXELS];
            for (pixel, value) in picture.iter_mut().zip(&values) {
                *pixel = value / 16.0;
            }
            pixels.push(picture);
            labels.push(values[PIXELS] as u32);
        }
        Ok(Self { pixels, labels })
    }

    /// The number of pictures.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// The same digits turned by 90 degrees and inverted.
    #[must_use]
    pub fn turned_and_inverted(&self) -> Self {
        let turn = |picture: &[f32; PIXELS]| {
            let mut turned = [0.0; PIXELS];
            for row in 0..SIDE {
                for column in 0..SIDE {
                    turned[column * SIDE + (SIDE - 1 - row)] = 1.0 - picture[row * SIDE + column];
                }
            }
            turned
        };
        Self { pixels: self.pixels.iter().map(turn).collect(), labels: self.labels.clone() }
    }

    /// Pictures `[batch, 1, 8, 8]` and digits `[batch]`.
    ///
    /// # Errors
    /// If the device reports an error.
    pub fn batch(&self, indices: &[usize], device: &Device) -> candle_core::Result<(Tensor, Tensor)> {
        let pixels: Vec<f32> = indices.iter().flat_map(|index| self.pixels[*index]).collect();
        let labels: Vec<u32> = indices.iter().map(|index| self.labels[*index]).collect();
        Ok((
            Tensor::from_vec(pixels, (indices.len(), 1, SIDE, SIDE), device)?,
            Tensor::from_vec(labels, indices.len(), device)?,
        ))
    }
}
