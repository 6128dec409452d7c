//! Multi-user chat (XEP-0045): the stanzas we send, and a reader of what comes back.
//!
//! `muc#owner` and `muc#admin` are not in xmpp-parsers, and its `MucUser` refuses status codes it does not know, so an
//! occupant's presence is read by hand.

use xmpp_parsers::data_forms::{DataForm, DataFormType, Field, FieldType};
use xmpp_parsers::jid::{BareJid, FullJid, Jid};
use xmpp_parsers::minidom::Element;
use xmpp_parsers::muc::Muc;
use xmpp_parsers::muc::muc::History;
use xmpp_parsers::ns;
use xmpp_parsers::presence::Presence;
use xso::{AsXml, FromXml};

const OWNER: &str = "http://jabber.org/protocol/muc#owner";
const ADMIN: &str = "http://jabber.org/protocol/muc#admin";
const ROOM_CONFIG: &str = "http://jabber.org/protocol/muc#roomconfig";

/// Asks for no history: a payload is never replayed, and old talk is of no use.
pub fn join(occupant: FullJid, payload: Option<Element>) -> Presence {
    let presence = Presence::available()
        .with_to(occupant)
        .with_payload(Muc::new().with_history(History::new().with_maxstanzas(0)));
    with_payload(presence, payload)
}

pub fn with_payload(mut presence: Presence, payload: Option<Element>) -> Presence {
    presence.payloads.extend(payload);
    presence
}

/// The room form, for an IQ-set to the room; fields that are not named keep their values.
pub fn config_form(fields: &[(&str, &str)]) -> Element {
    let fields = fields.iter().map(|(name, value)| Field::new(name, FieldType::TextSingle).with_value(value)).collect();
    let form = DataForm::new(DataFormType::Submit, ROOM_CONFIG, fields);
    OwnerQuery { form: Some(form) }.into()
}

pub fn set_affiliation(jid: &BareJid, affiliation: &str) -> Element {
    let item = AdminItem { affiliation: Some(affiliation.into()), jid: Some(Jid::from(jid.clone())) };
    AdminQuery { items: vec![item] }.into()
}

pub fn get_affiliations(affiliation: &str) -> Element {
    AdminQuery { items: vec![AdminItem { affiliation: Some(affiliation.into()), jid: None }] }.into()
}

/// The accounts in the answer to [`get_affiliations`].
pub fn affiliated(answer: Option<Element>) -> Vec<BareJid> {
    let items = answer.and_then(|e| AdminQuery::try_from(e).ok()).map(|query| query.items).unwrap_or_default();
    items.into_iter().filter_map(|item| item.jid.map(Jid::into_bare)).collect()
}

#[derive(FromXml, AsXml)]
#[xml(namespace = OWNER, name = "query")]
struct OwnerQuery {
    #[xml(child(default))]
    form: Option<DataForm>,
}

#[derive(FromXml, AsXml)]
#[xml(namespace = ADMIN, name = "query")]
struct AdminQuery {
    #[xml(child(n = ..))]
    items: Vec<AdminItem>,
}

#[derive(FromXml, AsXml)]
#[xml(namespace = ADMIN, name = "item")]
struct AdminItem {
    #[xml(attribute(default))]
    affiliation: Option<String>,
    #[xml(attribute(default))]
    jid: Option<Jid>,
}

/// What a room says about one occupant in its presence.
pub struct Item {
    /// Status codes: 110 own presence, 201 room made, 307 kicked, 332 and 333 server trouble, and others.
    pub codes: Vec<String>,
    pub real: Option<FullJid>,
    pub role: String,
    pub affiliation: String,
}

impl Item {
    /// `None`: the presence does not come from a room.
    pub fn read(presence: &Presence) -> Option<Self> {
        let x = presence.payloads.iter().find(|e| e.is("x", ns::MUC_USER))?;
        let item = x.get_child("item", ns::MUC_USER);
        let attribute = |name: &str| item.and_then(|item| item.attr(name)).map(str::to_owned);
        Some(Self {
            codes: x
                .children()
                .filter(|e| e.is("status", ns::MUC_USER))
                .filter_map(|e| e.attr("code").map(str::to_owned))
                .collect(),
            real: attribute("jid").and_then(|jid| FullJid::new(&jid).ok()),
            role: attribute("role").unwrap_or_else(|| "none".into()),
            affiliation: attribute("affiliation").unwrap_or_else(|| "none".into()),
        })
    }

    pub fn is_own(&self) -> bool {
        self.codes.iter().any(|code| code == "110")
    }
}
