//! Units of wallets: credits, or a currency in minor units.

use std::str::FromStr;

/// The unit of a wallet unless another is named.
pub const CREDIT: &str = "credit";

/// Whether a text is `credit` or an ISO 4217 code.
pub fn is_unit(unit: &str) -> bool {
    unit == CREDIT || is_currency(unit)
}

/// Whether a text is an ISO 4217 code, in capitals.
pub fn is_currency(code: &str) -> bool {
    code.len() == 3 && code.bytes().all(|b| b.is_ascii_uppercase()) && iso_currency::Currency::from_str(code).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credit_and_real_currencies_only() {
        assert!(is_unit("credit") && is_unit("EUR") && is_unit("INR") && is_unit("JPY"));
        assert!(!is_unit("eur") && !is_unit("QQQ") && !is_unit("credits") && !is_unit(""));
    }
}
