//! The tables of wallets, of their entries, holds and debts, and of frozen orgs.

use crate::schema::kinds::Kind;
use crate::schema::table::table;

table! {
    /// The lanes: the balance rows of wallets. Lane 0 stands for the whole wallet.
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
        /// The index of lanes by wallet and number.
        KEY (org_id, unit, lane);
    }
    find {
        /// Finds a lane by its number; 0 stands for the wallet.
        one by KEY (org_id, unit, lane);
        /// Finds all lanes of a wallet.
        of_wallet by KEY (org_id, unit);
        /// Finds all lanes of an org's wallets.
        of_org by KEY (org_id);
    }
}

impl crate::schema::Lookup<lanes::Table> {
    /// Changes the number of the lane, in a lookup that names one.
    pub fn set_lane(&mut self, lane: i16) {
        self.set_last(<lanes::lane as Kind>::write(lane));
    }
}

table! {
    /// The ledger: all entries. What most entries have in common is stored as NULL
    /// (`ledger::rows`).
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
        /// The index of entries by number.
        KEY (org_id, entry_id);
        /// The index of entries by the hash of their idempotency key.
        REQUEST (org_id, request_id) where "(request_id IS NOT NULL)";
    }
    find {
        /// Finds the entries of an org after one.
        after by KEY (org_id, entry_id above);
        /// Finds the entry that took an idempotency key.
        request by REQUEST (org_id, request_id);
    }
    partial "(request_id IS NOT NULL)" has |row| row.request_id().is_some();
}

table! {
    /// The holds: credit that is set aside for a reservation or a payout.
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
        /// The index of holds by number.
        KEY (org_id, hold_id);
    }
    find {
        /// Finds a hold by its number.
        one by KEY (org_id, hold_id);
    }
}

table! {
    /// The unpaid overage: what settlement charged and the wallet could not pay.
    unpaid_overage in billing {
        org_id: Uuid,
        unit: Code,
        metric: Code,
        period_start: Moment,
        credits: Bigint,
    }
    indexes {
        /// The index of debts by unit, metric and period.
        KEY (org_id, unit, metric, period_start);
    }
    find {
        /// Finds all debts of an org.
        of_org by KEY (org_id);
    }
}

table! {
    /// The freezes: orgs that `check_limit` refuses.
    freezes in billing { org_id: Uuid, frozen_at: Moment, reason: Text }
    indexes {
        /// The index of freezes by org.
        KEY (org_id);
    }
    find {
        /// Finds the freeze of an org.
        of_org by KEY (org_id);
    }
}
