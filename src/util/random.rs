//! Random numbers for choices (queue members, jitter) and ids, seeded per use so that tests replay.

/// xorshift64*: a few instructions per number, good enough to pick queue members evenly.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        // A zero state would stay zero for ever.
        Self(seed ^ 0x9E37_79B9_7F4A_7C15 | 1)
    }

    /// Seeded from the operating system, by way of the hasher std seeds itself with.
    pub fn from_entropy() -> Self {
        use std::hash::{BuildHasher, Hasher};
        Self::new(
            std::collections::hash_map::RandomState::new()
                .build_hasher()
                .finish(),
        )
    }

    #[inline]
    pub fn next_u64(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number below `bound`, which must not be 0; the bias of at most bound / 2^32 does not show.
    #[inline]
    pub fn below(&mut self, bound: u32) -> u32 {
        debug_assert!(bound > 0);
        ((u64::from((self.next_u64() >> 32) as u32) * u64::from(bound)) >> 32) as u32
    }

    /// 22 characters of [0-9A-Za-z], the shape of gnatsd's server id (a NUID).
    pub fn id(&mut self) -> String {
        const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
        (0..22)
            .map(|_| char::from(DIGITS[self.below(62) as usize]))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_below_a_bound_are_even() {
        let mut random = Random::new(7);
        let mut seen = [0u32; 5];
        for _ in 0..50_000 {
            seen[random.below(5) as usize] += 1;
        }
        assert!(seen.iter().all(|n| (9_500..10_500).contains(n)), "{seen:?}");
    }

    #[test]
    fn ids_differ_and_have_the_shape_of_a_nuid() {
        let mut random = Random::from_entropy();
        let (a, b) = (random.id(), random.id());
        assert_ne!(a, b);
        assert!(a.len() == 22 && a.bytes().all(|c| c.is_ascii_alphanumeric()));
    }
}
