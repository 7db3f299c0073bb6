//! Random bytes, and the keys that the engine makes for itself and keeps in the table `secrets`.

use crate::clock;
use crate::sql::{Db, Timestamptz};
use crate::{args, statements};
use pgrx::pg_sys;

statements! {
    SECRET(text) = "select secret from billing.secrets where name = $1";
    KEEP(text, bytea, timestamptz) =
        "insert into billing.secrets (name, secret, created_at) values ($1, $2, $3) on conflict do nothing";
}

/// From the server's own source of what nobody can guess.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // SAFETY: writes so many bytes.
    let is_random = unsafe { pg_sys::pg_strong_random(bytes.as_mut_ptr().cast(), N) };
    assert!(is_random, "the server has no random bytes");
    bytes
}

/// The key of that name, 32 bytes; made at the first use.
pub fn secret(db: &Db, name: &str) -> Vec<u8> {
    loop {
        if let Some(row) = db.write(&SECRET, args![name]).first() {
            return row.get(0);
        }
        // Who loses the race takes what the winner made, or fails with 40001 where that is after its snapshot.
        db.write(&KEEP, args![name, random::<32>().as_slice(), Timestamptz(clock::now())]);
    }
}
