//! The schema: the tables whose rows are read and written one by one, each declared once.
//!
//! [`table::table!`] makes of a declaration the typed row, the lookups, and both ways to the rows:
//! directly (`pg::heap`), and by statements. [`Table`] takes one of the two by itself, so callers
//! know the names of columns and nothing else of a table.

pub mod alerts;
mod kinds;
pub mod ledger;
pub mod plans;
mod statement;
mod table;
pub mod usage;
pub mod version;

pub use crate::pg::heap::{Changed, Insertion, LockPolicy, Snapshot, at_one_moment, may_change_rows};
pub use table::{Finder, Lookup, Table};

#[cfg(test)]
mod tests {
    use crate::schema::table::Declaration;
    use crate::schema::{alerts, ledger, plans, usage};

    #[test]
    fn indexes_are_of_columns_that_there_are() {
        let all = [
            ledger::lanes::Table::SHAPE,
            ledger::ledger::Table::SHAPE,
            ledger::holds::Table::SHAPE,
            ledger::unpaid_overage::Table::SHAPE,
            ledger::freezes::Table::SHAPE,
            usage::unsettled_usage::Table::SHAPE,
            usage::usage_event_keys::Table::SHAPE,
            usage::period_usage::Table::SHAPE,
            usage::usage_days::Table::SHAPE,
            usage::credit_months::Table::SHAPE,
            usage::fold_positions::Table::SHAPE,
            plans::subscriptions::Table::SHAPE,
            plans::provider_subscriptions::Table::SHAPE,
            alerts::alerts::Table::SHAPE,
        ];
        for shape in all {
            // Statements recognize a row by the first index.
            assert!(shape.indexes[0].is_unique && shape.indexes[0].predicate.is_none(), "{}", shape.name);
            for index in shape.indexes {
                for name in index.columns {
                    let column = shape.columns.iter().find(|column| column.name == *name);
                    // Nulls are distinct in a unique index, so a nullable column would let
                    // duplicates in.
                    assert!(column.is_some_and(|column| !column.nullable || index.predicate.is_some()), "{name}");
                }
            }
        }
    }
}
