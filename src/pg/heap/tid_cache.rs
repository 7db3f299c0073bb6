//! The cache of places where rows with a unique key were found, so that the index need not be asked
//! again. A hint only says where to look first: whoever finds another row there, or none, asks the
//! index.

/// The place of a row: its block, and the item number by which an index knows it.
///
/// The other two fields are shortcuts, and 0 where they are not known: the buffer that had the
/// block, and the item number of the version that was seen last, from which the chain of versions
/// is shorter than from its root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct TidHint {
    pub block: u32,
    pub number: u16,
    pub seen: u16,
    pub buffer: i32,
}

impl TidHint {
    /// A hint with the place alone.
    pub fn new(block: u32, number: u16) -> Self {
        Self { block, number, seen: 0, buffer: 0 }
    }
}

/// A quick hash of a key, under which a row's place is remembered. Keys that share it only drive
/// each other out of the cache.
#[derive(Debug, Clone, Copy)]
pub struct KeyHash(u64);

impl KeyHash {
    /// The hash of a key that is still empty; `of` tells the keys of one index from those of
    /// another.
    pub fn new(of: u64) -> Self {
        Self(0).and(of)
    }

    /// The hash with one more number in it.
    pub fn and(self, part: u64) -> Self {
        // After the multiplication with the golden ratio the upper bits depend on all lower ones,
        // and the slot is taken from the upper bits.
        Self((self.0.rotate_left(32) ^ part).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// The hash with a value of any length in it.
    pub fn and_bytes(self, part: &[u8]) -> Self {
        part.chunks(8).fold(self.and(part.len() as u64), |hash, chunk| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            hash.and(u64::from_ne_bytes(word))
        })
    }

    /// The number of the row queue for the key.
    pub fn queue(self) -> u32 {
        u32::try_from(self.0 >> 32).unwrap_or_default()
    }

    fn slot(self) -> usize {
        usize::try_from(self.0 >> 48).unwrap_or_default() % SLOTS
    }

    /// The bits that tell the key from most others in its slot.
    fn tag(self) -> u32 {
        u32::try_from((self.0 >> 16) & 0xffff_ffff).unwrap_or_default()
    }
}

/// The number of places that a backend remembers, in 128 kB.
const SLOTS: usize = 8192;

#[derive(Debug, Clone, Copy)]
struct Slot {
    place: TidHint,
    tag: u32,
}

/// The content of a slot before its first use: item numbers begin with 1.
const EMPTY: Slot = Slot { place: TidHint { block: 0, number: 0, seen: 0, buffer: 0 }, tag: 0 };

/// A cache of fixed size, so that a backend does not grow: a new place takes the slot of an older
/// one.
#[derive(Debug, Default)]
pub struct TidCache {
    /// The slots; none before the first place is noted.
    slots: Vec<Slot>,
}

impl TidCache {
    /// The place that is remembered under a hash.
    pub fn get(&self, hash: KeyHash) -> Option<TidHint> {
        let noted = self.slots.get(hash.slot())?;
        (noted.place.number != 0 && noted.tag == hash.tag()).then_some(noted.place)
    }

    /// Remembers a place under a hash.
    pub fn note(&mut self, hash: KeyHash, place: TidHint) {
        if self.slots.is_empty() {
            self.slots = vec![EMPTY; SLOTS];
        }
        self.slots[hash.slot()] = Slot { place, tag: hash.tag() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_is_found_until_another_takes_its_slot() {
        let mut places = TidCache::default();
        assert_eq!(places.get(KeyHash::new(1)), None);
        let (mut wrong, mut kept) = (0, 0);
        let hash = |key: u32| KeyHash::new(7).and_bytes(&[&[0; 12], key.to_be_bytes().as_slice()].concat()).and(0);
        for key in 0..100_000_u32 {
            let place = TidHint { seen: 7, buffer: 8, ..TidHint::new(u32::MAX - key, u16::MAX) };
            places.note(hash(key), place);
            assert_eq!(places.get(hash(key)), Some(place));
            let before = places.get(hash(key / 2));
            wrong += u32::from(before.is_some_and(|found| found.block != u32::MAX - key / 2));
        }
        assert_eq!(places.slots.len(), SLOTS, "it does not grow");
        assert!(wrong < 100, "the tag tells most keys apart: {wrong}");
        for key in 0..1000_u32 {
            places.note(hash(key), TidHint::new(key, 1));
        }
        for key in 0..1000_u32 {
            kept += u32::from(places.get(hash(key)).is_some_and(|found| found.block == key));
        }
        assert!(kept > 900, "few of a thousand share a slot: {kept}");
    }
}
