//! Payloads for people's clients and for scripts, which xmpp-parsers lacks: ad-hoc commands and JSON containers.

use xmpp_parsers::data_forms::DataForm;
use xmpp_parsers::minidom::Element;
use xmpp_parsers::minidom::rxml::xml_ncname;
use xmpp_parsers::ns;
use xso::{AsXml, FromXml};

pub use xmpp_parsers::data_forms;

pub const COMMANDS: &str = "http://jabber.org/protocol/commands";

/// A command of XEP-0050, as request or as answer.
#[derive(FromXml, AsXml, Clone, Debug, PartialEq)]
#[xml(namespace = COMMANDS, name = "command")]
pub struct AdHoc {
    #[xml(attribute)]
    pub node: String,
    /// Of a request: `execute` (also when absent), `next`, `complete`, `prev` or `cancel`.
    #[xml(attribute(default))]
    pub action: Option<String>,
    /// Of an answer: `executing`, `completed` or `canceled`.
    #[xml(attribute(default))]
    pub status: Option<String>,
    #[xml(attribute(default, name = "sessionid"))]
    pub session_id: Option<String>,
    #[xml(child(default))]
    pub form: Option<DataForm>,
    #[xml(extract(n = .., name = "note", fields(text(type_ = String))))]
    pub notes: Vec<String>,
}

/// The text of a JSON container (XEP-0335), not parsed.
pub fn json_text(payloads: &[Element]) -> Option<String> {
    payloads.iter().find(|e| e.is("json", ns::JSON_CONTAINERS)).map(Element::text)
}

/// A JSON container with this text in it.
pub fn json_element(text: &str) -> Element {
    json_list(text, 0)
}

/// The same of a list from which so many were left off.
pub fn json_list(text: &str, left_off: usize) -> Element {
    let left_off = (left_off > 0).then(|| left_off.to_string());
    Element::builder("json", ns::JSON_CONTAINERS).attr(xml_ncname!("left-off").into(), left_off).append(text).build()
}
