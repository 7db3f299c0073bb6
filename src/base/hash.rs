//! SHA-256 over lists of values, and fingerprints of requests.

use sha2::{Digest, Sha256};
use uuid::Uuid;

/// A SHA-256.
pub type Hash = [u8; 32];

/// A hash over a list of values, of which no two lists look alike: each value is a presence byte,
/// its length, its bytes.
pub struct Fields(Sha256);

impl Fields {
    /// Begins with an empty list of values.
    pub fn new() -> Self {
        Self(Sha256::new())
    }

    /// Gives the hash of the values so far.
    pub fn finish(self) -> Hash {
        self.0.finalize().into()
    }

    /// Adds bytes, or their absence.
    pub fn bytes(&mut self, value: Option<&[u8]>) {
        match value {
            None => self.0.update([0]),
            Some(bytes) => {
                self.0.update([1]);
                self.0.update((bytes.len() as u64).to_be_bytes());
                self.0.update(bytes);
            }
        }
    }

    /// Adds a text, or its absence.
    pub fn text(&mut self, value: Option<&str>) {
        self.bytes(value.map(str::as_bytes));
    }

    /// Adds a number of 64 bits, or its absence.
    pub fn number(&mut self, value: Option<i64>) {
        self.bytes(value.map(i64::to_be_bytes).as_ref().map(<[u8; 8]>::as_slice));
    }

    /// Adds a UUID, or its absence.
    pub fn uuid(&mut self, value: Option<Uuid>) {
        self.bytes(value.as_ref().map(|u| u.as_bytes().as_slice()));
    }
}

/// The fingerprint of a request: the function and its arguments as text, in order.
pub fn fingerprint(function: &str, arguments: &[Option<&str>]) -> i64 {
    let mut fields = Fields::new();
    fields.text(Some(function));
    for argument in arguments {
        fields.text(*argument);
    }
    first_bits(fields.finish())
}

/// The first 64 bits of a hash, as a number.
pub fn first_bits(hash: Hash) -> i64 {
    let mut first = [0; 8];
    first.copy_from_slice(&hash[..8]);
    i64::from_be_bytes(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_arguments_do_not_run_together() {
        assert_ne!(fingerprint("f", &[Some("a"), None]), fingerprint("f", &[None, Some("a")]));
        assert_ne!(fingerprint("f", &[Some("ab"), Some("c")]), fingerprint("f", &[Some("a"), Some("bc")]));
    }
}
