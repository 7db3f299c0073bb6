//! Subscriptions that a provider collects for: periods begin when they are paid, whichever report
//! comes first.

use crate::base::error::{Error, Result};
use crate::base::{time, units};
use crate::catalog::cache;
use crate::catalog::sections::packs::Pack;
use crate::catalog::sections::plans::Plan;
use crate::ledger::store as ledger;
use crate::payments::quote::quote;
use crate::payments::report::Handled;
use crate::payments::request;
use crate::payments::state::Money;
use crate::payments::store::{self, Payment};
use crate::pg::clock;
use crate::pg::spi::{Db, Timestamptz};
use crate::providers::event::{InvoiceFact, SubscriptionFact, SubscriptionState};
use crate::purchases::money;
use crate::settlement::periods;
use crate::subscriptions::subscribe::{self, PaidPeriod};
use crate::{args, outbox, statements};
use serde_json::json;
use std::rc::Rc;
use uuid::Uuid;

statements! {
    KNOWN(text, text) =
        "select org_id, plan from billing.provider_subscriptions where provider = $1 and subscription = $2 limit 2";
    // A report that is older than the known state changes nothing, except that an end stays an end;
    // a payment overrules a report that money is missing.
    REPORT(uuid, text, text, text, text, boolean, int8) =
        "insert into billing.provider_subscriptions as s
                (org_id, provider, subscription, state, plan, cancel_at_period_end, last_report_at)
         values ($1, $2, $3, $4, $5, $6, $7)
         on conflict (org_id, provider, subscription) do update
            set state = case when $4 in ('incomplete', 'past_due') and s.last_paid_report_at > $7 then s.state else $4 end,
                plan = coalesce($5, s.plan), cancel_at_period_end = $6, last_report_at = greatest(s.last_report_at, $7)
          where (s.last_report_at <= $7 or $4 = 'canceled') and s.state <> 'canceled'
         returning state";
    COLLECT(uuid, text, text, text, timestamptz, int8) =
        "insert into billing.provider_subscriptions as s (org_id, provider, subscription, state, plan, paid_until, last_paid_report_at)
         values ($1, $2, $3, 'active', $4, $5, $6)
         on conflict (org_id, provider, subscription) do update
            set plan = $4, paid_until = greatest(s.paid_until, $5), last_paid_report_at = greatest(s.last_paid_report_at, $6),
                state = case when s.state in ('incomplete', 'past_due') then 'active' else s.state end";
    STATE(uuid, text, text) =
        "select state from billing.provider_subscriptions where org_id = $1 and provider = $2 and subscription = $3";
    // Another subscription pays for the plan that runs.
    OTHER_PAID_SUBSCRIPTION(uuid, text, text, timestamptz) =
        "select from billing.subscriptions s
           join billing.provider_subscriptions c on c.org_id = s.org_id and c.provider = s.provider
                                                and c.subscription = s.provider_subscription
          where s.org_id = $1 and (s.ends_at is null or s.ends_at > $4) and (c.provider, c.subscription) <> ($2, $3)
            and c.state <> 'canceled' and c.paid_until > $4";
    LATE(uuid, text, text, int8) =
        "update billing.provider_subscriptions set state = 'past_due'
          where org_id = $1 and provider = $2 and subscription = $3 and greatest(last_report_at, last_paid_report_at) <= $4
            and state = 'active'";
}

/// The item that a provider's price stands for.
enum Item {
    Plan(Rc<Plan>),
    Pack(Rc<Pack>),
}

/// Whether some of the prices are those of packs.
fn names_pack(db: &Db, provider: &str, prices: &[String]) -> Result<bool> {
    let packs = cache::all_packs(db)?;
    let ids = |pack: &Pack| pack.provider_ids.get(provider).is_some_and(|ids| ids.iter().any(|id| prices.contains(id)));
    Ok(packs.iter().any(|(pack, _)| ids(pack)))
}

/// The item of the prices: the first one is that of the period and counts before the others, and
/// plans count before packs.
fn find_item(db: &Db, provider: &str, prices: &[String]) -> Result<Option<Item>> {
    let (plans, packs) = (cache::all_plans(db)?, cache::all_packs(db)?);
    let names = |ids: Option<&Vec<String>>, price: &String| ids.is_some_and(|ids| ids.contains(price));
    let plan = |price| plans.iter().find(|(plan, _)| names(plan.provider_ids.get(provider), price));
    let pack = |price| packs.iter().find(|(pack, _)| names(pack.provider_ids.get(provider), price));
    let plan = prices.iter().find_map(plan).map(|(plan, _)| Item::Plan(Rc::clone(plan)));
    Ok(plan.or_else(|| prices.iter().find_map(pack).map(|(pack, _)| Item::Pack(Rc::clone(pack)))))
}

fn find_known(db: &Db, provider: &str, id: &str) -> Option<(Uuid, Option<String>)> {
    let rows = db.write(&KNOWN, args![provider, id]);
    if rows.count() == 1 { rows.first().map(|row| (row.get(0), row.opt(1))) } else { None }
}

/// Handles the report that an invoice was paid, or could not be.
pub fn handle_invoice(db: &Db, provider: &str, fact: &InvoiceFact, created: i64) -> Result<Handled> {
    let before = fact.subscription.as_deref().and_then(|id| find_known(db, provider, id));
    let of_customer = || fact.customer.as_deref().and_then(|id| store::org_of_customer(db, provider, id));
    let Some(org_id) = fact.org_id.or(before.as_ref().map(|(org_id, _)| *org_id)).or_else(of_customer) else {
        return Ok(Handled::Review("unknown_org", None));
    };
    if !fact.paid {
        if let Some(id) = &fact.subscription {
            ledger::lock_org(db, org_id, &[units::CREDIT.to_owned()], clock::now())?;
            if db.write(&LATE, args![org_id, provider, id, created]).count() > 0 {
                outbox::emit(db, org_id, "subscription.past_due", &json!({"subscription": id, "invoice": fact.id}));
            }
        }
        return Ok(Handled::Processed(Some(org_id)));
    }
    let mut item = find_item(db, provider, &fact.prices)?;
    if item.is_none()
        && let Some((_, Some(plan))) = &before
        && fact.prices.is_empty()
    {
        item = cache::plan(db, plan).ok().map(Item::Plan);
    }
    let Some(item) = item else { return Ok(Handled::Review("unknown_price", Some(org_id))) };
    ledger::lock_org(db, org_id, &[units::CREDIT.to_owned()], clock::now())?;
    let refs: Vec<String> = fact.refs.iter().cloned().chain(std::iter::once(fact.id.clone())).collect();
    if let Some((owner, payment_id)) = store::by_refs(db, provider, &refs) {
        // A purchase that is known here is paid by its own report.
        let payment = money::change(db, owner, payment_id, |_| Ok(()))?;
        store::add_refs(db, &payment, &refs);
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
            store::insert(db, &new, None, "{}", clock::now());
            money::change(db, org_id, new.payment_id, |payment| {
                payment.money.pay();
                Ok(())
            })?
        }
        // Nothing tells which part of the amount was paid for which item.
        Item::Plan(_) if names_pack(db, provider, &fact.prices)? => {
            return Ok(Handled::Review("several_items", Some(org_id)));
        }
        Item::Plan(plan) => match collect_period(db, org_id, provider, fact, created, &plan)? {
            Ok(payment) => payment,
            Err(reason) => return Ok(Handled::Review(reason, Some(org_id))),
        },
    };
    store::add_refs(db, &payment, &refs);
    if let Some(customer) = &fact.customer {
        store::link(db, org_id, provider, customer);
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
    let state = db.write(&STATE, args![org_id, provider, id.as_str()]).first().map(|row| row.get::<String>(0));
    if state.as_deref() == Some("canceled") {
        return Ok(Err("subscription_canceled"));
    }
    let now = clock::now();
    if until <= now {
        return Ok(Err("period_over"));
    }
    let (is_money, billing_provider) = (fact.amount > 0, (provider.to_owned(), id.clone()));
    let is_beside =
        db.write(&OTHER_PAID_SUBSCRIPTION, args![org_id, provider, id.as_str(), Timestamptz(now)]).count() > 0;
    let grants =
        subscribe::collect(db, org_id, plan, PaidPeriod { start, until, is_money }, &billing_provider, now, || {
            db.write(&COLLECT, args![org_id, provider, id.as_str(), &plan.name, Timestamptz(until), created]);
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
    store::insert(db, &payment, None, "{}", now);
    payment.grants = grants.into_iter().map(|grant_id| (grant_id, 0)).collect();
    store::save(db, &payment, now);
    Ok(Ok(payment))
}

/// Handles the report that a subscription was made, changed or ended.
pub fn handle_subscription(db: &Db, provider: &str, fact: &SubscriptionFact, created: i64) -> Result<Handled> {
    let before = find_known(db, provider, &fact.id);
    let of_customer = || fact.customer.as_deref().and_then(|id| store::org_of_customer(db, provider, id));
    let Some(org_id) = fact.org_id.or(before.as_ref().map(|(org_id, _)| *org_id)).or_else(of_customer) else {
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
        store::link(db, org_id, provider, customer);
    }
    // Periods that were paid begin, and others do not, before the new state counts.
    periods::catch_up(db, org_id, now)?;
    let name = plan.as_ref().map(|plan| plan.name.clone());
    let rows =
        db.write(&REPORT, args![org_id, provider, fact.id.as_str(), state, name, fact.cancel_at_period_end, created]);
    // A newer state is known; or nothing was paid for it, or another subscription pays for what
    // runs now.
    let Some(state) = rows.first().map(|row| row.get::<String>(0)) else { return Ok(Handled::Processed(Some(org_id))) };
    let is_ours = subscribe::is_billing_provider(org_id, &(provider.to_owned(), fact.id.clone()), now);
    if is_ours {
        match fact.state {
            SubscriptionState::Canceled => subscribe::end_now(db, org_id, now)?,
            SubscriptionState::PastDue if state != "past_due" => {}
            SubscriptionState::PastDue => {
                outbox::emit(db, org_id, "subscription.past_due", &json!({"subscription": fact.id}));
            }
            SubscriptionState::Active | SubscriptionState::Incomplete => {
                if let Some(plan) = &plan {
                    subscribe::schedule_plan_change(db, org_id, plan, now);
                }
                subscribe::end_with_period(db, org_id, fact.cancel_at_period_end, now);
            }
        }
    }
    Ok(Handled::Processed(Some(org_id)))
}
