//! The windows of a convolution as the columns of a matrix, and back.

use candle_core::WithDType;

use crate::ops::cpu::threads::for_each;

/// How a window moves over one image; a one-dimensional signal is an image one pixel high.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SlidingWindow {
    /// The size of the image: height, width.
    pub(crate) input: [usize; 2],
    /// The size of the window.
    pub(crate) kernel: [usize; 2],
    /// How many positions the window has along each dimension.
    pub(crate) output: [usize; 2],
    pub(crate) stride: [usize; 2],
    pub(crate) padding: [usize; 2],
    pub(crate) dilation: [usize; 2],
}

impl SlidingWindow {
    /// The number of elements of one window over one channel.
    pub(crate) fn size(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    /// The number of positions of the window.
    pub(crate) fn places(&self) -> usize {
        self.output[0] * self.output[1]
    }

    fn pixels(&self) -> usize {
        self.input[0] * self.input[1]
    }

    /// Writes the windows over an image of several channels into `columns`: one row for each channel and window
    /// element, one column for each position.
    pub(crate) fn unfold<T: WithDType>(&self, picture: &[T], columns: &mut [T]) {
        let rows = columns.chunks_mut(self.places().max(1)).enumerate();
        for_each(rows, |(index, row)| {
            let channel = &picture[index / self.size() * self.pixels()..][..self.pixels()];
            self.for_each_place(index % self.size(), |place, pixel| {
                row[place] = pixel.map_or(T::from_f64(0.0), |pixel| channel[pixel]);
            });
        });
    }

    /// Adds `columns` back into the image they were unfolded from.
    pub(crate) fn fold<T: WithDType>(&self, columns: &[T], picture: &mut [T]) {
        let channels = picture.chunks_mut(self.pixels().max(1));
        for_each(channels.zip(columns.chunks(self.size() * self.places())), |(channel, rows)| {
            for (element, row) in rows.chunks(self.places().max(1)).enumerate() {
                self.add_row(element, row, channel);
            }
        });
    }

    /// Adds one row of the columns to the pixels that it came from.
    fn add_row<T: WithDType>(&self, element: usize, row: &[T], channel: &mut [T]) {
        self.for_each_place(element, |place, pixel| {
            if let Some(pixel) = pixel {
                channel[pixel] += row[place];
            }
        });
    }

    /// Calls `f` with every position of the window and the pixel that the element falls on there, unless that is
    /// padding.
    fn for_each_place(&self, element: usize, mut f: impl FnMut(usize, Option<usize>)) {
        let offset =
            [element / self.kernel[1] * self.dilation[0], element % self.kernel[1] * self.dilation[1]];
        let pixel = |place: usize, axis: usize| {
            let position = (place * self.stride[axis] + offset[axis]).checked_sub(self.padding[axis])?;
            (position < self.input[axis]).then_some(position)
        };
        for row in 0..self.output[0] {
            let y = pixel(row, 0);
            for column in 0..self.output[1] {
                let under = match (y, pixel(column, 1)) {
                    (Some(y), Some(x)) => Some(y * self.input[1] + x),
                    _ => None,
                };
                f(row * self.output[1] + column, under);
            }
        }
    }
}
