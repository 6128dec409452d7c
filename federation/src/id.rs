//! Names of things, each its own type so that one cannot be passed for another.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};
use xso::{AsXmlText, FromXmlText};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub String);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.to_owned())
            }
        }
        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(text)
            }
        }
        impl FromXmlText for $name {
            fn from_xml_text(text: String) -> Result<Self, xso::error::Error> {
                // Bounded, so that a hostile peer cannot make keys of arbitrary size.
                if text.is_empty() || text.len() > 256 {
                    return Err(xso::error::Error::Other(concat!(stringify!($name), ": 1 to 256 bytes")));
                }
                Ok(Self(text))
            }
        }
        impl AsXmlText for $name {
            fn as_xml_text(&self) -> Result<Cow<'_, str>, xso::error::Error> {
                Ok(Cow::Borrowed(&self.0))
            }
        }
    };
}

id!(
    /// A domain, by the host name of its XMPP server (`a.test`).
    DomainId
);
id!(
    /// A job, unique in its home domain and, with the home's name, everywhere.
    JobId
);
id!(
    /// A lease: the right of one foreign (or home) domain to work on some parts until it expires.
    LeaseId
);
id!(
    /// A bid and the hold that backs it.
    BidId
);
id!(
    /// A message; a repeat of it gets the stored answer.
    MessageId
);

/// Milliseconds since the Unix epoch, in the clock of whoever wrote it down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Millis(pub u64);

impl Millis {
    pub fn plus(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    /// How long after `earlier` this is, in ms; 0 if it is not.
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl FromXmlText for Millis {
    fn from_xml_text(text: String) -> Result<Self, xso::error::Error> {
        u64::from_xml_text(text).map(Self)
    }
}

impl AsXmlText for Millis {
    fn as_xml_text(&self) -> Result<Cow<'_, str>, xso::error::Error> {
        Ok(Cow::Owned(self.0.to_string()))
    }
}
