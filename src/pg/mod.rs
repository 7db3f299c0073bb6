//! The server as the other modules see it: statements and rows, errors, the clock, arguments and
//! random bytes.

pub mod arguments;
pub mod background;
pub mod clock;
pub mod forward;
pub mod heap;
pub mod invalidation;
pub mod jsonb;
pub mod raise;
pub mod random;
pub mod receipt;
pub mod search_path;
pub mod spi;
pub mod turn;
