//! Where rows were found that can be told by a unique key, so that an index need not be asked again. A note only says where to
//! look: whoever finds another row there, or none, asks the index.

/// A row's place: its block, and the number in it by which an index knows it.
///
/// And what makes it quicker to get there, where that has not changed: the buffer that the block was in, and the number of the version
/// that was seen last, from which on there are fewer to go through than from the first. 0 is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct TidHint {
    pub block: u32,
    pub number: u16,
    pub seen: u16,
    pub buffer: i32,
}

impl TidHint {
    /// Of which nothing else is known.
    pub fn new(block: u32, number: u16) -> Self {
        Self { block, number, seen: 0, buffer: 0 }
    }
}

/// What a key is remembered by: a quick hash of it. Keys that share it only drive each other out.
#[derive(Debug, Clone, Copy)]
pub struct KeyHash(u64);

impl KeyHash {
    /// Of what the key is for.
    pub fn new(of: u64) -> Self {
        Self(0).and(of)
    }

    /// And a part of the key.
    pub fn and(self, part: u64) -> Self {
        // Multiplied by the golden ratio, the upper bits depend on all lower ones; they are those that count.
        Self((self.0.rotate_left(32) ^ part).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// And a part of any length.
    pub fn and_bytes(self, part: &[u8]) -> Self {
        part.chunks(8).fold(self.and(part.len() as u64), |name, chunk| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            name.and(u64::from_ne_bytes(word))
        })
    }

    /// The number of a queue.
    pub fn queue(self) -> u32 {
        u32::try_from(self.0 >> 32).unwrap_or_default()
    }

    fn slot(self) -> usize {
        usize::try_from(self.0 >> 48).unwrap_or_default() % SLOTS
    }

    /// What tells it from most others in its slot.
    fn tag(self) -> u32 {
        u32::try_from((self.0 >> 16) & 0xffff_ffff).unwrap_or_default()
    }
}

/// How many are remembered, in 128 kB.
const SLOTS: usize = 8192;

#[derive(Debug, Clone, Copy)]
struct Note {
    place: TidHint,
    tag: u32,
}

/// Numbers begin with 1.
const NOTHING: Note = Note { place: TidHint { block: 0, number: 0, seen: 0, buffer: 0 }, tag: 0 };

/// A table of fixed size, so that a backend does not grow: a note takes the slot of an older one.
#[derive(Debug, Default)]
pub struct TidCache {
    /// Empty before the first note.
    slots: Vec<Note>,
}

impl TidCache {
    /// Where it was, if that is known.
    pub fn get(&self, name: KeyHash) -> Option<TidHint> {
        let noted = self.slots.get(name.slot())?;
        (noted.place.number != 0 && noted.tag == name.tag()).then_some(noted.place)
    }

    /// Notes where it is.
    pub fn note(&mut self, name: KeyHash, place: TidHint) {
        if self.slots.is_empty() {
            self.slots = vec![NOTHING; SLOTS];
        }
        self.slots[name.slot()] = Note { place, tag: name.tag() };
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
        let name = |key: u32| KeyHash::new(7).and_bytes(&[&[0; 12], key.to_be_bytes().as_slice()].concat()).and(0);
        for key in 0..100_000_u32 {
            let place = TidHint { seen: 7, buffer: 8, ..TidHint::new(u32::MAX - key, u16::MAX) };
            places.note(name(key), place);
            assert_eq!(places.get(name(key)), Some(place));
            let before = places.get(name(key / 2));
            wrong += u32::from(before.is_some_and(|found| found.block != u32::MAX - key / 2));
        }
        assert_eq!(places.slots.len(), SLOTS, "it does not grow");
        assert!(wrong < 100, "the tag tells most keys apart: {wrong}");
        for key in 0..1000_u32 {
            places.note(name(key), TidHint::new(key, 1));
        }
        for key in 0..1000_u32 {
            kept += u32::from(places.get(name(key)).is_some_and(|found| found.block == key));
        }
        assert!(kept > 900, "few of a thousand share a slot: {kept}");
    }
}
