//! What becomes of a payment: the moves that it may make, and what reports of a provider come to, in whatever order they come.
//!
//! Facts only ever grow: that the money came, how much went back, how much a dispute took. The status follows from them, so two
//! reports that pass each other on the way end at the same place.

/// Where a payment stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Status {
    /// Begun here, unknown to the provider.
    #[default]
    Idle,
    /// The provider was asked.
    Processing,
    /// The provider waits for the money.
    Pending,
    /// The money is there.
    Succeeded,
    /// It will not come, unless somebody tries again.
    Failed,
    /// It came and went back.
    Refunded,
}

const ALL: [Status; 6] =
    [Status::Idle, Status::Processing, Status::Pending, Status::Succeeded, Status::Failed, Status::Refunded];

impl Status {
    /// Its name in SQL.
    pub fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Processing => "processing",
            Self::Pending => "pending",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Refunded => "refunded",
        }
    }

    /// From its name in SQL.
    pub fn parse(name: &str) -> Option<Self> {
        ALL.into_iter().find(|status| status.name() == name)
    }

    /// Whether somebody may move it there.
    pub fn may_become(self, next: Self) -> bool {
        match self {
            Self::Idle => matches!(next, Self::Processing | Self::Pending | Self::Succeeded | Self::Failed),
            Self::Processing => matches!(next, Self::Pending | Self::Succeeded | Self::Failed),
            Self::Pending => matches!(next, Self::Succeeded | Self::Failed),
            // Another attempt.
            Self::Failed => matches!(next, Self::Processing | Self::Pending | Self::Succeeded),
            Self::Succeeded => next == Self::Refunded,
            Self::Refunded => false,
        }
    }
}

/// The money of a payment, as far as reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub struct Money {
    pub total: i64,
    pub paid: bool,
    /// Went back to the customer.
    pub refunded: i64,
    /// A dispute took it.
    pub disputed_amount: i64,
    /// The newest report while it was unpaid, and when it was made.
    pub status: Status,
    pub last_report_at: i64,
}

impl Money {
    /// Where it stands.
    pub fn status(&self) -> Status {
        match (self.paid, self.is_all_back()) {
            (true, true) => Status::Refunded,
            (true, false) => Status::Succeeded,
            // As reported while nothing was paid; a refund may be reported before the payment.
            (false, _) => self.status,
        }
    }

    fn back(&self) -> i64 {
        self.refunded.saturating_add(self.disputed_amount).clamp(0, self.total)
    }

    fn is_all_back(&self) -> bool {
        self.total > 0 && self.back() == self.total
    }

    /// A report of an unpaid payment. What is older than the newest one says nothing; of two of one second, failure stands.
    pub fn report(&mut self, status: Status, at: i64) {
        let is_newer = at > self.last_report_at || (at == self.last_report_at && status == Status::Failed);
        if is_newer {
            (self.status, self.last_report_at) = (status, at);
        }
    }

    /// The money came.
    pub fn pay(&mut self) {
        self.paid = true;
    }

    /// So much went back in all so far.
    pub fn refund(&mut self, in_all: i64) {
        self.refunded = self.refunded.max(in_all);
    }

    /// A lost dispute took so much.
    pub fn lose(&mut self, amount: i64) {
        self.disputed_amount = self.disputed_amount.max(amount);
    }

    /// What of some credit goes back with the money: a credit of which a part was not paid is not kept.
    pub fn taken_of(&self, credits: i64) -> i64 {
        if self.total <= 0 {
            return 0;
        }
        let (back, total) = (i128::from(self.back()), i128::from(self.total));
        i64::try_from((i128::from(credits) * back + total - 1) / total).unwrap_or(credits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone, Copy)]
    enum Report {
        Pending(i64),
        Failed(i64),
        Paid,
        Refunded(i64),
        Lost(i64),
    }

    fn apply(money: &mut Money, report: Report) {
        match report {
            Report::Pending(at) => money.report(Status::Pending, at),
            Report::Failed(at) => money.report(Status::Failed, at),
            Report::Paid => money.pay(),
            Report::Refunded(in_all) => money.refund(in_all),
            Report::Lost(amount) => money.lose(amount),
        }
    }

    fn reports() -> impl Strategy<Value = Vec<Report>> {
        let report = prop_oneof![
            (1_i64..9).prop_map(Report::Pending),
            (1_i64..9).prop_map(Report::Failed),
            Just(Report::Paid),
            (1_i64..=1000).prop_map(Report::Refunded),
            (1_i64..=1000).prop_map(Report::Lost),
        ];
        proptest::collection::vec(report, 0..12)
    }

    proptest! {
        #[test]
        fn order_and_repetition_do_not_matter(
            (first, second) in reports().prop_flat_map(|all| (Just(all.clone()), Just(all).prop_shuffle())),
            again in any::<prop::sample::Index>(),
        ) {
            let new = Money { total: 1000, ..Money::default() };
            let (mut one, mut other) = (new, new);
            for report in &first {
                apply(&mut one, *report);
            }
            for report in &second {
                apply(&mut other, *report);
            }
            if !second.is_empty() {
                apply(&mut other, second[again.index(second.len())]);
            }
            prop_assert_eq!(one.status(), other.status());
            prop_assert_eq!(one.taken_of(777), other.taken_of(777));
        }

        #[test]
        fn never_more_than_all_is_taken(total in 1_i64..=i64::MAX, back in 0_i64..=i64::MAX, credits in 0_i64..=i64::MAX) {
            let money = Money { total, paid: true, refunded: back, ..Money::default() };
            let taken = money.taken_of(credits);
            prop_assert!((0..=credits).contains(&taken));
            prop_assert_eq!(back >= total, money.status() == Status::Refunded);
            prop_assert!(back < total || taken == credits);
            prop_assert!(back > 0 || taken == 0);
        }
    }

    #[test]
    fn the_moves_of_a_payment() {
        let moves = |from: Status| ALL.into_iter().filter(move |to| from.may_become(*to)).map(Status::name);
        let all: Vec<(&str, Vec<&str>)> = ALL.into_iter().map(|from| (from.name(), moves(from).collect())).collect();
        assert_eq!(
            all,
            [
                ("idle", vec!["processing", "pending", "succeeded", "failed"]),
                ("processing", vec!["pending", "succeeded", "failed"]),
                ("pending", vec!["succeeded", "failed"]),
                ("succeeded", vec!["refunded"]),
                ("failed", vec!["processing", "pending", "succeeded"]),
                ("refunded", vec![]),
            ]
        );
        assert_eq!(Status::parse("pending"), Some(Status::Pending));
        assert_eq!(Status::parse("paid"), None);
    }
}
