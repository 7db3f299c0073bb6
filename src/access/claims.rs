//! The claims of a request that say who is calling (`request.jwt.claims`, as `PostgREST` sets
//! them).

use serde_json::Value;
use std::collections::BTreeSet;
use uuid::Uuid;

/// The claims that billing looks at.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Claims {
    /// The user whom the claim `sub` names.
    pub subject: Option<String>,
    /// The orgs that the claims name.
    pub orgs: BTreeSet<Uuid>,
}

impl Claims {
    /// Reads the claims of a request; whatever cannot be read names nobody.
    pub fn parse(text: &str) -> Self {
        let claims: Value = serde_json::from_str(text).unwrap_or_default();
        let app = &claims["app_metadata"];
        let several = app["org_ids"].as_array().map(Vec::as_slice).unwrap_or_default();
        let orgs = [&claims["org_id"], &app["org_id"]].into_iter().chain(several).filter_map(org).collect();
        let subject = match &claims["sub"] {
            Value::String(subject) => Some(subject.clone()),
            Value::Number(subject) => Some(subject.to_string()),
            _ => None,
        };
        Self { subject, orgs }
    }
}

/// Reads the UUID of an org as the server prints it, in letters of either case; any other notation
/// names no org.
fn org(value: &Value) -> Option<Uuid> {
    let text = value.as_str().filter(|text| text.len() == uuid::fmt::Hyphenated::LENGTH)?;
    Uuid::parse_str(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "00000000-0000-4000-8000-00000000000a";
    const B: &str = "00000000-0000-4000-8000-00000000000b";

    fn orgs(text: &str) -> Vec<String> {
        Claims::parse(text).orgs.iter().map(Uuid::to_string).collect()
    }

    #[test]
    fn orgs_are_named_alone_or_in_a_list() {
        assert_eq!(orgs(&format!(r#"{{"org_id": "{A}"}}"#)), [A]);
        assert_eq!(orgs(&format!(r#"{{"app_metadata": {{"org_id": "{}"}}}}"#, A.to_uppercase())), [A]);
        assert_eq!(
            orgs(&format!(r#"{{"org_id": "{B}", "app_metadata": {{"org_ids": ["{A}", "{B}", null, 7]}}}}"#)),
            [A, B]
        );
    }

    #[test]
    fn what_cannot_be_read_names_nobody() {
        for text in [
            "",
            "no json",
            "null",
            "7",
            "[]",
            &format!(r#"["{A}"]"#),
            &format!(r#"{{"org_id": " {A}"}}"#),
            &format!(r#"{{"org_id": "{{{A}}}"}}"#),
            &format!(r#"{{"org_id": ["{A}"]}}"#),
            &format!(r#"{{"org_id": "{}"}}"#, A.replace('-', "")),
            &format!(r#"{{"app_metadata": {{"org_ids": "{A}"}}}}"#),
            &format!(r#"{{"org_id": "{A}""#),
        ] {
            assert_eq!(Claims::parse(text), Claims::default(), "{text}");
        }
    }

    #[test]
    fn the_subject_is_a_text_or_a_number() {
        assert_eq!(Claims::parse(r#"{"sub": "u"}"#).subject.as_deref(), Some("u"));
        assert_eq!(Claims::parse(r#"{"sub": 12}"#).subject.as_deref(), Some("12"));
        assert_eq!(Claims::parse(r#"{"sub": {}}"#).subject, None);
    }
}
