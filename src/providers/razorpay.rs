//! Events of Razorpay. Its metadata is called notes.

use crate::providers::Provider;
use crate::providers::event::{
    DisputeFact, DisputeState, Event, Fact, InvoiceFact, Object, Outcome, PaymentFact, RefundFact, SubscriptionFact,
    SubscriptionState, Unreadable, distinct, document, needed, object,
};
use crate::providers::signature::{self, Fault};
use sha2::{Digest, Sha256};

/// Razorpay.
pub(super) struct Razorpay;

impl Provider for Razorpay {
    fn name(&self) -> &'static str {
        "razorpay"
    }

    fn verify(&self, payload: &[u8], signature: &str, secrets: &[Vec<u8>], _now: i64) -> Result<(), Fault> {
        signature::razorpay(payload, signature, secrets)
    }

    fn parse(&self, payload: &str) -> Result<Event, Unreadable> {
        parse(payload)
    }

    fn has_event_id_in_header(&self) -> bool {
        true
    }

    /// In its checkout, notes and customer are what the page in the payer's browser says: who pays with a card of his own could
    /// name another's customer.
    fn vouches_for_customer(&self) -> bool {
        false
    }
}

/// Reads the event that a payload tells of. The payload has no id: whoever knows the one in the header replaces ours.
fn parse(payload: &str) -> Result<Event, Unreadable> {
    let document = document(payload)?;
    let event = object(&document)?;
    let kind = needed(event.text("event")?, "event")?;
    // Payloads of 2018 and before have it one level further down.
    let created = match event.second("created_at")? {
        Some(created) => created,
        None => needed(event.object("payload")?.second("created_at")?, "created_at")?,
    };
    let fact = fact(kind, event)?;
    // A delivery that is repeated is the same to the byte.
    let id = format!("sha256:{:x}", Sha256::digest(payload));
    Ok(Event { id, kind: kind.to_owned(), created, fact })
}

fn fact(kind: &str, event: Object<'_>) -> Result<Option<Fact>, Unreadable> {
    let entity = |name, path| {
        let entity = event.object("payload")?.object(name)?.object("entity")?;
        if entity.is_some() { Ok(entity) } else { Err(Unreadable::Missing(path)) }
    };
    let payment = || entity("payment", "payload.payment.entity");
    let subscription = || entity("subscription", "payload.subscription.entity");
    let fact = match kind {
        "payment.captured" => pay(payment()?, Outcome::Paid)?,
        "payment.authorized" => pay(payment()?, Outcome::Pending)?,
        "payment.failed" => pay(payment()?, Outcome::Failed)?,
        "refund.processed" => refund(entity("refund", "payload.refund.entity")?, payment()?)?,
        "subscription.charged" => charge(subscription()?, payment()?)?,
        "subscription.activated" => change(subscription()?, SubscriptionState::Active)?,
        "subscription.pending" | "subscription.halted" | "subscription.paused" => {
            change(subscription()?, SubscriptionState::PastDue)?
        }
        "subscription.cancelled" | "subscription.completed" | "subscription.expired" => {
            change(subscription()?, SubscriptionState::Canceled)?
        }
        "payment.dispute.created" => dispute(entity("dispute", "payload.dispute.entity")?, DisputeState::Open)?,
        "payment.dispute.won" => dispute(entity("dispute", "payload.dispute.entity")?, DisputeState::Won)?,
        "payment.dispute.lost" => dispute(entity("dispute", "payload.dispute.entity")?, DisputeState::Lost)?,
        _ => return Ok(None),
    };
    Ok(Some(fact))
}

fn pay(payment: Object<'_>, outcome: Outcome) -> Result<Fact, Unreadable> {
    let notes = payment.labels("notes")?;
    let failure = match outcome {
        Outcome::Failed => payment
            .text("error_description")?
            .or(payment.text("error_reason")?)
            .or(payment.text("error_code")?)
            .map(str::to_owned),
        Outcome::Paid | Outcome::Pending => None,
    };
    let fact = PaymentFact {
        outcome,
        refs: refs(payment)?,
        payment_id: notes.uuid("payment_id"),
        org_id: notes.uuid("org_id"),
        customer: payment.id("customer_id")?.map(str::to_owned),
        // `card_id` names the card of this payment only; a token can be charged again.
        payment_method: payment.id("token_id")?.map(str::to_owned),
        amount: payment.amount("amount")?,
        currency: payment.currency("currency")?,
        fingerprint: None,
        failure,
        // Each charge of a subscription has an invoice.
        of_subscription: payment.id("invoice_id")?.is_some(),
    };
    fact.checked()
}

fn refs(payment: Object<'_>) -> Result<Vec<String>, Unreadable> {
    let id = needed(payment.text("id")?, "id")?;
    Ok(distinct([Some(id), payment.id("order_id")?, payment.id("invoice_id")?]))
}

fn refund(refund: Object<'_>, payment: Object<'_>) -> Result<Fact, Unreadable> {
    let id = needed(refund.id("payment_id")?, "payment_id")?;
    let refs = refs(payment)?;
    if refs.first().is_none_or(|known| known != id) {
        return Err(Unreadable::Field("payment_id"));
    }
    let amount = needed(payment.amount("amount")?, "amount")?;
    let refunded = needed(payment.amount("amount_refunded")?, "amount_refunded")?;
    if refunded > amount {
        return Err(Unreadable::Field("amount_refunded"));
    }
    // A refund has notes of its own.
    let notes = [payment.labels("notes")?, refund.labels("notes")?];
    let label = |name| notes.iter().find_map(|notes| notes.uuid(name));
    Ok(Fact::Refund(RefundFact {
        refs,
        refunded,
        amount,
        currency: needed(payment.currency("currency")?, "currency")?,
        payment_id: label("payment_id"),
        org_id: label("org_id"),
    }))
}

fn dispute(dispute: Object<'_>, state: DisputeState) -> Result<Fact, Unreadable> {
    Ok(Fact::Dispute(DisputeFact {
        id: needed(dispute.text("id")?, "id")?.to_owned(),
        refs: vec![needed(dispute.id("payment_id")?, "payment_id")?.to_owned()],
        state,
        amount: needed(dispute.amount("amount")?, "amount")?,
        currency: needed(dispute.currency("currency")?, "currency")?,
        payment_id: None,
        org_id: None,
    }))
}

/// The invoice of a charge is not in the event: it is known by its payment.
fn charge(subscription: Object<'_>, payment: Object<'_>) -> Result<Fact, Unreadable> {
    let notes = [subscription.labels("notes")?, payment.labels("notes")?];
    let customer = match subscription.id("customer_id")? {
        Some(customer) => Some(customer),
        None => payment.id("customer_id")?,
    };
    Ok(Fact::Invoice(InvoiceFact {
        id: needed(payment.text("id")?, "id")?.to_owned(),
        paid: true,
        refs: refs(payment)?,
        subscription: Some(needed(subscription.text("id")?, "id")?.to_owned()),
        org_id: notes.iter().find_map(|notes| notes.uuid("org_id")),
        customer: customer.map(str::to_owned),
        prices: distinct([subscription.id("plan_id")?]),
        period: subscription.period("current_start", "current_end")?,
        amount: needed(payment.amount("amount")?, "amount")?,
        currency: needed(payment.currency("currency")?, "currency")?,
        reason: None,
    }))
}

fn change(subscription: Object<'_>, state: SubscriptionState) -> Result<Fact, Unreadable> {
    Ok(Fact::Subscription(SubscriptionFact {
        id: needed(subscription.text("id")?, "id")?.to_owned(),
        state,
        org_id: subscription.labels("notes")?.uuid("org_id"),
        customer: subscription.id("customer_id")?.map(str::to_owned),
        prices: distinct([subscription.id("plan_id")?]),
        period: subscription.period("current_start", "current_end")?,
        // Nothing tells before it is cancelled.
        cancel_at_period_end: false,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use uuid::Uuid;

    const ORG: &str = "0198c0de-0000-7000-8000-000000000001";
    const PAYMENT: &str = "0198c0de-0000-7000-8000-000000000002";

    fn uuid(text: &str) -> Option<Uuid> {
        Uuid::try_parse(text).ok()
    }

    fn a_payment() -> Value {
        json!({
            "id": "pay_SFWeTbuZZ4xH9T", "entity": "payment", "amount": 100_000, "currency": "INR", "status": "captured",
            "order_id": "order_SFWeGna6kuFKgc", "invoice_id": null, "international": false, "method": "upi",
            "amount_refunded": 0, "refund_status": null, "captured": true, "description": "5000 credits",
            "card_id": null, "bank": null, "wallet": null, "vpa": "success@razorpay", "email": "jane@example.com",
            "contact": "+919999999999", "customer_id": "cust_HKsR5se84c5LTO", "token_id": "token_4lsdksD31GaZ09",
            "notes": { "payment_id": PAYMENT, "org_id": ORG }, "fee": 2360, "tax": 360, "error_code": null,
            "error_description": null, "error_source": null, "error_step": null, "error_reason": null,
            "acquirer_data": { "rrn": "118168085873" }, "created_at": 1_770_962_916
        })
    }

    fn a_refund() -> Value {
        json!({
            "id": "rfnd_Heax5rxucwf2aS", "entity": "refund", "amount": 4000, "currency": "INR",
            "payment_id": "pay_SFWeTbuZZ4xH9T", "notes": [], "receipt": null, "acquirer_data": { "arn": null },
            "created_at": 1_627_528_610, "batch_id": null, "status": "processed", "speed_processed": "normal"
        })
    }

    fn a_subscription() -> Value {
        json!({
            "id": "sub_EZZsbKwt5xRYH6", "entity": "subscription", "plan_id": "plan_EXwyxDYDCj3X4v",
            "customer_id": "cust_EZZw80dUQgID8C", "status": "active", "current_start": 1_585_822_073,
            "current_end": 1_588_357_800, "ended_at": null, "quantity": 1, "notes": { "org_id": ORG },
            "charge_at": 1_588_357_800, "start_at": 1_585_822_073, "end_at": 1_646_159_400, "auth_attempts": 0,
            "total_count": 24, "paid_count": 1, "customer_notify": true, "created_at": 1_585_821_917,
            "has_scheduled_changes": false, "change_scheduled_at": null, "remaining_count": 23
        })
    }

    fn event(kind: &str, entities: &[(&str, Value)]) -> Value {
        let mut event = json!({
            "entity": "event", "account_id": "acc_S7Dlaw8LNbaM6o", "event": kind, "contains": [], "payload": {},
            "created_at": 1_770_962_917
        });
        for (name, entity) in entities {
            event["payload"][name] = json!({ "entity": entity });
        }
        event
    }

    fn read(kind: &str, entities: &[(&str, Value)]) -> Result<Option<Fact>, Unreadable> {
        parse(&event(kind, entities).to_string()).map(|event| event.fact)
    }

    fn pay(kind: &str, payment: &Value) -> PaymentFact {
        match read(kind, &[("payment", payment.clone())]) {
            Ok(Some(Fact::Payment(fact))) => fact,
            other => panic!("{other:?}"),
        }
    }

    fn with(object: &Value, name: &str, value: Value) -> Value {
        let mut object = object.clone();
        object[name] = value;
        object
    }

    #[test]
    fn a_payment_that_was_captured() {
        let expected = PaymentFact {
            outcome: Outcome::Paid,
            refs: vec!["pay_SFWeTbuZZ4xH9T".into(), "order_SFWeGna6kuFKgc".into()],
            payment_id: uuid(PAYMENT),
            org_id: uuid(ORG),
            customer: Some("cust_HKsR5se84c5LTO".into()),
            payment_method: Some("token_4lsdksD31GaZ09".into()),
            amount: Some(100_000),
            currency: Some("INR".into()),
            fingerprint: None,
            failure: None,
            of_subscription: false,
        };
        assert_eq!(pay("payment.captured", &a_payment()), expected);
        assert_eq!(pay("payment.authorized", &a_payment()).outcome, Outcome::Pending);
    }

    #[test]
    fn an_event_is_named_by_its_bytes() {
        let payload = event("payment.captured", &[("payment", a_payment())]).to_string();
        let event = parse(&payload).unwrap();
        assert_eq!((event.kind.as_str(), event.created), ("payment.captured", 1_770_962_917));
        assert_eq!(event.id, parse(&payload).unwrap().id);
        assert_ne!(event.id, parse(&format!("{payload} ")).unwrap().id);
        let small = r#"{"event":"x","created_at":1}"#;
        // By sha256sum.
        assert_eq!(parse(small).unwrap().id, "sha256:0b2ae85a960825a85c6cc10a8df43578ecd38136eacce272f3a028a5faaf513a");
    }

    #[test]
    fn no_notes_are_an_array() {
        for notes in [json!([]), json!({}), Value::Null] {
            let fact = pay("payment.captured", &with(&a_payment(), "notes", notes));
            assert_eq!((fact.payment_id, fact.org_id), (None, None));
        }
        // Notes may be numbers, and are not ours then.
        let numbers = with(&a_payment(), "notes", json!({ "payment_id": 7, "org_id": "acme" }));
        assert_eq!(pay("payment.captured", &numbers).payment_id, None);
        let text = with(&a_payment(), "notes", json!("org"));
        assert_eq!(read("payment.captured", &[("payment", text)]), Err(Unreadable::Field("notes")));
    }

    #[test]
    fn a_payment_that_failed_says_why() {
        let mut payment = a_payment();
        payment["error_code"] = json!("BAD_REQUEST_ERROR");
        payment["error_reason"] = json!("insufficient_funds");
        assert_eq!(pay("payment.failed", &payment).failure.as_deref(), Some("insufficient_funds"));
        payment["error_description"] = json!("Payment failed due to insufficient funds.");
        let fact = pay("payment.failed", &payment);
        assert_eq!(fact.outcome, Outcome::Failed);
        assert_eq!(fact.failure.as_deref(), Some("Payment failed due to insufficient funds."));
    }

    #[test]
    fn a_payment_of_an_invoice_is_no_purchase() {
        let fact = pay("payment.captured", &with(&a_payment(), "invoice_id", json!("inv_HeGCvvjQIAjsvZ")));
        assert!(fact.of_subscription);
        assert_eq!(fact.refs[2..], ["inv_HeGCvvjQIAjsvZ"]);
    }

    #[test]
    fn refunds_add_up_in_the_payment() {
        let payment = with(&a_payment(), "amount_refunded", json!(9000));
        let expected = RefundFact {
            refs: vec!["pay_SFWeTbuZZ4xH9T".into(), "order_SFWeGna6kuFKgc".into()],
            refunded: 9000,
            amount: 100_000,
            currency: "INR".into(),
            payment_id: uuid(PAYMENT),
            org_id: uuid(ORG),
        };
        let entities = [("refund", a_refund()), ("payment", payment.clone())];
        assert_eq!(read("refund.processed", &entities), Ok(Some(Fact::Refund(expected))));
        let more = with(&payment, "amount_refunded", json!(100_001));
        let entities = [("refund", a_refund()), ("payment", more)];
        assert_eq!(read("refund.processed", &entities), Err(Unreadable::Field("amount_refunded")));
        let other = with(&a_refund(), "payment_id", json!("pay_other"));
        let entities = [("refund", other), ("payment", payment.clone())];
        assert_eq!(read("refund.processed", &entities), Err(Unreadable::Field("payment_id")));
        let missing = Err(Unreadable::Missing("payload.payment.entity"));
        assert_eq!(read("refund.processed", &[("refund", a_refund())]), missing);
        let missing = Err(Unreadable::Missing("payload.refund.entity"));
        assert_eq!(read("refund.processed", &[("payment", payment)]), missing);
    }

    #[test]
    fn a_charge_of_a_subscription_is_an_invoice() {
        let payment = {
            let mut payment = with(&a_payment(), "notes", json!([]));
            payment["invoice_id"] = json!("inv_EZZw8");
            payment
        };
        let expected = InvoiceFact {
            id: "pay_SFWeTbuZZ4xH9T".into(),
            paid: true,
            refs: vec!["pay_SFWeTbuZZ4xH9T".into(), "order_SFWeGna6kuFKgc".into(), "inv_EZZw8".into()],
            subscription: Some("sub_EZZsbKwt5xRYH6".into()),
            org_id: uuid(ORG),
            customer: Some("cust_EZZw80dUQgID8C".into()),
            prices: vec!["plan_EXwyxDYDCj3X4v".into()],
            period: Some((1_585_822_073, 1_588_357_800)),
            amount: 100_000,
            currency: "INR".into(),
            reason: None,
        };
        let entities = [("subscription", a_subscription()), ("payment", payment.clone())];
        assert_eq!(read("subscription.charged", &entities), Ok(Some(Fact::Invoice(expected))));
        let alone = Err(Unreadable::Missing("payload.subscription.entity"));
        assert_eq!(read("subscription.charged", &[("payment", payment)]), alone);
    }

    #[test]
    fn states_of_subscriptions() {
        let state = |kind| match read(kind, &[("subscription", a_subscription())]) {
            Ok(Some(Fact::Subscription(fact))) => fact,
            other => panic!("{other:?}"),
        };
        let expected = SubscriptionFact {
            id: "sub_EZZsbKwt5xRYH6".into(),
            state: SubscriptionState::Active,
            org_id: uuid(ORG),
            customer: Some("cust_EZZw80dUQgID8C".into()),
            prices: vec!["plan_EXwyxDYDCj3X4v".into()],
            period: Some((1_585_822_073, 1_588_357_800)),
            cancel_at_period_end: false,
        };
        assert_eq!(state("subscription.activated"), expected);
        assert_eq!(state("subscription.pending").state, SubscriptionState::PastDue);
        assert_eq!(state("subscription.halted").state, SubscriptionState::PastDue);
        assert_eq!(state("subscription.cancelled").state, SubscriptionState::Canceled);
        let mut early = with(&a_subscription(), "current_start", Value::Null);
        early["current_end"] = Value::Null;
        match read("subscription.cancelled", &[("subscription", early)]) {
            Ok(Some(Fact::Subscription(fact))) => assert_eq!(fact.period, None),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_time_was_further_down_in_2018() {
        let mut event = event("payment.captured", &[("payment", a_payment())]);
        event["payload"]["created_at"] = json!(1_400_826_760);
        event.as_object_mut().unwrap().remove("created_at");
        assert_eq!(parse(&event.to_string()).unwrap().created, 1_400_826_760);
        event["payload"]["created_at"] = Value::Null;
        assert_eq!(parse(&event.to_string()), Err(Unreadable::Missing("created_at")));
    }

    #[test]
    fn types_that_we_do_not_use_may_hold_anything() {
        assert_eq!(read("order.paid", &[("payment", json!(5))]), Ok(None));
        assert_eq!(read("subscription.authenticated", &[]), Ok(None));
    }

    #[test]
    fn envelopes_that_are_none() {
        assert_eq!(parse("nonsense"), Err(Unreadable::Json("JSON")));
        assert_eq!(parse("\"text\""), Err(Unreadable::Json("an object")));
        assert_eq!(parse(r#"{"created_at":1}"#), Err(Unreadable::Missing("event")));
        assert_eq!(parse(r#"{"event":1,"created_at":1}"#), Err(Unreadable::Field("event")));
        assert_eq!(parse(r#"{"event":"x","created_at":"1"}"#), Err(Unreadable::Field("created_at")));
        let missing = Err(Unreadable::Missing("payload.payment.entity"));
        assert_eq!(read("payment.captured", &[]), missing);
        assert_eq!(parse(r#"{"event":"payment.captured","created_at":1}"#).map(|event| event.fact), missing);
    }

    #[test]
    fn wrong_types_are_never_guessed_at() {
        for (name, value) in [
            ("id", json!(1)),
            ("amount", json!("100000")),
            ("amount", json!(-1)),
            ("amount", json!(1000.0)),
            ("amount", json!(u64::MAX)),
            ("currency", json!("rupee")),
            ("order_id", json!(["order"])),
            ("token_id", json!(7)),
        ] {
            let payment = with(&a_payment(), name, value);
            assert_eq!(read("payment.captured", &[("payment", payment)]), Err(Unreadable::Field(name)));
        }
        let payment = with(&a_payment(), "amount", Value::Null);
        let unsaid = Err(Unreadable::Missing("amount"));
        assert_eq!(read("payment.captured", &[("payment", payment.clone())]), unsaid);
        assert_eq!(pay("payment.failed", &payment).amount, None);
        let entities = [("subscription", a_subscription()), ("payment", payment)];
        assert_eq!(read("subscription.charged", &entities), Err(Unreadable::Missing("amount")));
        let late = with(&a_subscription(), "current_end", json!(i64::MAX));
        let fault = Err(Unreadable::Field("current_end"));
        assert_eq!(read("subscription.activated", &[("subscription", late)]), fault);
    }

    #[test]
    fn nothing_that_is_signed_makes_us_panic() {
        let odd = [Value::Null, json!(""), json!(i64::MIN), json!(i64::MAX), json!(0.5), json!([[]]), json!({})];
        let good = [("payment", a_payment()), ("refund", a_refund()), ("subscription", a_subscription())];
        for kind in ["payment.failed", "refund.processed", "subscription.charged", "subscription.cancelled"] {
            for (i, (_, entity)) in good.iter().enumerate() {
                for name in entity.as_object().unwrap().keys() {
                    for value in &odd {
                        let mut entities = good.clone();
                        entities[i].1 = with(entity, name, value.clone());
                        let _ = read(kind, &entities);
                    }
                }
            }
        }
    }
}
