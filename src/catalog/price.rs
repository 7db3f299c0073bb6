//! Prices: integer rational steps over the quantity cumulated in a period.
//!
//! P(q), the price of the first q units of a period, is the exact sum of the steps, rounded up to a
//! whole credit once. A charge is P(after) − P(before), so the charges of a period add up to
//! P(total) however the usage was split.

use crate::base::error::Error;
use crate::base::hash;
use serde::{Deserialize, Serialize};
use std::cell::OnceCell;

/// A step of a graduated price: `credits` per `per` units, up to a cumulated quantity of `up_to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// The upper end of the step; the last step has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub up_to: Option<i64>,
    /// The credits for a block of units.
    pub credits: i64,
    /// The number of units in a block.
    pub per: i64,
}

/// A price that has been checked: see [`Price::new`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Price {
    /// The unit in which it is paid: `credit` or a currency.
    pub unit: String,
    /// The steps in the order of quantity, at least one.
    pub steps: Vec<Step>,
    #[serde(skip)]
    id: Id,
}

/// The fingerprint of a price, computed on first use. It follows from the other fields, so it tells
/// no two prices apart.
#[derive(Debug, Clone, Default)]
struct Id(OnceCell<i64>);

impl PartialEq for Id {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}
impl Eq for Id {}

/// The refusal of a result that does not fit 63 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overflow;

/// The bound of the common multiple of all `per`, over which fractions are summed: beyond it sums
/// might not fit i128.
const LARGEST_COMMON_MULTIPLE: i128 = 1 << 120;
const MOST_STEPS: usize = 100;

impl Price {
    /// Makes a price of steps, or tells which step has which fault.
    pub fn new(unit: String, steps: Vec<Step>) -> Result<Self, (usize, &'static str)> {
        let mut multiple: i128 = 1;
        let mut from = 0;
        for (i, step) in steps.iter().enumerate() {
            if step.credits < 0 {
                return Err((i, "credits must not be negative"));
            }
            if step.per < 1 {
                return Err((i, "per must be at least 1"));
            }
            match step.up_to {
                None if i + 1 < steps.len() => return Err((i, "only the last step has no up_to")),
                Some(_) if i + 1 == steps.len() => return Err((i, "the last step must have no up_to")),
                Some(up_to) if up_to <= from => return Err((i, "up_to must grow from step to step")),
                Some(up_to) => from = up_to,
                None => {}
            }
            let per = i128::from(step.per);
            multiple = (multiple / gcd(multiple, per))
                .checked_mul(per)
                .filter(|m| *m <= LARGEST_COMMON_MULTIPLE)
                .ok_or((i, "the per of all steps have no common multiple that fits"))?;
        }
        if steps.is_empty() || steps.len() > MOST_STEPS {
            return Err((0, "there must be 1 to 100 steps"));
        }
        Ok(Self { unit, steps, id: Id::default() })
    }

    /// The fingerprint by which counters remember at which price they were charged.
    pub fn id(&self) -> i64 {
        *self.id.0.get_or_init(|| {
            let text = serde_json::to_string(self).unwrap_or_default();
            hash::fingerprint("price", &[Some(&text)])
        })
    }

    /// Whether a charge does not depend on what was used before: one step with whole credits per
    /// unit.
    pub fn is_linear(&self) -> bool {
        matches!(self.steps.as_slice(), [only] if only.credits % only.per == 0)
    }

    /// P(quantity): the price of the first `quantity` units of a period.
    pub fn total(&self, quantity: i64) -> Result<i64, Overflow> {
        // Quotients and remainders are summed apart: a product of two 63-bit numbers fits i128, and
        // so does every sum here.
        let mut whole: i128 = 0;
        let mut rest: (i128, i128) = (0, 1);
        let mut from: i64 = 0;
        for step in &self.steps {
            let to = step.up_to.map_or(quantity, |up_to| up_to.min(quantity));
            if to <= from {
                break;
            }
            let per = i128::from(step.per);
            let product = i128::from(to - from) * i128::from(step.credits);
            whole += product / per;
            rest = add(rest, (product % per, per));
            from = to;
        }
        let rounded = whole + (rest.0 + rest.1 - 1) / rest.1;
        i64::try_from(rounded).map_err(|_| Overflow)
    }

    /// The charge of `quantity` more after `used` in the same period.
    pub fn charge(&self, used: i64, quantity: i64) -> Result<i64, Overflow> {
        if self.is_linear() {
            // Whatever came before it: so no counter is needed, nor locked, for such a price.
            return self.total(quantity);
        }
        let after = used.checked_add(quantity).ok_or(Overflow)?;
        Ok(self.total(after)? - self.total(used)?)
    }
}

fn gcd(mut a: i128, mut b: i128) -> i128 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

fn add(a: (i128, i128), b: (i128, i128)) -> (i128, i128) {
    let common = a.1 / gcd(a.1, b.1) * b.1;
    // Each fraction is below one, or a sum of a few such: at most 100 × 2^120.
    (a.0 % a.1 * (common / a.1) + b.0 * (common / b.1) + a.0 / a.1 * common, common)
}

/// The error that a caller sees where a quantity or its price does not fit.
pub fn too_large(_: Overflow) -> Error {
    Error::invalid("quantity", "the quantity of the period or its price would not fit 63 bits")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn flat(credits: i64, per: i64) -> Price {
        Price::new("credit".into(), vec![Step { up_to: None, credits, per }]).unwrap()
    }

    #[test]
    fn rounds_the_total_up_once() {
        let third = flat(1, 3);
        assert_eq!((1..=7).map(|q| third.total(q).unwrap()).collect::<Vec<_>>(), [1, 1, 1, 2, 2, 2, 3]);
        assert_eq!(third.total(0), Ok(0));
    }

    #[test]
    fn fractions_of_several_steps_make_wholes_together() {
        // 1 unit at 1/2 and 1 unit at 1/2 of another block size: one credit, not two.
        let price = Price::new(
            "credit".into(),
            vec![Step { up_to: Some(1), credits: 1, per: 2 }, Step { up_to: None, credits: 3, per: 6 }],
        )
        .unwrap();
        assert_eq!(price.total(2), Ok(1));
        assert_eq!(price.total(3), Ok(2));
    }

    #[test]
    fn exact_at_the_extremes() {
        assert_eq!(flat(1, 1).total(i64::MAX), Ok(i64::MAX));
        assert_eq!(flat(2, 1).total(i64::MAX), Err(Overflow));
        assert_eq!(flat(i64::MAX, i64::MAX).total(i64::MAX), Ok(i64::MAX));
        assert_eq!(flat(i64::MAX - 1, i64::MAX).total(i64::MAX), Ok(i64::MAX - 1));
        assert_eq!(flat(3, 1 << 62).total(i64::MAX), Ok(6));
        assert_eq!(flat(1, 3).charge(i64::MAX, 1), Err(Overflow));
    }

    #[test]
    fn faults_name_the_step() {
        let step = |up_to, credits, per| Step { up_to, credits, per };
        let fault = |steps| Price::new("credit".into(), steps).unwrap_err().0;
        assert_eq!(fault(vec![]), 0);
        assert_eq!(fault(vec![step(Some(5), 1, 1), step(Some(5), 1, 1), step(None, 1, 1)]), 1);
        assert_eq!(fault(vec![step(None, 1, 1), step(None, 1, 1)]), 0);
        assert_eq!(fault(vec![step(Some(5), 1, 1)]), 0);
        assert_eq!(fault(vec![step(None, -1, 1)]), 0);
        assert_eq!(fault(vec![step(None, 1, 0)]), 0);
        assert_eq!(fault(vec![step(Some(1), 1, (1 << 62) - 1), step(None, 1, (1 << 62) - 3)]), 1);
    }

    /// An obvious model: walks unit by unit over a common denominator.
    fn unit_by_unit(price: &Price, quantity: i64) -> i64 {
        let common: i64 = price.steps.iter().map(|s| s.per).product();
        let mut numerator = 0;
        for unit in 1..=quantity {
            let step = price.steps.iter().find(|s| s.up_to.is_none_or(|u| unit <= u)).unwrap();
            numerator += step.credits * (common / step.per);
        }
        numerator / common + i64::from(numerator % common != 0)
    }

    fn price() -> impl Strategy<Value = Price> {
        proptest::collection::vec((1..200i64, 0..50i64, 1..12i64), 1..5).prop_map(|parts| {
            let mut up_to = 0;
            let last = parts.len() - 1;
            let steps = parts
                .into_iter()
                .enumerate()
                .map(|(i, (width, credits, per))| {
                    up_to += width;
                    Step { up_to: (i < last).then_some(up_to), credits, per }
                })
                .collect();
            Price::new("credit".into(), steps).unwrap()
        })
    }

    proptest! {
        #[test]
        fn equals_the_obvious_model(price in price(), quantity in 0..1000i64) {
            prop_assert_eq!(price.total(quantity).unwrap(), unit_by_unit(&price, quantity));
        }

        #[test]
        fn any_split_costs_the_same(price in price(), parts in proptest::collection::vec(1..500i64, 0..20)) {
            let mut used = 0;
            let mut charged = 0;
            for part in parts {
                let charge = price.charge(used, part).unwrap();
                prop_assert!(charge >= 0);
                charged += charge;
                used += part;
            }
            prop_assert_eq!(charged, price.total(used).unwrap());
        }

        #[test]
        fn any_split_of_huge_quantities_costs_the_same(
            credits in 0..1000i64, per in 1..i64::MAX, cuts in proptest::collection::vec(0..i64::MAX, 0..20),
        ) {
            let price = flat(credits, per);
            let mut cuts = cuts;
            cuts.sort_unstable();
            let mut charged = 0;
            let mut used = 0;
            for cut in cuts {
                if price.total(cut).is_ok() {
                    charged += price.charge(used, cut - used).unwrap();
                    used = cut;
                }
            }
            prop_assert_eq!(charged, price.total(used).unwrap());
        }
    }
}
