//! Who may do what for whom: one TOML file a domain, read at start.
//!
//! ```toml
//! price = 1.0            # what one part costs here
//! max-depth = 2          # how often our own jobs may be sold on
//!
//! [default]              # for domains that are not listed
//! admitted = true
//!
//! [partner."b.test"]
//! admitted = true        # may it send us work?
//! parts-max = 50         # at the same time
//! kinds = ["transcode"]  # absent: all
//! price = 0.8            # special price
//! may-receive = false    # do our own jobs go there?
//! price-max = 2.0        # the most we pay there for a part
//! ```

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::id::DomainId;

/// Agreements with all partners.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Agreements {
    /// Price of one part for who has no special one.
    pub price: f64,
    /// Levels of re-forwarding that our own jobs may take, and the longest chain we work in.
    pub max_depth: u32,
    /// Whether parts that cannot be started soon are offered to others.
    pub resell: bool,
    /// Tasks given to the hosts for each slot; more than one lets them load ahead while they encode.
    pub tasks_per_slot: u32,
    /// Parts held at most, in multiples of the slots.
    pub waves_max: u32,
    /// What exceeds this multiple of the slots is sold on if somebody buys it.
    pub waves_soon: u32,
    /// Requests a peer may send at once, and in a second on average; more is a flood.
    pub requests_burst: u32,
    pub requests_per_second: u32,
    /// For domains that are not listed; a domain itself is not bound by it.
    #[serde(rename = "default")]
    pub default_policy: Policy,
    pub partner: BTreeMap<DomainId, Policy>,
}

/// What holds for one partner.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Policy {
    /// May it send us work?
    pub admitted: bool,
    /// Most parts that we hold for it at the same time; absent: as many as there is room for.
    pub parts_max: Option<u32>,
    /// Job kinds that we take from it; absent: all.
    pub kinds: Option<Vec<String>>,
    /// Price of one part for it; absent: the general one.
    pub price: Option<f64>,
    /// May our own jobs go there?
    pub may_receive: bool,
    /// The most that we pay there for a part.
    pub price_max: Option<f64>,
}

impl Default for Policy {
    fn default() -> Self {
        Self { admitted: true, parts_max: None, kinds: None, price: None, may_receive: true, price_max: None }
    }
}

impl Default for Agreements {
    fn default() -> Self {
        Self {
            price: 1.0,
            max_depth: 2,
            resell: true,
            tasks_per_slot: 3,
            waves_max: 8,
            waves_soon: 4,
            requests_burst: 2_000,
            requests_per_second: 500,
            default_policy: Policy::default(),
            partner: BTreeMap::new(),
        }
    }
}

/// What is wrong in the file.
#[derive(Debug, thiserror::Error)]
pub enum AgreementError {
    #[error("agreements: {0}")]
    Syntax(#[from] toml::de::Error),
    #[error("agreements: {what} must be a number of at least 0")]
    Price { what: String },
}

impl AgreementError {
    pub fn code(&self) -> &'static str {
        match self {
            Self::Syntax(_) => "agreements-syntax",
            Self::Price { .. } => "agreements-price",
        }
    }
}

impl Agreements {
    /// Reads and checks the file's text.
    pub fn parse(text: &str) -> Result<Self, AgreementError> {
        let all: Self = toml::from_str(text)?;
        let bad = |p: f64| !p.is_finite() || p < 0.0;
        if bad(all.price) {
            return Err(AgreementError::Price { what: "price".into() });
        }
        let default = ("default".to_owned(), &all.default_policy);
        for (who, policy) in all.partner.iter().map(|(d, p)| (d.to_string(), p)).chain([default]) {
            if policy.price.is_some_and(bad) || policy.price_max.is_some_and(bad) {
                return Err(AgreementError::Price { what: format!("a price of {who}") });
            }
        }
        Ok(all)
    }

    pub fn with(&self, domain: &DomainId) -> &Policy {
        self.partner.get(domain).unwrap_or(&self.default_policy)
    }

    /// What one part costs `domain`.
    pub fn price_for(&self, domain: &DomainId) -> f64 {
        self.with(domain).price.unwrap_or(self.price)
    }

    pub fn takes(&self, domain: &DomainId, kind: &str) -> bool {
        let policy = self.with(domain);
        policy.admitted && policy.kinds.as_ref().is_none_or(|kinds| kinds.iter().any(|k| k == kind))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_in_the_header_is_read() {
        let text: String = include_str!("agreement.rs")
            .lines()
            .skip_while(|l| !l.contains("```toml"))
            .skip(1)
            .take_while(|l| !l.contains("```"))
            .map(|l| format!("{}\n", l.trim_start_matches("//!")))
            .collect();
        let all = Agreements::parse(&text).unwrap();
        let b = DomainId::from("b.test");
        assert_eq!((all.price_for(&b), all.with(&b).parts_max, all.with(&b).may_receive), (0.8, Some(50), false));
        assert!(all.takes(&b, "transcode") && !all.takes(&b, "graph"));
        assert_eq!(all.price_for(&"c.test".into()), 1.0);
    }

    #[test]
    fn unknown_keys_and_negative_prices_are_refused() {
        assert_eq!(Agreements::parse("prize = 1").unwrap_err().code(), "agreements-syntax");
        assert_eq!(Agreements::parse("price = -1.0").unwrap_err().code(), "agreements-price");
        assert_eq!(Agreements::parse("[default]\nprice-max = nan").unwrap_err().code(), "agreements-price");
    }
}
