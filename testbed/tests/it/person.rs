//! Somebody in a Shell room, with our own library, and the questions that may be asked there.

use cluster_manager::view::JobDoc;
use federation::xmpp::{Agent, AgentEvent, BareJid, Element, FullJid, MessageKind, XmppConfig};
use serde_json::Value;
use tokio::sync::mpsc;

use super::stage::{PATIENCE, Stage};

const SHELL: &str = "urn:starling:shell:1";

/// Somebody in a Shell room, the first domain's unless said, with our own library.
pub struct Person {
    pub agent: Agent,
    pub events: mpsc::Receiver<AgentEvent>,
    pub room: BareJid,
    /// The active cluster manager.
    pub manager: FullJid,
}

impl Person {
    pub async fn come_in(stage: &Stage) -> Self {
        Self::come_in_at(stage, 0).await
    }

    pub async fn come_in_at(stage: &Stage, domain: usize) -> Self {
        let client = &stage.domain(domain).client;
        Self::with_account(stage, domain, "person", &client.jid, &client.password).await
    }

    pub async fn with_account(stage: &Stage, domain: usize, nick: &str, jid: &str, password: &str) -> Self {
        let (agent, mut events) = log_in(stage, domain, jid, password);
        let room: BareJid = stage.domain(domain).shell_room.parse().unwrap();
        agent.join(&room, nick, None).await.unwrap();
        let manager = wait(&mut events, |event| match event {
            AgentEvent::Occupant { nick, real, .. } if nick == "active" => real,
            _ => None,
        });
        let manager = manager.await;
        wait(&mut events, |event| matches!(event, AgentEvent::RoomJoined { .. }).then_some(())).await;
        Self { agent, events, room, manager }
    }

    /// What is answered in the room to words.
    pub async fn say(&mut self, text: &str) -> String {
        self.agent.say(&self.room, text).await.unwrap();
        let from = self.room.with_resource_str("active").unwrap();
        wait(&mut self.events, |event| match event {
            AgentEvent::Message { from: who, kind: MessageKind::Groupchat, body, .. } if who == from.clone() => body,
            _ => None,
        })
        .await
    }

    /// What is answered in the room to a payload.
    pub async fn show(&mut self, payload: Element) -> Value {
        self.agent.groupchat(&self.room, payload).await.unwrap();
        let from = self.room.with_resource_str("active").unwrap();
        wait(&mut self.events, |event| match event {
            AgentEvent::Message { from: who, kind: MessageKind::Groupchat, payloads, body: None, .. }
                if who == from.clone() =>
            {
                json(&payloads)
            }
            _ => None,
        })
        .await
    }

    /// What is answered to a direct request.
    pub async fn request(&self, payload: Element) -> Value {
        let answer = self.agent.iq_set(self.manager.clone().into(), payload, PATIENCE).await.unwrap();
        json(&Vec::from_iter(answer)).unwrap()
    }
}

pub fn server(stage: &Stage, domain: usize) -> String {
    format!("{}:{}", stage.domain(domain).xmpp_host, stage.domain(domain).xmpp_port)
}

pub fn json(payloads: &[Element]) -> Option<Value> {
    serde_json::from_str(&payloads.iter().find(|p| p.name() == "json")?.text()).ok()
}

pub fn log_in(stage: &Stage, domain: usize, jid: &str, password: &str) -> (Agent, mpsc::Receiver<AgentEvent>) {
    let mut config = XmppConfig::new(jid, password, server(stage, domain));
    config.ca_file = Some(stage.domain(domain).ca_file.clone());
    Agent::start(&config).unwrap()
}

pub async fn wait<T>(events: &mut mpsc::Receiver<AgentEvent>, mut wanted: impl FnMut(AgentEvent) -> Option<T>) -> T {
    let look = async {
        loop {
            if let Some(found) = wanted(events.recv().await.expect("the session goes on")) {
                return found;
            }
        }
    };
    tokio::time::timeout(PATIENCE, look).await.expect("what is waited for")
}

pub fn query(verb: &str, job: &str) -> Element {
    format!("<query xmlns='{SHELL}' verb='{verb}' job='{job}'/>").parse().unwrap()
}

/// A document as a program submits it.
pub fn submission(document: &str) -> Element {
    let mut query: Element = format!("<query xmlns='{SHELL}' verb='submit'/>").parse().unwrap();
    query.append_text(document);
    query
}

/// A job as a program reads it.
pub fn understood(document: Value) -> JobDoc {
    serde_json::from_value(document).unwrap()
}
