//! Sums that do not depend on their order: each value becomes a 32-bit integer at a
//! scale on which all ranks agree, and integers are added. So one worker with all
//! shards and four workers with some each end with the same bits.
//!
//! Pure: the value on which the ranks agree (the largest exponent of a bucket) comes
//! from a maximum reduction, which has no order either.

/// Bits that a sum of all shards may use, without the sign: one less than available, so
/// that no rounding can overflow.
const BITS: i32 = 30;

/// Exponents below this are raised to it: the scale must stay an f32.
const SMALLEST: i32 = -90;

/// The smallest e with |v| < 2^e for all `values`, at least -90 and as f32, or
/// infinity if one of them is NaN or infinite.
pub fn exponent(values: &[f32]) -> f32 {
    let largest = values.iter().fold(0, |most: u32, v| most.max(v.to_bits() & 0x7fff_ffff));
    if largest >= 0x7f80_0000 {
        return f32::INFINITY;
    }
    // 1.0 has the biased exponent 127 and is below 2^1.
    ((largest >> 23) as i32 - 126).max(SMALLEST) as f32
}

/// A scale for sums over up to `shards` addends below 2^exponent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scale {
    shift: i32,
}

impl Scale {
    /// None if `exponent` is infinite: some value was NaN or infinite.
    pub fn new(exponent: f32, shards: u32) -> Option<Self> {
        let room = 32 - shards.max(1).saturating_sub(1).leading_zeros() as i32;
        exponent.is_finite().then_some(Self { shift: BITS - room - exponent as i32 })
    }

    /// Adds `values` to `sums` as integers, rounded to nearest even. The integers are
    /// stored as the bits of the f32 in `sums`, so that they can travel like any other
    /// bucket.
    pub fn add(self, values: &[f32], sums: &mut [f32]) {
        let factor = power(self.shift);
        for (sum, value) in sums.iter_mut().zip(values) {
            let fixed = (value * factor).round_ties_even() as i32;
            *sum = f32::from_bits(sum.to_bits().wrapping_add(fixed as u32));
        }
    }

    /// Turns integer sums back into numbers.
    pub fn restore(self, sums: &mut [f32]) {
        let factor = power(-self.shift);
        sums.iter_mut().for_each(|sum| *sum = sum.to_bits() as i32 as f32 * factor);
    }
}

/// 2^n, exactly, for n between -126 and 127.
fn power(n: i32) -> f32 {
    f32::from_bits(((n + 127).clamp(1, 254) as u32) << 23)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed;

    #[test]
    fn exponents_bound_their_values() {
        for (value, expected) in [(1.0, 1.0), (0.999, 0.0), (-2.0, 2.0), (0.0, -90.0), (1e-40, -90.0), (3e38, 128.0)] {
            assert_eq!(exponent(&[0.0, value]), expected, "{value}");
        }
        assert_eq!([exponent(&[f32::NAN]), exponent(&[1.0, f32::NEG_INFINITY])], [f32::INFINITY; 2]);
        assert_eq!(exponent(&[]), -90.0);
        assert_eq!(Scale::new(f32::INFINITY, 8), None);
    }

    #[test]
    fn the_sum_is_the_same_in_every_order_and_grouping_and_close_to_the_true_one() {
        for case in 0..2000u64 {
            let mut rng = seed::stream(case, "fixed", &[]);
            let shards = 1 + seed::below(&mut rng, 16);
            let size = power(seed::below(&mut rng, 200) as i32 - 100);
            let parts: Vec<Vec<f32>> = (0..shards)
                .map(|_| (0..20).map(|_| size * (seed::unit(&mut rng) - 0.5) * seed::unit(&mut rng).powi(6)).collect())
                .collect();
            let largest = parts.iter().map(|p| exponent(p)).fold(f32::NEG_INFINITY, f32::max);
            let scale = Scale::new(largest, shards).unwrap_or(Scale { shift: 0 });
            let sum = |order: &[usize]| {
                let mut sums = vec![0.0; 20];
                order.iter().for_each(|&p| scale.add(&parts[p], &mut sums));
                scale.restore(&mut sums);
                sums
            };
            let mut order: Vec<usize> = (0..shards as usize).collect();
            let first = sum(&order);
            seed::shuffle(&mut order, &mut rng);
            assert_eq!(first, sum(&order), "case {case}");
            for (at, got) in first.iter().enumerate() {
                let truth: f64 = parts.iter().map(|p| f64::from(p[at])).sum();
                // Each addend is rounded by at most half a unit, the result once more.
                let unit = f64::from(power(largest as i32)) / 2f64.powi(BITS - 5);
                assert!((truth - f64::from(*got)).abs() <= unit * f64::from(shards) + truth.abs() * 1e-7, "case {case}: {got} {truth}");
            }
        }
    }

    #[test]
    fn the_largest_values_of_all_shards_do_not_overflow() {
        for shards in [1, 2, 3, 8, 64, 65_536] {
            let value = 1.999_999_9f32;
            let scale = Scale::new(exponent(&[value]), shards).unwrap_or(Scale { shift: 0 });
            let mut sums = [0.0];
            (0..shards).for_each(|_| scale.add(&[value], &mut sums));
            scale.restore(&mut sums);
            let truth = f64::from(value) * f64::from(shards);
            assert!((f64::from(sums[0]) / truth - 1.0).abs() < 1e-3, "{shards}: {}", sums[0]);
        }
    }
}
