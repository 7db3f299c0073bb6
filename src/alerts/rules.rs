//! The rules of alerts: which thresholds a figure has crossed, and which alerts are to be raised
//! and resolved then.

use crate::base::error::{Error, Result};

/// A threshold that is crossed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Alert {
    pub kind: &'static str,
    pub subject: String,
    /// The percentage of the limit that is used; 0 for an alert that is not about a share.
    pub share: i64,
    pub value: i64,
    pub threshold: i64,
}

impl Alert {
    /// An alert that is not about a share of a limit.
    pub fn new(kind: &'static str, subject: &str, value: i64, threshold: i64) -> Self {
        Self { kind, subject: subject.to_owned(), share: 0, value, threshold }
    }
}

/// The name of an alert that is raised and not resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct RaisedAlert {
    pub kind: String,
    pub subject: String,
    pub share: i64,
}

impl RaisedAlert {
    /// Whether this is the raised form of an alert.
    pub fn is(&self, alert: &Alert) -> bool {
        (self.kind.as_str(), self.subject.as_str(), self.share) == (alert.kind, alert.subject.as_str(), alert.share)
    }
}

/// The alerts that a look decides: those of some kinds, about one subject or about any.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub struct Scope<'a> {
    pub kinds: &'a [&'a str],
    pub subject: Option<&'a str>,
}

impl Scope<'_> {
    fn covers(&self, alert: &RaisedAlert) -> bool {
        self.kinds.contains(&alert.kind.as_str()) && self.subject.is_none_or(|subject| subject == alert.subject)
    }
}

/// The raised alerts of the scope that no longer hold.
pub fn to_resolve(raised: &[RaisedAlert], scope: Scope<'_>, holding: &[Alert]) -> Vec<RaisedAlert> {
    let holds = |known: &RaisedAlert| holding.iter().any(|alert| known.is(alert));
    raised.iter().filter(|known| scope.covers(known) && !holds(known)).cloned().collect()
}

/// The alerts that hold and are not raised yet.
pub fn to_raise<'a>(raised: &[RaisedAlert], holding: &'a [Alert]) -> Vec<&'a Alert> {
    holding.iter().filter(|alert| !raised.iter().any(|known| known.is(alert))).collect()
}

/// The quantity at which a share (in percent) of a limit is used.
fn at_share(limit: i64, share: i64) -> i64 {
    let part = (i128::from(limit) * i128::from(share) + 99) / 100;
    i64::try_from(part).unwrap_or(i64::MAX)
}

/// The alerts of the shares of a limit that are used.
pub fn crossed(kind: &'static str, subject: &str, used: i64, limit: i64, shares: &[i64]) -> Vec<Alert> {
    let of = |share: &i64| (*share, at_share(limit, *share));
    let crossed = shares.iter().map(of).filter(|(_, threshold)| limit > 0 && used >= *threshold);
    crossed
        .map(|(share, threshold)| Alert { kind, subject: subject.to_owned(), share, value: used, threshold })
        .collect()
}

/// A change of a wallet's balance, as alerts look at it.
#[derive(Debug, Clone, Copy)]
pub struct BalanceChange<'a> {
    /// The unit of the wallet.
    pub unit: &'a str,
    /// The balance after the change.
    pub balance: i64,
    /// The balance after the wallet's last grant; alerts are raised at shares of it.
    pub base: i64,
    /// The balance below which the next alert is due, as the wallet's row has it.
    pub threshold: i64,
}

/// The thresholds that are set for a wallet, each 0 for none.
#[derive(Debug, Clone, Copy, Default)]
pub struct Thresholds {
    /// The balance below which the wallet counts as low.
    pub low: i64,
    /// The balance below which a pack is bought.
    pub recharge: i64,
}

/// The alerts of a balance.
#[derive(Debug)]
pub struct BalanceAlerts {
    /// The alerts that hold.
    pub holding: Vec<Alert>,
    /// The balance below which to look again; 0 for never.
    pub look_below: i64,
}

/// The alerts of a balance at shares of its base and at its thresholds.
pub fn crossed_by_balance(change: BalanceChange<'_>, thresholds: Thresholds, shares: &[i64]) -> BalanceAlerts {
    let BalanceChange { unit, balance, base, .. } = change;
    let Thresholds { low, recharge } = thresholds;
    let mut holding = crossed("balance", unit, base - balance, base, shares);
    for alert in &mut holding {
        (alert.value, alert.threshold) = (balance, base - alert.threshold);
    }
    let of_shares = shares.iter().filter(|_| base > 0).map(|share| base - at_share(base, *share) + 1);
    let wanted = [low, recharge].into_iter().filter(|below| *below > 0);
    let look_below = of_shares.chain(wanted).filter(|below| *below <= balance).max().unwrap_or(0);
    if balance < low {
        holding.push(Alert::new("low_balance", unit, balance, low));
    }
    BalanceAlerts { holding, look_below }
}

/// Checks the percentages at which alerts are raised.
pub fn check_shares(shares: &[i32]) -> Result<()> {
    if shares.len() > 20 || shares.iter().any(|share| !(1..=100).contains(share)) {
        return Err(Error::invalid("shares", "must be at most 20 percentages from 1 to 100"));
    }
    Ok(())
}

/// Checks how many days before a grant expires an alert is raised.
pub fn check_expiring_days(days: i32) -> Result<()> {
    if (0..=366).contains(&days) { Ok(()) } else { Err(Error::invalid("expiring_days", "must be 0 to 366")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_crossed_when_it_is_reached() {
        let shares = |used| crossed("cap", "c", used, 10, &[50, 75, 100]).iter().map(|a| a.share).collect::<Vec<_>>();
        assert!(shares(4).is_empty());
        assert_eq!(shares(5), [50]);
        assert_eq!(shares(7), [50]);
        assert_eq!(shares(8), [50, 75]);
        assert_eq!(shares(10), [50, 75, 100]);
        assert_eq!(crossed("cap", "c", 0, 0, &[50]), []);
    }

    #[test]
    fn the_balance_tells_when_to_look_again() {
        let at = |balance| {
            let change = BalanceChange { unit: "credit", balance, base: 100, threshold: 0 };
            let found = crossed_by_balance(change, Thresholds { low: 20, recharge: 0 }, &[50, 100]);
            (found.holding.iter().map(|a| (a.kind, a.share)).collect::<Vec<_>>(), found.look_below)
        };
        assert_eq!(at(100), (vec![], 51));
        assert_eq!(at(51), (vec![], 51));
        assert_eq!(at(50), (vec![("balance", 50)], 20));
        assert_eq!(at(19), (vec![("balance", 50), ("low_balance", 0)], 1));
        assert_eq!(at(0), (vec![("balance", 50), ("balance", 100), ("low_balance", 0)], 0));
    }

    #[test]
    fn what_is_out_of_scope_stays_raised() {
        let raised =
            |kind: &str, subject: &str, share| RaisedAlert { kind: kind.into(), subject: subject.into(), share };
        let known =
            [raised("cap", "a", 50), raised("cap", "a", 75), raised("cap", "b", 50), raised("balance", "a", 50)];
        let holding = crossed("cap", "a", 10, 10, &[50, 100]);
        let gone = |subject| to_resolve(&known, Scope { kinds: &["cap"], subject }, &holding);
        assert_eq!(gone(Some("a")), [raised("cap", "a", 75)]);
        assert_eq!(gone(None), [raised("cap", "a", 75), raised("cap", "b", 50)]);
        assert_eq!(to_raise(&known, &holding), [&holding[1]]);
    }

    #[test]
    fn settings_are_percentages_and_days() {
        assert!(check_shares(&[1, 100]).is_ok() && check_shares(&[50; 20]).is_ok());
        assert!(check_shares(&[0]).is_err() && check_shares(&[101]).is_err() && check_shares(&[50; 21]).is_err());
        assert!(check_expiring_days(0).is_ok() && check_expiring_days(366).is_ok());
        assert!(check_expiring_days(-1).is_err() && check_expiring_days(367).is_err());
    }
}
