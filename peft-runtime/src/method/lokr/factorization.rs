//! How LoKr splits the dimensions of a weight.

/// Two factors of `size`: `factor` and the quotient if `factor` divides `size`, otherwise the two closest to each other
/// whose smaller one is at most `factor`; without `factor`, the two closest.
///
/// LyCORIS's search, which goes through the divisors in increasing order, has the same result.
pub(crate) fn factorization(size: usize, factor: Option<usize>) -> (usize, usize) {
    if let Some(factor) = factor.filter(|factor| *factor > 0 && size.is_multiple_of(*factor)) {
        return (factor, size / factor);
    }
    let largest = factor.unwrap_or(size).min(size.isqrt());
    let small = (1..=largest).rev().find(|candidate| size.is_multiple_of(*candidate)).unwrap_or(1);
    (small, size / small)
}

#[cfg(test)]
mod tests {
    use super::factorization;

    #[test]
    fn factors_are_those_of_peft() {
        // PEFT 0.21.2: peft.tuners.lokr.layer.factorization
        for (size, factor, expected) in [
            (1, None, (1, 1)),
            (10, None, (2, 5)),
            (10, Some(3), (2, 5)),
            (10, Some(5), (5, 2)),
            (10, Some(20), (2, 5)),
            (12, None, (3, 4)),
            (12, Some(4), (4, 3)),
            (20, Some(3), (2, 10)),
            (20, Some(8), (4, 5)),
            (20, Some(20), (20, 1)),
            (36, None, (6, 6)),
            (36, Some(5), (4, 9)),
            (127, None, (1, 127)),
            (127, Some(127), (127, 1)),
            (128, None, (8, 16)),
            (128, Some(5), (4, 32)),
        ] {
            assert_eq!(factorization(size, factor), expected, "{size} by {factor:?}");
        }
    }
}
