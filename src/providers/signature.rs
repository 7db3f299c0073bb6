//! Signatures of webhooks, which prove that the payload was written by a holder of the secret.
//!
//! Every comparison with a computed signature takes constant time, and a secret that is empty
//! proves nothing.

use hmac::{Hmac, Mac};
use sha2::Sha256;
use subtle::{Choice, ConstantTimeEq};

/// The reason why a payload is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Fault {
    Missing,
    Malformed,
    Stale,
    Future,
    Mismatch,
}

impl Fault {
    /// The name of the reason in errors.
    pub fn name(self) -> &'static str {
        match self {
            Self::Missing => "missing_signature",
            Self::Malformed => "malformed_signature",
            Self::Stale => "stale_signature",
            Self::Future => "future_signature",
            Self::Mismatch => "wrong_signature",
        }
    }
}

type Digest = [u8; 32];

/// Checks `Stripe-Signature: t=…,v1=…`: each `v1` is HMAC-SHA256 over `{t}.{payload}`; there are
/// several while a secret is rolled.
///
/// Times are in seconds. The time is judged last, so that only a holder of the secret learns
/// whether it would do.
pub(super) fn stripe(payload: &[u8], header: &str, secrets: &[Vec<u8>], now: i64, tolerance: i64) -> Result<(), Fault> {
    if header.trim().is_empty() {
        return Err(Fault::Missing);
    }
    let mut time = None;
    let mut given = Vec::new();
    for element in header.split(',') {
        match element.trim().split_once('=') {
            Some(("t", text)) if time.is_none() => time = Some(text),
            Some(("t", _)) => return Err(Fault::Malformed),
            Some(("v1", text)) => given.extend(digest(text)),
            // `v0` is the fake signature of test events; other schemes may come.
            _ => {}
        }
    }
    let time = time.ok_or(Fault::Malformed)?;
    let signed_at = seconds(time).ok_or(Fault::Malformed)?;
    if given.is_empty() {
        return Err(Fault::Malformed);
    }
    prove(&[time.as_bytes(), b".", payload], &given, secrets)?;
    check_age(signed_at, now, tolerance)
}

/// Refuses a signature that was made too long ago, or is of a time to come; all in seconds.
pub(super) fn check_age(signed_at: i64, now: i64, tolerance: i64) -> Result<(), Fault> {
    if now.saturating_sub(signed_at) > tolerance {
        return Err(Fault::Stale);
    }
    if signed_at.saturating_sub(now) > tolerance {
        return Err(Fault::Future);
    }
    Ok(())
}

/// Checks `X-Razorpay-Signature`: HMAC-SHA256 over the payload. There is no time in it: only the
/// event's id stops a replay.
pub(super) fn razorpay(payload: &[u8], header: &str, secrets: &[Vec<u8>]) -> Result<(), Fault> {
    let header = header.trim();
    if header.is_empty() {
        return Err(Fault::Missing);
    }
    let given = digest(header).ok_or(Fault::Malformed)?;
    prove(&[payload], &[given], secrets)
}

/// Checks that some signature was made with some secret; the time it takes does not tell which one.
pub(super) fn prove(parts: &[&[u8]], given: &[Digest], secrets: &[Vec<u8>]) -> Result<(), Fault> {
    let mut found = Choice::from(0);
    for secret in secrets.iter().filter(|secret| !secret.is_empty()) {
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret) else { continue };
        for part in parts {
            mac.update(part);
        }
        let expected = mac.finalize().into_bytes();
        for signature in given {
            found |= expected.as_slice().ct_eq(signature);
        }
    }
    if bool::from(found) { Ok(()) } else { Err(Fault::Mismatch) }
}

/// Reads seconds of digits alone: `i64::from_str` would take a sign.
fn seconds(text: &str) -> Option<i64> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}

pub(super) fn digest(text: &str) -> Option<Digest> {
    let (pairs, odd) = text.as_bytes().as_chunks::<2>();
    let mut digest = Digest::default();
    if !odd.is_empty() || pairs.len() != digest.len() {
        return None;
    }
    for (byte, [high, low]) in digest.iter_mut().zip(pairs) {
        *byte = nibble(*high)? << 4 | nibble(*low)?;
    }
    Some(digest)
}

fn nibble(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAYLOAD: &[u8] = br#"{"id":"evt_1","object":"event"}"#;
    const AT: i64 = 1_750_384_339;
    // Computed by Python's hmac, with the secret below.
    const STRIPE: &str = "cc344bca05f922af2509619d0d675c0d8692afc005cd617e76e5d05a6e59312b";
    const RAZORPAY: &str = "510345295852eea1fac55cfce94a106f15c265b844146ea89bf319e572f35e42";
    const STRIPE_BY_NO_SECRET: &str = "8f932208f174409fd11c4ccc08bd98cfe0cb05a8dd4840ee7d1b4e08735cbd05";

    fn secrets(texts: &[&str]) -> Vec<Vec<u8>> {
        texts.iter().map(|text| text.as_bytes().to_vec()).collect()
    }

    fn at(now: i64, header: &str) -> Result<(), Fault> {
        stripe(PAYLOAD, header, &secrets(&["whsec_test_secret"]), now, 300)
    }

    fn signed() -> String {
        format!("t={AT},v1={STRIPE}")
    }

    #[test]
    fn known_answers() {
        assert_eq!(at(AT, &signed()), Ok(()));
        assert_eq!(razorpay(PAYLOAD, RAZORPAY, &secrets(&["whsec_test_secret"])), Ok(()));
        // RFC 4231, case 2.
        let answer = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        assert_eq!(razorpay(b"what do ya want for nothing?", answer, &secrets(&["Jefe"])), Ok(()));
    }

    #[test]
    fn any_signature_by_any_secret_will_do() {
        let other = "0".repeat(64);
        assert_eq!(at(AT, &format!("t={AT}, v1={other}, v1={STRIPE}, v0={other}, v9")), Ok(()));
        assert_eq!(at(AT, &format!("v1={STRIPE},v1=short,t={AT}")), Ok(()));
        assert_eq!(at(AT, &format!("t={AT},v1={}", STRIPE.to_uppercase())), Ok(()));
        let rolled = secrets(&["whsec_new", "whsec_test_secret"]);
        assert_eq!(stripe(PAYLOAD, &signed(), &rolled, AT, 300), Ok(()));
        assert_eq!(razorpay(PAYLOAD, RAZORPAY, &rolled), Ok(()));
    }

    #[test]
    fn what_was_not_signed_is_not_believed() {
        let one = secrets(&["whsec_test_secret"]);
        assert_eq!(stripe(b"{}", &signed(), &one, AT, 300), Err(Fault::Mismatch));
        assert_eq!(stripe(PAYLOAD, &signed(), &secrets(&["whsec_other"]), AT, 300), Err(Fault::Mismatch));
        assert_eq!(stripe(PAYLOAD, &signed(), &[], AT, 300), Err(Fault::Mismatch));
        assert_eq!(at(AT, &format!("t={},v1={STRIPE}", AT + 1)), Err(Fault::Mismatch));
        assert_eq!(at(AT, &format!("t=0{AT},v1={STRIPE}")), Err(Fault::Mismatch));
        assert_eq!(at(AT, &format!("t={AT},v1={RAZORPAY}")), Err(Fault::Mismatch));
        assert_eq!(razorpay(b"{}", RAZORPAY, &one), Err(Fault::Mismatch));
        assert_eq!(razorpay(PAYLOAD, RAZORPAY, &[]), Err(Fault::Mismatch));
    }

    #[test]
    fn an_empty_secret_proves_nothing() {
        let header = format!("t={AT},v1={STRIPE_BY_NO_SECRET}");
        assert_eq!(stripe(PAYLOAD, &header, &secrets(&[""]), AT, 300), Err(Fault::Mismatch));
        assert_eq!(stripe(PAYLOAD, &signed(), &secrets(&["", "whsec_test_secret"]), AT, 300), Ok(()));
    }

    #[test]
    fn time_counts_once_the_signature_is_right() {
        assert_eq!(at(AT + 300, &signed()), Ok(()));
        assert_eq!(at(AT + 301, &signed()), Err(Fault::Stale));
        assert_eq!(at(AT - 300, &signed()), Ok(()));
        assert_eq!(at(AT - 301, &signed()), Err(Fault::Future));
        assert_eq!(at(i64::MAX, &signed()), Err(Fault::Stale));
        assert_eq!(at(i64::MIN, &signed()), Err(Fault::Future));
        assert_eq!(at(AT + 301, &format!("t={AT},v1={}", "0".repeat(64))), Err(Fault::Mismatch));
    }

    #[test]
    fn headers_that_are_none() {
        for header in ["", "  "] {
            assert_eq!(at(AT, header), Err(Fault::Missing));
            assert_eq!(razorpay(PAYLOAD, header, &[]), Err(Fault::Missing));
        }
        let malformed = [
            "t".to_owned(),
            "nonsense".to_owned(),
            format!("t={AT}"),
            format!("v1={STRIPE}"),
            format!("t={AT},v0={STRIPE}"),
            format!("t=,v1={STRIPE}"),
            format!("t=soon,v1={STRIPE}"),
            format!("t=+{AT},v1={STRIPE}"),
            format!("t=-{AT},v1={STRIPE}"),
            format!("t=99999999999999999999,v1={STRIPE}"),
            format!("t={AT},t={AT},v1={STRIPE}"),
            format!("t={AT},v1={}", &STRIPE[1..]),
            format!("t={AT},v1={STRIPE}0"),
            format!("t={AT},v1={}", "ä".repeat(32)),
            format!("t={AT},v1=+{}", &STRIPE[1..]),
        ];
        for header in malformed {
            assert_eq!(at(AT, &header), Err(Fault::Malformed), "{header}");
        }
        assert_eq!(razorpay(PAYLOAD, &signed(), &[]), Err(Fault::Malformed));
    }

    #[test]
    fn names() {
        let faults = [Fault::Missing, Fault::Malformed, Fault::Stale, Fault::Future, Fault::Mismatch];
        let names =
            ["missing_signature", "malformed_signature", "stale_signature", "future_signature", "wrong_signature"];
        assert_eq!(faults.map(Fault::name), names);
    }
}
