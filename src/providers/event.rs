//! What an event of a payment provider says, in our words; and how a payload is read without believing its shape.
//!
//! A payload that is signed may still be of an API version that nobody has seen. What is read is read strictly: a value of
//! another type is an error and never a guess, because money follows from it. What is not read may be anything.

use serde_json::{Map, Value};
use uuid::Uuid;

/// An event of any provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The provider's id, the same at every delivery.
    pub id: String,
    /// The provider's type.
    pub kind: String,
    /// Unix seconds, at the provider. Events arrive in any order.
    pub created: i64,
    /// None: a type that we do not use.
    pub fact: Option<Fact>,
}

/// What an event is about.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Fact {
    Payment(PaymentFact),
    Refund(RefundFact),
    Dispute(DisputeFact),
    Invoice(InvoiceFact),
    Subscription(SubscriptionFact),
}

/// How far a payment came. Failed need not be the end: the customer may try again with the same ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Outcome {
    Paid,
    Pending,
    Failed,
}

/// A payment, or the checkout that it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PaymentFact {
    /// How far it came.
    pub outcome: Outcome,
    /// The provider's ids by which it may be known: checkout session, payment intent, order, payment, charge, invoice.
    pub refs: Vec<String>,
    /// As whoever made the checkout says.
    pub payment_id: Option<Uuid>,
    /// As whoever made the checkout says.
    pub org_id: Option<Uuid>,
    /// The provider's customer.
    pub customer: Option<String>,
    /// What it was paid with, if that can be charged again.
    pub payment_method: Option<String>,
    /// Minor units, as the provider counts them. There is one if it was paid, and a currency.
    pub amount: Option<i64>,
    /// Upper case.
    pub currency: Option<String>,
    /// Of the card, where the event has it expanded.
    pub fingerprint: Option<String>,
    /// Why it failed, for people.
    pub failure: Option<String>,
    /// A checkout in subscription mode or a payment of an invoice: no purchase of its own.
    pub of_subscription: bool,
}

impl PaymentFact {
    /// What was paid without saying how much would pass for any amount.
    pub(super) fn checked(self) -> Result<Fact, Unreadable> {
        if self.outcome == Outcome::Paid {
            needed(self.amount, "amount")?;
            needed(self.currency.as_ref(), "currency")?;
        }
        Ok(Fact::Payment(self))
    }
}

/// Money given back by the merchant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefundFact {
    /// As for the payment.
    pub refs: Vec<String>,
    /// Cumulated so far, never more than `amount`.
    pub refunded: i64,
    /// What was paid.
    pub amount: i64,
    /// Upper case.
    pub currency: String,
    /// As whoever made the payment says.
    pub payment_id: Option<Uuid>,
    /// As whoever made the payment says.
    pub org_id: Option<Uuid>,
}

/// Where a dispute stands, from the merchant's side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum DisputeState {
    Open,
    Won,
    Lost,
}

/// Money that the customer's bank wants back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DisputeFact {
    /// The provider's id.
    pub id: String,
    /// As for the payment.
    pub refs: Vec<String>,
    /// Where it stands.
    pub state: DisputeState,
    /// What is disputed, perhaps a part of the payment.
    pub amount: i64,
    /// Upper case.
    pub currency: String,
    /// As whoever made the payment says.
    pub payment_id: Option<Uuid>,
    /// As whoever made the payment says.
    pub org_id: Option<Uuid>,
}

/// A bill of a subscription, paid or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvoiceFact {
    /// The provider's id.
    pub id: String,
    /// It was paid; else a try to collect it failed.
    pub paid: bool,
    /// Of the payment.
    pub refs: Vec<String>,
    /// None: a bill of its own.
    pub subscription: Option<String>,
    /// As whoever made the subscription says.
    pub org_id: Option<Uuid>,
    /// The provider's customer.
    pub customer: Option<String>,
    /// Of lines that give nothing back.
    pub prices: Vec<String>,
    /// Unix seconds, of the subscription's line that ends last.
    pub period: Option<(i64, i64)>,
    /// Paid, or due.
    pub amount: i64,
    /// Upper case.
    pub currency: String,
    /// Why there is a bill, in the provider's words.
    pub reason: Option<String>,
}

/// What a subscription is worth right now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum SubscriptionState {
    Incomplete,
    Active,
    PastDue,
    Canceled,
}

/// A subscription as it stood when the event was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscriptionFact {
    /// The provider's id.
    pub id: String,
    /// What it is worth.
    pub state: SubscriptionState,
    /// As whoever made the subscription says.
    pub org_id: Option<Uuid>,
    /// The provider's customer.
    pub customer: Option<String>,
    /// What it is for.
    pub prices: Vec<String>,
    /// Unix seconds.
    pub period: Option<(i64, i64)>,
    /// It will not be renewed.
    pub cancel_at_period_end: bool,
}

/// Why a signed payload cannot be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unreadable {
    /// What the payload as a whole is not.
    Json(&'static str),
    /// A field that has to be there.
    Missing(&'static str),
    /// A field of another type, below zero, or with a value that means nothing to us.
    Field(&'static str),
}

impl Unreadable {
    /// For people.
    pub fn message(&self) -> String {
        match self {
            Self::Json(what) => format!("the payload is not {what}"),
            Self::Missing(field) => format!("the payload has no {field}"),
            Self::Field(field) => format!("{field} of the payload cannot be read"),
        }
    }
}

/// The end of the year 9999: what comes later overflows somewhere.
const LAST_SECOND: i64 = 253_402_300_799;

/// An object of a payload, or nothing. What is absent, null or empty is None; what has another type is an error.
#[derive(Debug, Clone, Copy)]
pub(super) struct Object<'a>(Option<&'a Map<String, Value>>);

impl<'a> Object<'a> {
    /// Where nothing is to be read.
    pub const NONE: Self = Self(None);

    fn get(self, name: &str) -> Option<&'a Value> {
        self.0?.get(name).filter(|value| !value.is_null())
    }

    /// A text that the server can store.
    pub fn text(self, name: &'static str) -> Result<Option<&'a str>, Unreadable> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(text)) if text.contains('\0') => Err(Unreadable::Field(name)),
            Some(Value::String(text)) => Ok(Some(text.as_str()).filter(|text| !text.is_empty())),
            Some(_) => Err(Unreadable::Field(name)),
        }
    }

    /// An id, or the id of the object that stands in its place.
    pub fn id(self, name: &'static str) -> Result<Option<&'a str>, Unreadable> {
        match self.get(name) {
            Some(Value::Object(object)) => match Object(Some(object)).text("id") {
                Ok(Some(id)) => Ok(Some(id)),
                _ => Err(Unreadable::Field(name)),
            },
            _ => self.text(name),
        }
    }

    fn integer(self, name: &'static str) -> Result<Option<i64>, Unreadable> {
        self.get(name).map(|value| value.as_i64().ok_or(Unreadable::Field(name))).transpose()
    }

    /// An amount that is somebody's money: not below zero.
    pub fn amount(self, name: &'static str) -> Result<Option<i64>, Unreadable> {
        match self.integer(name)? {
            Some(amount) if amount < 0 => Err(Unreadable::Field(name)),
            amount => Ok(amount),
        }
    }

    /// An amount that may give back.
    pub fn signed_amount(self, name: &'static str) -> Result<Option<i64>, Unreadable> {
        self.integer(name)
    }

    /// Unix seconds.
    pub fn second(self, name: &'static str) -> Result<Option<i64>, Unreadable> {
        match self.integer(name)? {
            Some(second) if !(0..=LAST_SECOND).contains(&second) => Err(Unreadable::Field(name)),
            second => Ok(second),
        }
    }

    /// Two moments, if there is time between them.
    pub fn period(self, start: &'static str, end: &'static str) -> Result<Option<(i64, i64)>, Unreadable> {
        Ok(self.second(start)?.zip(self.second(end)?).filter(|(start, end)| start < end))
    }

    /// Upper case.
    pub fn currency(self, name: &'static str) -> Result<Option<String>, Unreadable> {
        match self.text(name)? {
            Some(code) if code.len() != 3 || !code.bytes().all(|byte| byte.is_ascii_alphabetic()) => {
                Err(Unreadable::Field(name))
            }
            code => Ok(code.map(str::to_ascii_uppercase)),
        }
    }

    /// What is absent is not so.
    pub fn flag(self, name: &'static str) -> Result<bool, Unreadable> {
        self.get(name).map_or(Ok(false), |value| value.as_bool().ok_or(Unreadable::Field(name)))
    }

    /// An object; nothing if there is none.
    pub fn object(self, name: &'static str) -> Result<Self, Unreadable> {
        match self.get(name) {
            None => Ok(Self(None)),
            Some(Value::Object(object)) => Ok(Self(Some(object))),
            Some(_) => Err(Unreadable::Field(name)),
        }
    }

    /// The object that may stand in place of an id.
    pub fn expanded(self, name: &'static str) -> Result<Self, Unreadable> {
        if matches!(self.get(name), Some(Value::String(_))) { Ok(Self(None)) } else { self.object(name) }
    }

    /// What the merchant attached. Who writes PHP sends `[]` where there is nothing.
    pub fn labels(self, name: &'static str) -> Result<Self, Unreadable> {
        if matches!(self.get(name), Some(Value::Array(_))) { Ok(Self(None)) } else { self.object(name) }
    }

    /// The objects of an array.
    pub fn elements(self, name: &'static str) -> Result<Vec<Self>, Unreadable> {
        match self.get(name) {
            None => Ok(Vec::new()),
            Some(Value::Array(elements)) => elements
                .iter()
                .map(|element| element.as_object().map(|object| Self(Some(object))).ok_or(Unreadable::Field(name)))
                .collect(),
            Some(_) => Err(Unreadable::Field(name)),
        }
    }

    /// A label of ours. Labels are the merchant's to use, so one that is no UUID is not ours, and no error.
    pub fn uuid(self, name: &str) -> Option<Uuid> {
        self.get(name).and_then(Value::as_str).and_then(|text| Uuid::try_parse(text).ok())
    }

    /// Something is there.
    pub fn is_some(self) -> bool {
        self.0.is_some()
    }
}

/// The payload as JSON.
pub(super) fn document(payload: &str) -> Result<Value, Unreadable> {
    serde_json::from_str(payload).map_err(|_| Unreadable::Json("JSON"))
}

/// The payload as an object.
pub(super) fn object(document: &Value) -> Result<Object<'_>, Unreadable> {
    document.as_object().map(|object| Object(Some(object))).ok_or(Unreadable::Json("an object"))
}

/// What has to be there.
pub(super) fn needed<T>(value: Option<T>, name: &'static str) -> Result<T, Unreadable> {
    value.ok_or(Unreadable::Missing(name))
}

/// Each once, in this order.
pub(super) fn distinct<'a>(ids: impl IntoIterator<Item = Option<&'a str>>) -> Vec<String> {
    let mut distinct: Vec<String> = Vec::new();
    for id in ids.into_iter().flatten() {
        if !distinct.iter().any(|known| known == id) {
            distinct.push(id.to_owned());
        }
    }
    distinct
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn payloads_that_are_none() {
        for payload in ["", "{", "nonsense", "{\"amount\":1e999}", &"[".repeat(1000)] {
            assert_eq!(document(payload), Err(Unreadable::Json("JSON")), "{payload}");
        }
        for payload in ["null", "[]", "\"text\"", "1"] {
            assert_eq!(object(&document(payload).unwrap()).unwrap_err(), Unreadable::Json("an object"));
        }
    }

    #[test]
    fn nothing_is_read_for_something_else() {
        let value = json!({
            "text": "t", "empty": "", "nul": "a\u{0}b", "number": 7, "negative": -1, "fraction": 1.5, "whole": 1.0,
            "huge": 9_223_372_036_854_775_808_u64, "digits": "12", "yes": true, "nothing": null, "list": [1], "object": {},
        });
        let object = object(&value).unwrap();
        assert_eq!(object.text("text"), Ok(Some("t")));
        assert_eq!(object.text("empty"), Ok(None));
        assert_eq!(object.text("nothing"), Ok(None));
        assert_eq!(object.text("absent"), Ok(None));
        for name in ["nul", "number", "yes", "list", "object"] {
            assert_eq!(object.text(name), Err(Unreadable::Field(name)));
        }
        assert_eq!(object.amount("number"), Ok(Some(7)));
        assert_eq!(object.signed_amount("negative"), Ok(Some(-1)));
        for name in ["negative", "fraction", "whole", "huge", "digits", "yes", "text"] {
            assert_eq!(object.amount(name), Err(Unreadable::Field(name)));
            assert_eq!(object.second(name), Err(Unreadable::Field(name)));
        }
        assert_eq!(object.flag("yes"), Ok(true));
        assert_eq!(object.flag("absent"), Ok(false));
        assert_eq!(object.flag("number"), Err(Unreadable::Field("number")));
        assert!(object.object("object").unwrap().is_some());
        assert!(!object.object("nothing").unwrap().is_some());
        for name in ["text", "list", "yes"] {
            assert_eq!(object.object(name).unwrap_err(), Unreadable::Field(name));
        }
        assert_eq!(object.elements("list").unwrap_err(), Unreadable::Field("list"));
        assert_eq!(object.elements("object").unwrap_err(), Unreadable::Field("object"));
        assert!(object.elements("absent").unwrap().is_empty());
    }

    #[test]
    fn times_end_with_the_year_9999() {
        let value = json!({ "zero": 0, "last": LAST_SECOND, "after": LAST_SECOND + 1, "negative": -1 });
        let object = object(&value).unwrap();
        assert_eq!(object.period("zero", "last"), Ok(Some((0, LAST_SECOND))));
        assert_eq!(object.period("last", "zero"), Ok(None));
        assert_eq!(object.period("zero", "zero"), Ok(None));
        assert_eq!(object.period("zero", "absent"), Ok(None));
        assert_eq!(object.period("zero", "after"), Err(Unreadable::Field("after")));
        assert_eq!(object.period("negative", "last"), Err(Unreadable::Field("negative")));
    }

    #[test]
    fn ids_may_be_whole_objects() {
        let value = json!({ "plain": "pi_1", "whole": { "id": "pi_2", "amount": 5 }, "broken": { "id": 3 }, "none": {}, "n": 1 });
        let object = object(&value).unwrap();
        assert_eq!(object.id("plain"), Ok(Some("pi_1")));
        assert_eq!(object.id("whole"), Ok(Some("pi_2")));
        assert_eq!(object.id("absent"), Ok(None));
        for name in ["broken", "none", "n"] {
            assert_eq!(object.id(name), Err(Unreadable::Field(name)));
        }
        assert_eq!(object.expanded("whole").unwrap().amount("amount"), Ok(Some(5)));
        assert_eq!(object.expanded("plain").unwrap().amount("amount"), Ok(None));
        assert_eq!(object.expanded("n").unwrap_err(), Unreadable::Field("n"));
    }

    #[test]
    fn labels_of_others_are_not_ours() {
        let org = "0198c0de-0000-7000-8000-000000000001";
        let value = json!({ "ours": { "org_id": org, "payment_id": "42", "n": 1 }, "php": [], "text": "t" });
        let object = object(&value).unwrap();
        let ours = object.labels("ours").unwrap();
        assert_eq!(ours.uuid("org_id").map(|id| id.to_string()).as_deref(), Some(org));
        assert_eq!((ours.uuid("payment_id"), ours.uuid("n"), ours.uuid("absent")), (None, None, None));
        assert_eq!(object.labels("php").unwrap().uuid("org_id"), None);
        assert_eq!(object.labels("text").unwrap_err(), Unreadable::Field("text"));
    }

    #[test]
    fn currencies_are_three_letters() {
        let value = json!({ "usd": "usd", "inr": "INR", "long": "usdt", "digits": "u5d", "cyrillic": "я€", "n": 840 });
        let object = object(&value).unwrap();
        assert_eq!(object.currency("usd").unwrap().as_deref(), Some("USD"));
        assert_eq!(object.currency("inr").unwrap().as_deref(), Some("INR"));
        for name in ["long", "digits", "cyrillic", "n"] {
            assert_eq!(object.currency(name), Err(Unreadable::Field(name)));
        }
    }

    #[test]
    fn each_id_once() {
        assert_eq!(distinct([Some("b"), None, Some("a"), Some("b")]), ["b", "a"]);
    }

    #[test]
    fn messages_name_the_field() {
        assert_eq!(Unreadable::Json("JSON").message(), "the payload is not JSON");
        assert_eq!(Unreadable::Missing("id").message(), "the payload has no id");
        assert_eq!(Unreadable::Field("amount").message(), "amount of the payload cannot be read");
    }
}
