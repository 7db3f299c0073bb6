//! The keys that the engine makes for itself and keeps in the table `secrets`.

use crate::pg::clock;
use crate::pg::random;
use crate::pg::spi::{Db, Timestamptz};
use crate::{args, statements};

statements! {
    SECRET(text) = "select secret from billing_internal.secrets where name = $1";
    KEEP(text, bytea, timestamptz) =
        "insert into billing_internal.secrets (name, secret, created_at) values ($1, $2, $3) on conflict do nothing";
}

/// The key of that name, 32 bytes; made at the first use.
pub fn secret(db: &Db, name: &str) -> Vec<u8> {
    loop {
        if let Some(row) = db.write(&SECRET, args![name]).first() {
            return row.get(0);
        }
        // Who loses the race takes what the winner made, or fails with 40001 where that is after its snapshot.
        db.write(&KEEP, args![name, random::bytes::<32>().as_slice(), Timestamptz(clock::now())]);
    }
}
