//! The newest offset of each key, in a table of fixed size: what a pass of compaction knows.
//!
//! A key is known by 128 bits of SipHash under a random key of each pass. Two keys meet with a chance of n^2 / 2^129: for a
//! thousand million keys, one in 10^20, and nobody can look for such keys without knowing the random one.

const SLOT_BYTES: usize = size_of::<[u64; 3]>();

/// Hash and offset + 1; all zeros is free.
pub(super) struct KeyMap {
    seed: (u64, u64),
    slots: Vec<[u64; 3]>,
    used: usize,
}

impl KeyMap {
    /// A map of at most `budget` bytes, which is not larger than `records` need.
    pub(super) fn new(seed: u128, budget: usize, records: u64) -> Self {
        let most = (budget / SLOT_BYTES).max(2);
        let wanted = usize::try_from(records.saturating_mul(4) / 3).unwrap_or(usize::MAX).saturating_add(2);
        let slots = vec![[0; 3]; wanted.min(most)];
        Self { seed: ((seed >> 64) as u64, seed as u64), slots, used: 0 }
    }

    /// Notes a record; tells whether there was room for its key.
    pub(super) fn put(&mut self, key: &[u8], offset: i64) -> bool {
        let (place, hash) = self.find(key);
        let slot = self.slots[place];
        if slot[2] == 0 {
            // A quarter stays free: look-ups stay short, and end.
            if self.used >= (self.slots.len() * 3 / 4).max(1) {
                return false;
            }
            self.used += 1;
        }
        self.slots[place] = [hash.0, hash.1, slot[2].max(offset as u64 + 1)];
        true
    }

    /// The newest offset noted of a key.
    pub(super) fn get(&self, key: &[u8]) -> Option<i64> {
        let (place, _) = self.find(key);
        self.slots[place][2].checked_sub(1).map(|offset| offset as i64)
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.used
    }

    /// Bytes that it takes.
    pub(super) fn size_bytes(&self) -> usize {
        self.slots.len() * SLOT_BYTES
    }

    /// Where a key is, or would be.
    fn find(&self, key: &[u8]) -> (usize, (u64, u64)) {
        let hash = siphash128(self.seed, key);
        let slots = self.slots.len();
        let mut place = ((u128::from(hash.0) * slots as u128) >> 64) as usize;
        loop {
            let slot = &self.slots[place];
            if slot[2] == 0 || (slot[0], slot[1]) == hash {
                return (place, hash);
            }
            place = if place + 1 == slots { 0 } else { place + 1 };
        }
    }
}

/// SipHash-2-4 of 128 bits.
///
/// # Source
/// Aumasson, Bernstein, "SipHash: a fast short-input PRF", with the authors' variant of two words.
fn siphash128((k0, k1): (u64, u64), data: &[u8]) -> (u64, u64) {
    let mut v = [
        k0 ^ 0x736f_6d65_7073_6575,
        k1 ^ 0x646f_7261_6e64_6f6d ^ 0xee,
        k0 ^ 0x6c79_6765_6e65_7261,
        k1 ^ 0x7465_6462_7974_6573,
    ];
    let mut words = data.chunks_exact(8);
    let absorb = |v: &mut [u64; 4], word: u64| {
        v[3] ^= word;
        round(v);
        round(v);
        v[0] ^= word;
    };
    for word in &mut words {
        absorb(&mut v, u64::from_le_bytes(word.try_into().expect("chunks of eight")));
    }
    let mut last = [0; 8];
    last[..words.remainder().len()].copy_from_slice(words.remainder());
    last[7] = data.len() as u8;
    absorb(&mut v, u64::from_le_bytes(last));
    v[2] ^= 0xee;
    (0..4).for_each(|_| round(&mut v));
    let first = v[0] ^ v[1] ^ v[2] ^ v[3];
    v[1] ^= 0xdd;
    (0..4).for_each(|_| round(&mut v));
    (first, v[0] ^ v[1] ^ v[2] ^ v[3])
}

#[inline]
fn round(v: &mut [u64; 4]) {
    v[0] = v[0].wrapping_add(v[1]);
    v[2] = v[2].wrapping_add(v[3]);
    v[1] = v[1].rotate_left(13) ^ v[0];
    v[3] = v[3].rotate_left(16) ^ v[2];
    v[0] = v[0].rotate_left(32);
    v[2] = v[2].wrapping_add(v[1]);
    v[0] = v[0].wrapping_add(v[3]);
    v[1] = v[1].rotate_left(17) ^ v[2];
    v[3] = v[3].rotate_left(21) ^ v[0];
    v[2] = v[2].rotate_left(32);
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    /// The first vectors of the authors' own list: key 00 01 .. 0f, input of 0, 1 and 15 bytes 00 01 ..
    #[test]
    fn the_hash_is_the_one_it_says() {
        let key = (0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908);
        let hex = |(a, b): (u64, u64)| {
            let bytes = [a.to_le_bytes(), b.to_le_bytes()].concat();
            bytes.iter().map(|b| format!("{b:02x}")).collect::<String>()
        };
        assert_eq!(hex(siphash128(key, &[])), "a3817f04ba25a8e66df67214c7550293");
        assert_eq!(hex(siphash128(key, &[0])), "da87c1d86b99af44347659119b22fc45");
    }

    #[test]
    fn it_knows_the_newest_and_never_grows() {
        for budget in [0, 100, 4096, 1 << 20] {
            let mut map = KeyMap::new(7, budget, 1 << 40);
            let size = map.size_bytes();
            assert!(size <= budget.max(2 * SLOT_BYTES));
            let mut known = HashMap::new();
            for offset in 0..20_000i64 {
                let key = (offset.wrapping_mul(7919) % 3000).to_string();
                if map.put(key.as_bytes(), offset) {
                    known.insert(key, offset);
                } else {
                    assert!(!known.contains_key(&key), "a known key always has room");
                }
            }
            assert_eq!((map.size_bytes(), map.len()), (size, known.len()));
            assert!(!known.is_empty());
            for key in (0..4000).map(|n: i64| n.to_string()) {
                assert_eq!(map.get(key.as_bytes()), known.get(&key).copied());
            }
        }
        assert!(KeyMap::new(1, 1 << 30, 100).size_bytes() < 4096, "few records need little");
    }
}
