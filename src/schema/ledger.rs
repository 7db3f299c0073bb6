//! The tables of wallets, their entries and their holds.

use crate::schema::kinds::Kind;
use crate::schema::table::table;

table! {
    /// Wallets, and the parts of those that are split.
    lanes in billing_internal {
        org_id: Uuid,
        fresh_until: Moment,
        holds_due: Moment,
        reserved: Bigint,
        locked: Bigint,
        purchased: Bigint,
        scoped: Bigint,
        future: Bigint,
        slice_grant: Bigint,
        lane: Smallint,
        slot: Smallint,
        unit: Code,
        fast_until: Moment,
        last_entry_id: Bigint,
        balance: Bigint,
        slice_credits: Bigint,
        consumed: Bigint,
        head: Bytea,
        alert_below: Bigint,
        lanes: Smallint,
        alert_base: Bigint,
        recent: Bytea null,
    }
    indexes {
        /// Lanes by wallet and number.
        KEY (org_id, unit, lane);
    }
    find {
        /// A lane by its number; 0 stands for the wallet.
        one by KEY (org_id, unit, lane);
        /// All lanes of a wallet.
        of_wallet by KEY (org_id, unit);
        /// All lanes of an org's wallets.
        of_org by KEY (org_id);
    }
}

impl crate::schema::Lookup<lanes::Table> {
    /// Looks for another lane of the same wallet, where one was named.
    pub fn set_lane(&mut self, lane: i16) {
        self.set_last(<lanes::lane as Kind>::write(lane));
    }
}

table! {
    /// The entries, of which what is usual is left out (`ledger::rows`).
    ledger in billing {
        org_id: Uuid,
        entry_id: Bigint,
        amount: Bigint,
        balance_after: Bigint,
        created_at: Moment,
        grant_id: Bigint null,
        quantity: Bigint null,
        request_id: Bigint null,
        key_uuid: Uuid null,
        member_id: Uuid null,
        operation_id: Bigint null,
        request_hash: Bigint null,
        unit: Code null,
        kind: Code null,
        metric: Code null,
        source: Code null,
        source_id: Code null,
        key_text: Code null,
        reason: Text null,
        actor: Text null,
        metadata: Jsonb null,
        result: Text null,
        entry_hash: Bytea,
    }
    indexes {
        /// Entries by number.
        KEY (org_id, entry_id);
        /// Entries by idempotency key.
        REQUEST (org_id, request_id) where "(request_id IS NOT NULL)";
    }
    find {
        /// The entries of an org after one.
        after by KEY (org_id, entry_id above);
        /// The entry that took an idempotency key.
        request by REQUEST (org_id, request_id);
    }
    partial "(request_id IS NOT NULL)" has |row| row.request_id().is_some();
}

table! {
    /// Reservations.
    holds in billing {
        org_id: Uuid,
        hold_id: Bigint,
        credits: Bigint,
        quantity: Bigint null,
        member_id: Uuid null,
        expires_at: Moment null,
        created_at: Moment,
        closed_at: Moment null,
        closed_by: Bigint null,
        parts: Integer,
        unit: Code,
        kind: Text,
        status: Text,
        metric: Code null,
        reason: Text null,
        price: Jsonb null,
        grant_id: Bigint null,
    }
    indexes {
        /// Holds by number.
        KEY (org_id, hold_id);
    }
    find {
        /// A hold by its number.
        one by KEY (org_id, hold_id);
    }
}

table! {
    /// What settlement charged and nobody has paid.
    unpaid_overage in billing {
        org_id: Uuid,
        unit: Code,
        metric: Code,
        period_start: Moment,
        credits: Bigint,
    }
    indexes {
        /// Debts by unit, metric and period.
        KEY (org_id, unit, metric, period_start);
    }
    find {
        /// All debts of an org.
        of_org by KEY (org_id);
    }
}

table! {
    /// Orgs that are frozen.
    freezes in billing { org_id: Uuid, frozen_at: Moment, reason: Text }
    indexes {
        /// Freezes by org.
        KEY (org_id);
    }
    find {
        /// The freeze of an org.
        of_org by KEY (org_id);
    }
}
