//! The count of a metric in a billing period: how much was included and how much was charged. Pure.
//!
//! Each unit of usage is decided once: the allowance covers it, or it is overage, priced by its
//! place among the overage of the period. A consumption is decided at once, recorded usage at
//! settlement; but a consumption leaves to unsettled usage the part of the allowance, and the place
//! in the steps of the price, that it will take. So the order does not matter, and nothing is
//! charged twice or skipped.

use crate::catalog::price::{Overflow, Price};

/// The decided usage of a metric in a period; its fields are columns of the table `period_usage`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Tally {
    pub quantity: i64,
    pub overage: i64,
    pub credits: i64,
    pub priced: i64,
    pub price_id: i64,
}

/// The decision on a quantity.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Charge {
    pub included: i64,
    pub overage: i64,
    pub credits: i64,
}

impl Tally {
    /// Tells whether some usage could have led to this tally; false for one that was tampered with.
    pub fn is_sound(&self) -> bool {
        self.quantity >= 0 && self.credits >= 0 && (0..=self.quantity).contains(&self.overage)
    }

    /// The quantity that the allowance still covers. `allowance`: None is unlimited.
    fn free(&self, allowance: Option<i64>) -> i64 {
        allowance.map_or(i64::MAX, |all| all.saturating_sub(self.quantity - self.overage).max(0))
    }

    /// The part of `unsettled` usage that will be overage, given that nothing else is decided
    /// before it.
    fn unsettled_overage(&self, allowance: Option<i64>, unsettled: i64) -> i64 {
        (unsettled - self.free(allowance)).max(0)
    }

    /// The rest of the allowance once unsettled usage has taken its part; None: unlimited.
    pub fn remaining(&self, allowance: Option<i64>, unsettled: i64) -> Option<i64> {
        allowance.map(|all| (self.free(Some(all)) - unsettled).max(0))
    }

    /// Decides a consumption without counting it. `unsettled`: the recorded usage that comes before
    /// it.
    pub fn charge(
        &self,
        quantity: i64,
        allowance: Option<i64>,
        unsettled: i64,
        price: Option<&Price>,
    ) -> Result<Charge, Overflow> {
        self.quantity.checked_add(unsettled).and_then(|sum| sum.checked_add(quantity)).ok_or(Overflow)?;
        let included = self.remaining(allowance, unsettled).map_or(quantity, |left| left.min(quantity));
        let overage = quantity - included;
        let before = self.overage + self.unsettled_overage(allowance, unsettled);
        let credits = match price {
            Some(price) if overage > 0 => price.charge(before, overage)?,
            _ => 0,
        };
        Ok(Charge { included, overage, credits })
    }

    /// Counts a consumption that was decided and charged.
    pub fn add(&mut self, charge: Charge, price: Option<&Price>) -> Result<(), Overflow> {
        self.rebase(price, 0)?;
        self.take(charge)
    }

    fn take(&mut self, charge: Charge) -> Result<(), Overflow> {
        self.quantity = self.quantity.checked_add(charge.included + charge.overage).ok_or(Overflow)?;
        self.overage += charge.overage;
        self.credits = self.credits.checked_add(charge.credits).ok_or(Overflow)?;
        self.priced = self.priced.checked_add(charge.credits).ok_or(Overflow)?;
        Ok(())
    }

    /// Decides and counts recorded usage. `superseded`: its price holds no longer, so what was
    /// charged at another one came later.
    pub fn settle(
        &mut self,
        quantity: i64,
        allowance: Option<i64>,
        price: Option<&Price>,
        superseded: bool,
    ) -> Result<Charge, Overflow> {
        self.quantity.checked_add(quantity).ok_or(Overflow)?;
        let included = quantity.min(self.free(allowance));
        let overage = quantity - included;
        self.rebase(price, if superseded { overage } else { 0 })?;
        let credits = match price {
            // The steps that an earlier consumption left open are for this usage.
            Some(price) if overage > 0 => (price.total(self.overage + overage)? - self.priced).max(0),
            _ => 0,
        };
        let charge = Charge { included, overage, credits };
        self.take(charge)?;
        Ok(charge)
    }

    /// Computes `priced` anew where the price changed: the overage so far, as if it had been
    /// charged at this price, so that a later charge pays for its own quantity only. `below`: the
    /// overage that takes its place below all of that.
    fn rebase(&mut self, price: Option<&Price>, below: i64) -> Result<(), Overflow> {
        let id = price.map_or(0, Price::id);
        if id != self.price_id {
            self.price_id = id;
            self.priced = match price {
                Some(price) => price.total(self.overage + below)? - price.total(below)?,
                None => 0,
            };
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::price::Step;
    use proptest::prelude::*;

    fn price(steps: &[(Option<i64>, i64, i64)]) -> Price {
        let steps = steps.iter().map(|(up_to, credits, per)| Step { up_to: *up_to, credits: *credits, per: *per });
        Price::new("credit".into(), steps.collect()).unwrap()
    }

    #[test]
    fn a_consumption_leaves_recorded_usage_its_part_of_the_allowance() {
        let price = price(&[(None, 2, 1)]);
        let mut tally = Tally::default();
        let charge = tally.charge(50, Some(100), 80, Some(&price)).unwrap();
        assert_eq!(charge, Charge { included: 20, overage: 30, credits: 60 });
        tally.add(charge, Some(&price)).unwrap();
        let charge = tally.settle(80, Some(100), Some(&price), false).unwrap();
        assert_eq!(charge, Charge { included: 80, overage: 0, credits: 0 });
    }

    #[test]
    fn a_new_price_counts_from_where_the_old_one_came_to() {
        let (old, new) = (price(&[(Some(10), 5, 1), (None, 1, 1)]), price(&[(Some(10), 7, 1), (None, 3, 1)]));
        let mut tally = Tally::default();
        tally.settle(8, Some(0), Some(&old), false).unwrap();
        let charge = tally.settle(4, Some(0), Some(&new), false).unwrap();
        assert_eq!(charge.credits, 2 * 7 + 2 * 3);
    }

    #[test]
    fn usage_from_before_a_new_price_has_its_place_below_what_came_after() {
        let (old, new) = (price(&[(Some(10), 5, 1), (None, 1, 1)]), price(&[(Some(10), 7, 1), (None, 3, 1)]));
        let mut tally = Tally::default();
        // 10 were recorded at the old price; then 5 are consumed at the new one.
        let charge = tally.charge(5, Some(0), 10, Some(&new)).unwrap();
        assert_eq!(charge.credits, 5 * 3);
        tally.add(charge, Some(&new)).unwrap();
        assert_eq!(tally.settle(10, Some(0), Some(&old), true).unwrap().credits, 10 * 5);
    }

    #[test]
    fn what_became_free_is_not_charged_again() {
        let price = price(&[(None, 2, 1)]);
        let mut tally = Tally::default();
        tally.add(tally.charge(150, Some(100), 0, Some(&price)).unwrap(), Some(&price)).unwrap();
        assert_eq!(tally.credits, 100);
        // A larger plan: what was paid takes nothing of its allowance.
        assert_eq!(tally.remaining(Some(500), 0), Some(400));
        assert_eq!(tally.charge(401, Some(500), 0, Some(&price)).unwrap().credits, 2);
    }

    proptest! {
        /// Whatever is consumed, recorded and settled in whatever order: the allowance is used up
        /// before there is overage, and the overage costs as much as in one piece.
        #[test]
        fn any_mix_costs_what_its_sum_costs(
            allowance in 0..300i64,
            up_to in 1..200i64, first in 0..20i64, then in 0..20i64, per in 1..9i64,
            steps in proptest::collection::vec((0..3u8, 1..100i64), 0..30),
        ) {
            let price = price(&[(Some(up_to), first, per), (None, then, per)]);
            let mut tally = Tally::default();
            let mut unsettled = 0;
            let mut total = 0;
            for (what, quantity) in steps {
                match what {
                    0 => {
                        let charge = tally.charge(quantity, Some(allowance), unsettled, Some(&price)).unwrap();
                        prop_assert!(charge.included >= 0 && charge.overage >= 0 && charge.credits >= 0);
                        tally.add(charge, Some(&price)).unwrap();
                        total += quantity;
                    }
                    1 => {
                        unsettled += quantity;
                        total += quantity;
                    }
                    _ => {
                        tally.settle(unsettled, Some(allowance), Some(&price), false).unwrap();
                        unsettled = 0;
                    }
                }
            }
            tally.settle(unsettled, Some(allowance), Some(&price), false).unwrap();
            prop_assert_eq!(tally.quantity, total);
            prop_assert_eq!(tally.overage, (total - allowance).max(0));
            prop_assert_eq!(tally.credits, price.total(tally.overage).unwrap());
        }
    }
}
