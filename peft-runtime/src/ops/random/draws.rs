//! Random draws that are repeated: a block that is computed again has to drop the same elements as before.

use std::cell::RefCell;

use candle_core::{Result, bail};

thread_local! {
    /// The recordings and replays in progress on this thread, innermost last.
    static FRAMES: RefCell<Vec<Frame>> = const { RefCell::new(Vec::new()) };
}

enum Frame {
    /// Notes every draw.
    Record(Vec<u64>),
    /// Gives every draw a number that was noted before.
    Replay(std::vec::IntoIter<u64>),
}

/// Ends the innermost frame, even if the closure inside it panics.
struct Frames;

impl Frames {
    fn open(frame: Frame) -> Self {
        FRAMES.with_borrow_mut(|frames| frames.push(frame));
        Self
    }

    /// The draws that the frame has noted, or has left.
    fn draws(&self) -> Vec<u64> {
        FRAMES.with_borrow_mut(|frames| match frames.last_mut() {
            Some(Frame::Record(draws)) => std::mem::take(draws),
            Some(Frame::Replay(draws)) => draws.collect(),
            None => Vec::new(),
        })
    }
}

impl Drop for Frames {
    fn drop(&mut self) {
        FRAMES.with_borrow_mut(|frames| {
            frames.pop();
        });
    }
}

/// The number of the next draw: the recorded one inside a replay, else a fresh one.
pub(super) fn next_draw(fresh: impl FnOnce() -> u64) -> Result<u64> {
    FRAMES.with_borrow_mut(|frames| {
        // Draws inside the innermost replay do not affect the frames outside it.
        let replay = frames.iter().rposition(|frame| matches!(frame, Frame::Replay(_)));
        let draw = match replay.and_then(|place| frames.get_mut(place)) {
            Some(Frame::Replay(draws)) => match draws.next() {
                Some(draw) => draw,
                None => {
                    bail!("a block draws more dropout masks when it is computed again in the backward pass")
                }
            },
            _ => fresh(),
        };
        for frame in frames.iter_mut().skip(replay.map_or(0, |place| place + 1)) {
            if let Frame::Record(draws) = frame {
                draws.push(draw);
            }
        }
        Ok(draw)
    })
}

/// The result of `f`, and the draws made in it, in order.
pub(crate) fn recording<T>(f: impl FnOnce() -> Result<T>) -> Result<(T, Vec<u64>)> {
    let frames = Frames::open(Frame::Record(Vec::new()));
    let value = f()?;
    Ok((value, frames.draws()))
}

/// The result of `f` with exactly these draws, in order.
pub(crate) fn replaying<T>(draws: Vec<u64>, f: impl FnOnce() -> Result<T>) -> Result<T> {
    let frames = Frames::open(Frame::Replay(draws.into_iter()));
    let value = f()?;
    if !frames.draws().is_empty() {
        bail!("a block draws fewer dropout masks when it is computed again in the backward pass")
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use candle_core::Result;

    use super::{next_draw, recording, replaying};

    /// `count` draws out of a counter.
    fn draw(counter: &Cell<u64>, count: usize) -> Result<Vec<u64>> {
        (0..count).map(|_| next_draw(|| counter.replace(counter.get() + 1))).collect()
    }

    #[test]
    fn a_replay_draws_what_was_recorded_and_leaves_the_counter_alone() {
        let counter = Cell::new(5);
        let (first, draws) = recording(|| draw(&counter, 3)).unwrap();
        assert_eq!((first, draws.clone()), (vec![5, 6, 7], vec![5, 6, 7]));
        assert_eq!(draw(&counter, 1).unwrap(), [8]);
        assert_eq!(replaying(draws, || draw(&counter, 3)).unwrap(), [5, 6, 7]);
        assert_eq!(draw(&counter, 1).unwrap(), [9]);
    }

    #[test]
    fn another_number_of_draws_is_an_error_and_ends_the_replay() {
        let counter = Cell::new(0);
        assert!(replaying(vec![4, 5], || draw(&counter, 3)).is_err());
        assert!(replaying(vec![4, 5], || draw(&counter, 1)).is_err());
        assert_eq!(draw(&counter, 1).unwrap(), [0]);
    }

    #[test]
    fn an_inner_block_is_recorded_by_the_outer_one_too() {
        let counter = Cell::new(0);
        let nested = || recording(|| Ok((draw(&counter, 1)?, recording(|| draw(&counter, 2))?.1)));
        let ((before, inner), outer) = nested().unwrap();
        assert_eq!((before, inner, outer.clone()), (vec![0], vec![1, 2], vec![0, 1, 2]));
        // The outer block runs again, and with it the inner one.
        let ((before, inner), again) = replaying(outer, nested).unwrap();
        assert_eq!((before, inner, again), (vec![0], vec![1, 2], vec![0, 1, 2]));
        assert_eq!(counter.get(), 3);
    }
}
