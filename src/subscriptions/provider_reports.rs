//! Reports of providers about the subscriptions that they collect for: invoices that were paid or
//! not, and subscriptions that were made, changed or ended.

use crate::base::error::{Error, Result};
use crate::base::{time, units};
use crate::catalog::cache;
use crate::catalog::sections::plans::Plan;
use crate::ledger::store as ledger;
use crate::outbox;
use crate::payments::quote::quote;
use crate::payments::report::Handled;
use crate::payments::request;
use crate::payments::state::Money;
use crate::payments::store::{self as payments, Payment};
use crate::pg::clock;
use crate::pg::spi::Db;
use crate::providers::event::{InvoiceFact, SubscriptionFact, SubscriptionState};
use crate::purchases::money;
use crate::settlement::periods;
use crate::subscriptions::collected::{self, PaidPeriod};
use crate::subscriptions::rules::{self, Item};
use crate::subscriptions::store::{self, SubscriptionReport};
use serde_json::json;
use uuid::Uuid;

fn find_item(db: &Db, provider: &str, prices: &[String]) -> Result<Option<Item>> {
    Ok(rules::find_item(&cache::all_plans(db)?, &cache::all_packs(db)?, provider, prices))
}

/// Handles the report that an invoice was paid, or could not be.
pub fn handle_invoice(db: &Db, provider: &str, fact: &InvoiceFact, created: i64) -> Result<Handled> {
    let before = fact.subscription.as_deref().and_then(|id| store::find_collected(db, provider, id));
    let of_customer = || fact.customer.as_deref().and_then(|id| payments::org_of_customer(db, provider, id));
    let Some(org_id) = fact.org_id.or(before.as_ref().map(|known| known.org_id)).or_else(of_customer) else {
        return Ok(Handled::Review("unknown_org", None));
    };
    if !fact.paid {
        if let Some(id) = &fact.subscription {
            ledger::lock_org(db, org_id, &[units::CREDIT.to_owned()], clock::now())?;
            if store::set_past_due(db, org_id, provider, id, created) {
                outbox::emit(db, org_id, "subscription.past_due", &json!({"subscription": id, "invoice": fact.id}));
            }
        }
        return Ok(Handled::Processed(Some(org_id)));
    }
    let mut item = find_item(db, provider, &fact.prices)?;
    if item.is_none()
        && let Some(plan) = before.as_ref().and_then(|known| known.plan.as_ref())
        && fact.prices.is_empty()
    {
        item = cache::plan(db, plan).ok().map(Item::Plan);
    }
    let Some(item) = item else { return Ok(Handled::Review("unknown_price", Some(org_id))) };
    ledger::lock_org(db, org_id, &[units::CREDIT.to_owned()], clock::now())?;
    let refs: Vec<String> = fact.refs.iter().cloned().chain(std::iter::once(fact.id.clone())).collect();
    if let Some((owner, payment_id)) = payments::by_refs(db, provider, &refs) {
        // A purchase that is known here is paid by its own report.
        let payment = money::change(db, owner, payment_id, |_| Ok(()))?;
        payments::add_refs(db, &payment, &refs);
        return Ok(Handled::Processed(Some(owner)));
    }
    let payment = match item {
        Item::Pack(pack) => {
            let quote = quote(db, &pack, &fact.currency, None)?;
            // Tax may have been added at the provider.
            if fact.amount < quote.price {
                return Err(Error::mismatch("amount", &quote.price.to_string(), &fact.amount.to_string()));
            }
            // The invoice is for several of the pack, or for something else as well.
            if fact.amount >= quote.price.saturating_mul(2) || fact.prices.len() > 1 {
                return Ok(Handled::Review("several_items", Some(org_id)));
            }
            let mut new = request::of_pack(org_id, &pack, &fact.currency, quote, "subscription", provider);
            new.money.total = fact.amount;
            payments::insert(db, &new, None, "{}", clock::now());
            money::change(db, org_id, new.payment_id, |payment| {
                payment.money.pay();
                Ok(())
            })?
        }
        // Nothing tells which part of the amount was paid for which item.
        Item::Plan(_) if rules::names_pack(&cache::all_packs(db)?, provider, &fact.prices) => {
            return Ok(Handled::Review("several_items", Some(org_id)));
        }
        Item::Plan(plan) => match collect_period(db, org_id, provider, fact, created, &plan)? {
            Ok(payment) => payment,
            Err(reason) => return Ok(Handled::Review(reason, Some(org_id))),
        },
    };
    payments::add_refs(db, &payment, &refs);
    if let Some(customer) = &fact.customer {
        payments::link(db, org_id, provider, customer);
    }
    Ok(Handled::Processed(Some(org_id)))
}

/// Notes a paid period of a plan and the payment for it; the inner error is the reason why it waits
/// for a person.
fn collect_period(
    db: &Db,
    org_id: Uuid,
    provider: &str,
    fact: &InvoiceFact,
    created: i64,
    plan: &Plan,
) -> Result<std::result::Result<Payment, &'static str>> {
    let Some((start, until)) = fact.period.map(|(start, end)| (time::from_unix(start), time::from_unix(end))) else {
        return Ok(Err("no_period"));
    };
    let id = fact.subscription.clone().unwrap_or_else(|| fact.id.clone());
    if store::state(db, org_id, provider, &id).as_deref() == Some("canceled") {
        return Ok(Err("subscription_canceled"));
    }
    let now = clock::now();
    if until <= now {
        return Ok(Err("period_over"));
    }
    let (is_money, billing_provider) = (fact.amount > 0, (provider.to_owned(), id.clone()));
    let is_beside = store::is_paid_otherwise(db, org_id, &billing_provider, now);
    let grants =
        collected::collect(db, org_id, plan, PaidPeriod { start, until, is_money }, &billing_provider, now, || {
            store::note_paid(db, org_id, &billing_provider, &plan.name, until, created);
        })?;
    // Money came and nothing was granted for it, as with a second subscription to the same plan.
    if is_money && is_beside && grants.is_empty() && plan.credits.is_some() {
        return Ok(Err("nothing_to_begin"));
    }
    let mut payment = Payment {
        org_id,
        payment_id: request::new_id(),
        money: Money { total: fact.amount, paid: true, ..Money::default() },
        paid_at: Some(now),
        source: "subscription".to_owned(),
        provider: provider.to_owned(),
        plan: Some(plan.name.clone()),
        unit: units::CREDIT.to_owned(),
        currency: fact.currency.clone(),
        subscription: Some(id),
        period: Some((start, until)),
        price: fact.amount,
        customer: fact.customer.clone(),
        ..Payment::default()
    };
    payments::insert(db, &payment, None, "{}", now);
    payment.grants = grants.into_iter().map(|grant_id| (grant_id, 0)).collect();
    payments::save(db, &payment, now);
    Ok(Ok(payment))
}

/// Handles the report that a subscription was made, changed or ended.
pub fn handle_subscription(db: &Db, provider: &str, fact: &SubscriptionFact, created: i64) -> Result<Handled> {
    let before = store::find_collected(db, provider, &fact.id);
    let of_customer = || fact.customer.as_deref().and_then(|id| payments::org_of_customer(db, provider, id));
    let Some(org_id) = fact.org_id.or(before.as_ref().map(|known| known.org_id)).or_else(of_customer) else {
        return Ok(Handled::Review("unknown_org", None));
    };
    let goes_on = matches!(fact.state, SubscriptionState::Active | SubscriptionState::Incomplete);
    let plan = match find_item(db, provider, &fact.prices)? {
        Some(Item::Plan(plan)) => Some(plan),
        Some(Item::Pack(_)) => None,
        // A subscription that ends does so whatever its price was.
        None if fact.prices.is_empty() || !goes_on => None,
        None => return Ok(Handled::Review("unknown_price", Some(org_id))),
    };
    let state = match fact.state {
        SubscriptionState::Incomplete => "incomplete",
        SubscriptionState::Active => "active",
        SubscriptionState::PastDue => "past_due",
        SubscriptionState::Canceled => "canceled",
    };
    let now = clock::now();
    ledger::lock_org(db, org_id, &[units::CREDIT.to_owned()], now)?;
    if let Some(customer) = &fact.customer {
        payments::link(db, org_id, provider, customer);
    }
    // Periods that were paid begin, and others do not, before the new state counts.
    periods::catch_up(db, org_id, now)?;
    let name = plan.as_ref().map(|plan| plan.name.clone());
    let report = SubscriptionReport {
        org_id,
        provider,
        id: &fact.id,
        state,
        plan: name,
        cancel_at_period_end: fact.cancel_at_period_end,
        created,
    };
    let known = store::report(db, report);
    // A newer state is known; or nothing was paid for it, or another subscription pays for what
    // runs now.
    let Some(state) = known else { return Ok(Handled::Processed(Some(org_id))) };
    let is_ours = collected::is_billing_provider(org_id, &(provider.to_owned(), fact.id.clone()), now);
    if is_ours {
        match fact.state {
            SubscriptionState::Canceled => collected::end_now(db, org_id, now)?,
            SubscriptionState::PastDue if state != "past_due" => {}
            SubscriptionState::PastDue => {
                outbox::emit(db, org_id, "subscription.past_due", &json!({"subscription": fact.id}));
            }
            SubscriptionState::Active | SubscriptionState::Incomplete => {
                if let Some(plan) = &plan {
                    collected::schedule_plan_change(db, org_id, plan, now);
                }
                collected::end_with_period(db, org_id, fact.cancel_at_period_end, now);
            }
        }
    }
    Ok(Handled::Processed(Some(org_id)))
}
