//! The kinds of entries and of holds, and the states of a hold.

use crate::words;

words! {
    /// The kind of an entry of the ledger.
    pub enum EntryKind {
        /// Credit that was burned for usage.
        Usage = "usage",
        /// Credit that a reservation binds.
        Hold = "hold",
        /// Credit that a reservation gives back.
        Release = "release",
        /// Credit that is kept for a payout.
        PayoutHold = "payout_hold",
        /// Credit that was kept for a payout, and comes back.
        PayoutRelease = "payout_release",
        /// Credit that was paid out.
        Payout = "payout",
        /// Credit of a grant whose time is over.
        Expiry = "expiry",
        /// Credit of a grant that was voided.
        Void = "void",
        /// Credit that moves between two lanes of one wallet.
        Lane = "lane",
        /// Credit that was bought.
        Purchase = "purchase",
        /// Credit that a plan grants with a period.
        Plan = "plan",
        /// Credit that is given as a present.
        Bonus = "bonus",
        /// Credit of a gift card.
        GiftCard = "gift_card",
        /// Credit of a voucher.
        Voucher = "voucher",
        /// Credit that comes back for an operation, or from outside.
        Refund = "refund",
        /// Credit that was put right by hand.
        Adjustment = "adjustment",
        /// Credit that moves between two orgs.
        Transfer = "transfer",
    }
}

impl EntryKind {
    /// Tells whether a grant may come from a source of this name. The entry of a grant has its
    /// source as its kind.
    pub fn is_source(self) -> bool {
        match self {
            Self::Purchase
            | Self::Plan
            | Self::Bonus
            | Self::GiftCard
            | Self::Voucher
            | Self::Refund
            | Self::Adjustment
            | Self::Transfer => true,
            Self::Usage
            | Self::Hold
            | Self::Release
            | Self::PayoutHold
            | Self::PayoutRelease
            | Self::Payout
            | Self::Expiry
            | Self::Void
            | Self::Lane => false,
        }
    }
}

words! {
    /// The purpose for which a hold binds credit.
    pub enum HoldKind {
        /// Usage that is to be captured.
        Usage = "usage",
        /// A payout that is to be made.
        Payout = "payout",
    }
}

words! {
    /// The state of a hold. Only an open one binds credit.
    pub enum HoldStatus {
        /// The hold binds credit until its time is over.
        Open = "open",
        /// The hold's credit was charged.
        Captured = "captured",
        /// The hold's credit was given back.
        Released = "released",
        /// The hold's credit was paid out.
        PaidOut = "paid_out",
        /// The hold's time was over, and its credit was given back.
        Expired = "expired",
    }
}
