//! Norms of single parameters, which have the same bits on every rank and every device: a
//! square is rounded to a multiple of a power of two, which follows from the largest value,
//! and the multiples are summed as integers. So the sum depends neither on its order nor on
//! who holds which part of the parameter.
//!
//! A sum of n squares is off by at most n/2 of these multiples. With up to 4,096 values a
//! multiple is 2^-50 of the largest square's power of two, with 2^26 it is 2^-36.

use common::vectorised;

/// Bits of the largest square: its rounding below stays exact.
const MOST_BITS: u32 = 50;
/// Bits of the sum, of 63 that there are.
const SUM_BITS: u32 = 62;

/// By what squares are multiplied before they are rounded: a power of two. `largest` is the
/// largest absolute value of all `values` numbers. It is 0, and so is the norm, if all are zeros
/// or one is not finite.
pub(crate) fn scale(largest: f32, values: usize) -> f64 {
    if !largest.is_finite() || largest == 0.0 {
        return 0.0;
    }
    // As an f64, every f32 is normal: above, 2^exponent is the next power of two.
    let exponent = (f64::from(largest).to_bits() >> 52 & 0x7ff) as i64 - 1022;
    let bits = MOST_BITS.min(SUM_BITS - values.max(1).next_power_of_two().trailing_zeros());
    f64::from_bits(((i64::from(bits) - 2 * exponent + 1023) as u64) << 52)
}

/// The norm that a sum of [`squares`] means.
pub(crate) fn norm(sum: i64, scale: f64) -> f64 {
    if scale == 0.0 { 0.0 } else { (sum as f64 / scale).sqrt() }
}

/// Independent partial results: enough for the loops to use whole vector registers.
const LANES: usize = 16;

vectorised! {
    /// The largest absolute value; NaN if one is.
    pub(super) fn largest(values: &[f32]) -> f32 {
        // Of values without a sign, the bits have the values' order, and those of NaN are last.
        let magnitude = |value: f32| value.to_bits() & !(1 << 31);
        let mut lanes = [0u32; LANES];
        let (whole, rest) = values.as_chunks::<LANES>();
        for values in whole {
            for (lane, &value) in lanes.iter_mut().zip(values) {
                *lane = (*lane).max(magnitude(value));
            }
        }
        f32::from_bits(rest.iter().map(|&value| magnitude(value)).chain(lanes).fold(0, u32::max))
    }
}

vectorised! {
    /// The sum of the squares as integers, each multiplied by `scale` and rounded to the nearest,
    /// or the even one of two.
    pub(super) fn squares(values: &[f32], scale: f64) -> i64 {
        // Added to this number, one below 2^51 is rounded to an integer, which its last bits are.
        const ROUND: f64 = (3u64 << 51) as f64;
        // The square of an f32 is exact in f64.
        let square = |value: f32| (f64::from(value) * f64::from(value) * scale + ROUND).to_bits().wrapping_sub(ROUND.to_bits()) as i64;
        let mut lanes = [0i64; LANES];
        let (whole, rest) = values.as_chunks::<LANES>();
        for values in whole {
            for (lane, &value) in lanes.iter_mut().zip(values) {
                *lane = lane.wrapping_add(square(value));
            }
        }
        rest.iter().map(|&value| square(value)).chain(lanes).fold(0, i64::wrapping_add)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use common::seed;

    fn norm_of(values: &[f32]) -> f64 {
        let scale = scale(largest(values), values.len());
        norm(squares(values, scale), scale)
    }

    #[test]
    fn a_norm_is_near_the_truth_at_every_magnitude() {
        for power in [-140, -100, -10, 0, 10, 100, 127] {
            for len in [1usize, 2, 15, 16, 17, 1000, 70_001] {
                let mut rng = seed::stream(5, "norm", &[len as u64]);
                let values: Vec<f32> = (0..len).map(|_| ((seed::unit(&mut rng) - 0.5) as f64 * 2f64.powi(power)) as f32).collect();
                let expected = values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
                assert!((norm_of(&values) - expected).abs() <= 1e-9 * expected, "2^{power}, {len}: {} {expected}", norm_of(&values));
            }
        }
        // One value that hides all others costs them their last bits only.
        let mut values = vec![1e-3f32; 100_000];
        values[77] = 1.0;
        let expected = 1.0 + 99_999.0 * f64::from(1e-3f32).powi(2);
        assert!((norm_of(&values) / expected.sqrt() - 1.0).abs() < 1e-7);
    }

    #[test]
    fn neither_order_nor_parts_change_a_norm() {
        let mut rng = seed::stream(6, "norm", &[]);
        let values: Vec<f32> =
            (0..50_001).map(|_| (seed::unit(&mut rng) - 0.5) * 10f32.powi(seed::below(&mut rng, 12) as i32 - 6)).collect();
        let (most, scale) = (largest(&values), scale(largest(&values), values.len()));
        let expected = squares(&values, scale);
        for part in [1, 7, 4096, 49_999] {
            assert_eq!(values.chunks(part).map(|part| squares(part, scale)).sum::<i64>(), expected);
            assert_eq!(values.chunks(part).map(largest).fold(0.0, f32::max), most);
        }
        let backwards: Vec<f32> = values.iter().rev().copied().collect();
        assert_eq!(squares(&backwards, scale), expected);
        let slowly = |&value: &f32| (f64::from(value).powi(2) * scale).round_ties_even() as i64;
        assert_eq!(values.iter().map(slowly).sum::<i64>(), expected);
    }

    #[test]
    fn what_is_zero_or_not_finite_has_no_norm() {
        for odd in [0.0, f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let values = [0.0, odd, -0.0];
            assert_eq!((scale(largest(&values), 3), norm_of(&values)), (0.0, 0.0), "{odd}");
        }
        assert!(largest(&[1.0, f32::NAN, f32::INFINITY]).is_nan());
        let full = vec![f32::MAX; 1 << 12];
        assert!((norm_of(&full) / (f64::from(f32::MAX) * 64.0) - 1.0).abs() < 1e-12);
    }
}
