//! Codes of gift cards: 120 random bits and a check character, without a server.
//!
//! A code has 25 characters of Crockford's base 32, which has no I, L, O and U; reading accepts
//! characters that look alike. The check character makes the sum of all characters, each times a
//! power of 2 of its own in GF(32), zero: so every single wrong character is found, and every two
//! that changed places, next to each other or not. Luhn's scheme would miss 0Z for Z0.

use hmac::{Hmac, Mac};
use sha2::Sha256;
use std::fmt;

/// The number of random bytes of a code.
pub const RANDOM: usize = 15;

const LENGTH: usize = 25;
const GROUP: usize = 5;
const ALPHABET: [u8; 32] = *b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// A code: the values of its characters, 0 to 31. It has no `Debug`, or it would end up in a log.
#[derive(Clone, PartialEq, Eq)]
pub struct Code([u8; LENGTH]);

/// The hash of a code as tables have it, which says nothing about the code without the key.
pub type CodeHash = [u8; 32];

/// A value times two in GF(32), whose polynomial is x⁵ + x² + 1.
fn doubled(value: u8) -> u8 {
    let twice = value << 1;
    if twice & 0b10_0000 == 0 { twice } else { twice ^ 0b10_0101 }
}

/// The check character for the values before it.
fn check(values: &[u8]) -> u8 {
    values.iter().fold(0, |sum, value| doubled(sum ^ value))
}

/// The value of a character as people type it.
fn value(typed: char) -> Option<u8> {
    let plain = match typed.to_ascii_uppercase() {
        'O' => '0',
        'I' | 'L' => '1',
        plain => plain,
    };
    ALPHABET.iter().zip(0..).find(|(known, _)| char::from(**known) == plain).map(|(_, value)| value)
}

/// Whether a character is one that people and programs put between those of a code.
fn is_filler(typed: char) -> bool {
    typed.is_whitespace() || matches!(typed, '-' | '\u{2010}'..='\u{2015}' | '\u{2212}')
}

impl Code {
    /// Makes a code of random bytes.
    pub fn new(random: [u8; RANDOM]) -> Self {
        let mut values = [0; LENGTH];
        for (five, eight) in random.chunks_exact(5).zip(values.chunks_exact_mut(8)) {
            let bits = five.iter().fold(0_u64, |bits, byte| (bits << 8) | u64::from(*byte));
            for (place, value) in eight.iter_mut().rev().enumerate() {
                *value = u8::try_from((bits >> (5 * place)) & 31).unwrap_or_default();
            }
        }
        values[LENGTH - 1] = check(&values[..LENGTH - 1]);
        Self(values)
    }

    /// Reads a code as somebody typed it; None if that cannot be one.
    pub fn read(typed: &str) -> Option<Self> {
        let mut values = [0; LENGTH];
        let mut count = 0;
        for typed in typed.chars().filter(|typed| !is_filler(*typed)) {
            *values.get_mut(count)? = value(typed)?;
            count += 1;
        }
        let (last, others) = values.split_last()?;
        (count == LENGTH && *last == check(others)).then_some(Self(values))
    }

    /// The HMAC-SHA256 of the characters.
    pub fn hash(&self, key: &[u8]) -> CodeHash {
        let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("a key of any length will do");
        mac.update(&self.characters());
        mac.finalize().into_bytes().into()
    }

    fn characters(&self) -> [u8; LENGTH] {
        self.0.map(|value| ALPHABET[usize::from(value)])
    }
}

/// Prints a code in groups of five characters.
impl fmt::Display for Code {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, character) in self.characters().into_iter().enumerate() {
            if place > 0 && place % GROUP == 0 {
                out.write_str("-")?;
            }
            write!(out, "{}", char::from(character))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn text(values: &[u8]) -> String {
        values.iter().map(|value| char::from(ALPHABET[usize::from(*value)])).collect()
    }

    #[test]
    fn a_code_is_shown_in_groups() {
        assert_eq!(Code::new([0; RANDOM]).to_string(), "00000-00000-00000-00000-00000");
        let code = Code::new(*b"fifteen letters").to_string();
        assert_eq!(code.len(), 29);
        assert!(code.chars().enumerate().all(|(place, c)| (c == '-') == (place % 6 == 5)));
        assert!(!code.contains(['I', 'L', 'O', 'U']));
    }

    #[test]
    fn the_factors_of_the_check_are_all_different() {
        // The check character of a code with a single 1 in it is the factor of that place; the
        // factor of the check character's own place is 1.
        let factors: BTreeSet<u8> = (0..LENGTH - 1)
            .map(|place| {
                let mut values = [0; LENGTH - 1];
                values[place] = 1;
                check(&values)
            })
            .chain([1])
            .collect();
        assert_eq!(factors.len(), LENGTH);
        assert!(!factors.contains(&0));
    }

    #[test]
    fn what_is_no_code_is_not_read() {
        let code = Code::new(*b"fifteen letters").to_string();
        for wrong in ["", "-", "U", &code[1..], &code[..28], &format!("{code}0"), &code.replace('-', "_"), "ÄÖÜ", "０"]
        {
            assert!(Code::read(wrong).is_none(), "{wrong}");
        }
        assert!(Code::read(&"0".repeat(1_000_000)).is_none());
    }

    #[test]
    fn another_key_gives_another_hash() {
        let code = Code::new(*b"fifteen letters");
        assert_eq!(code.hash(&[1; 32]), code.clone().hash(&[1; 32]));
        assert_ne!(code.hash(&[1; 32]), code.hash(&[2; 32]));
        assert_ne!(code.hash(&[1; 32]), Code::new([0; RANDOM]).hash(&[1; 32]));
    }

    #[test]
    fn the_hash_is_hmac_sha256_of_the_characters() {
        // printf 0000000000000000000000000 | openssl dgst -sha256 -hmac key
        let expected = "59404b8cd2b44ed694a1672752a1cbe4c7ed4286df502d28c3fac7583c1769ff";
        let hash = Code::new([0; RANDOM]).hash(b"key");
        let shown: Vec<String> = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(shown.concat(), expected);
    }

    proptest! {
        /// A code is read as what it is however it is typed, and all of its 120 bits are in it.
        #[test]
        fn what_is_shown_is_read(
            random in any::<[u8; RANDOM]>(), other in any::<[u8; RANDOM]>(), fill in proptest::collection::vec(0..6usize, LENGTH),
            lower in any::<[bool; LENGTH]>(),
        ) {
            let code = Code::new(random);
            prop_assert!(Code::read(&code.to_string()) == Some(code.clone()));
            prop_assert_eq!(random == other, code == Code::new(other));
            let mut typed = String::new();
            for (place, character) in text(&code.0).chars().enumerate() {
                typed.push_str(["", "", "-", " ", "\u{2013}", " - \t\n"][fill[place]]);
                typed.push(match character {
                    '0' if lower[place] => 'o',
                    '1' if lower[place] => 'l',
                    character if lower[place] => character.to_ascii_lowercase(),
                    '0' => 'O',
                    '1' => 'I',
                    character => character,
                });
            }
            prop_assert!(Code::read(&typed) == Some(code));
        }

        /// Every single wrong character is found.
        #[test]
        fn a_wrong_character_is_found(random in any::<[u8; RANDOM]>(), place in 0..LENGTH, change in 1..32u8) {
            let mut values = Code::new(random).0;
            values[place] ^= change;
            prop_assert!(Code::read(&text(&values)).is_none());
        }

        /// Any two different characters that changed places are found.
        #[test]
        fn a_transposition_is_found(random in any::<[u8; RANDOM]>(), one in 0..LENGTH, by in 1..LENGTH) {
            let mut values = Code::new(random).0;
            let other = (one + by) % LENGTH;
            let is_same = values[one] == values[other];
            values.swap(one, other);
            prop_assert_eq!(Code::read(&text(&values)).is_some(), is_same);
        }
    }
}
