//! Seeded random streams. Every random decision of a run comes from
//! `stream(seed, domain, place)`: never from a global generator, a clock or a rank, so
//! that a decision depends only on what is decided.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// An independent random stream for one decision: `domain` names the kind of
/// decision, `place` says which one (epoch, shard, step...). ChaCha8 keyed by a
/// BLAKE3 hash, so that neighbouring places are as unrelated as distant ones.
pub fn stream(seed: u64, domain: &str, place: &[u64]) -> ChaCha8Rng {
    ChaCha8Rng::from_seed(key(seed, domain, place))
}

/// A 64-bit seed for one decision, for libraries with their own generator.
pub fn derive(seed: u64, domain: &str, place: &[u64]) -> u64 {
    let key = key(seed, domain, place);
    let mut low = [0; 8];
    low.copy_from_slice(&key[..8]);
    u64::from_le_bytes(low)
}

fn key(seed: u64, domain: &str, place: &[u64]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(domain.len() as u64).to_le_bytes());
    hasher.update(domain.as_bytes());
    hasher.update(&seed.to_le_bytes());
    for p in place {
        hasher.update(&p.to_le_bytes());
    }
    *hasher.finalize().as_bytes()
}

/// A number uniform in `0..bound`, without modulo bias (Lemire, "Fast Random
/// Integer Generation in an Interval", 2019). `bound` must not be zero.
pub fn below(rng: &mut impl RngCore, bound: u32) -> u32 {
    debug_assert!(bound > 0);
    let threshold = bound.wrapping_neg() % bound;
    loop {
        let wide = u64::from(rng.next_u32()) * u64::from(bound);
        if wide as u32 >= threshold {
            return (wide >> 32) as u32;
        }
    }
}

/// A number uniform in `[0, 1)` with 24 bits.
pub fn unit(rng: &mut impl RngCore) -> f32 {
    (rng.next_u32() >> 8) as f32 / (1u32 << 24) as f32
}

/// A standard normal number (Box and Muller, "A Note on the Generation of Random
/// Normal Deviates", 1958).
pub fn normal(rng: &mut impl RngCore) -> f32 {
    // 1 - u is in (0, 1]: its logarithm is finite.
    let (u, v) = (1.0 - unit(rng), unit(rng));
    (-2.0 * u.ln()).sqrt() * (std::f32::consts::TAU * v).cos()
}

/// Fisher-Yates. Written out here because a run must be resumable by a later
/// version, while libraries reserve the right to change how they shuffle.
pub fn shuffle<T>(items: &mut [T], rng: &mut impl RngCore) {
    for last in (1..items.len()).rev() {
        items.swap(last, below(rng, last as u32 + 1) as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_differ_by_every_part_of_their_name() {
        let base = derive(1, "order", &[0, 0]);
        assert_eq!(base, derive(1, "order", &[0, 0]));
        for other in [derive(2, "order", &[0, 0]), derive(1, "crop", &[0, 0]), derive(1, "order", &[0, 1]), derive(1, "order", &[0])] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn below_is_uniform() {
        let mut rng = stream(3, "test", &[]);
        let mut seen = [0u32; 7];
        for _ in 0..70_000 {
            seen[below(&mut rng, 7) as usize] += 1;
        }
        // 10,000 expected each, standard deviation 93.
        assert!(seen.iter().all(|&n| n.abs_diff(10_000) < 500), "{seen:?}");
    }

    #[test]
    fn shuffle_is_a_permutation_and_is_pinned() {
        let mut items: Vec<u32> = (0..8).collect();
        shuffle(&mut items, &mut stream(1, "pin", &[]));
        let mut sorted = items.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..8).collect::<Vec<_>>());
        assert_ne!(items, sorted);
    }
}
