//! A client's connection: in the Shell room, with the active cluster manager found.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use federation::xmpp::{Agent, AgentEvent, IqFailure};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use xmpp_parsers::jid::{BareJid, FullJid, Jid};
use xmpp_parsers::minidom::Element;
use xmpp_parsers::stanza_error::{DefinedCondition, StanzaError};

use super::access::Access;
use crate::shell::{self, Command};
use crate::view::ErrorDoc;

/// Long enough for a log-in on a loaded machine, short enough for a person.
const COME_IN: Duration = Duration::from_secs(30);
const ANSWER: Duration = Duration::from_secs(20);
const AGAIN: Duration = Duration::from_millis(250);

pub enum Answer {
    Document(serde_json::Value),
    Refused(ErrorDoc),
}

pub struct Link {
    agent: Agent,
    /// Whom to ask; another after a restart or a take-over.
    manager: watch::Receiver<Option<FullJid>>,
}

impl Link {
    pub async fn open(access: Access) -> Result<Self> {
        let room: BareJid = access.shell.parse().context("the Shell room is a JID such as shell@conference.a.test")?;
        let (agent, mut events) = Agent::start(&access.xmpp)?;
        // Unique, so that one person may have several windows open.
        let nick = format!("starling-{}", &uuid::Uuid::new_v4().simple().to_string()[..8]);
        agent.join(&room, &nick, None).await?;
        let manager = timeout(COME_IN, find_manager(&mut events, &room))
            .await
            .map_err(|_| anyhow!("no cluster manager came up in {room} within {} s", COME_IN.as_secs()))??;
        let (follow, manager) = watch::channel(Some(manager));
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                match active(&event, &room) {
                    Some((true, Some(real))) => drop(follow.send_replace(Some(real))),
                    Some(_) => drop(follow.send_replace(None)),
                    None => {}
                }
            }
        });
        Ok(Self { agent, manager })
    }

    pub async fn ask(&self, question: &Command) -> Result<Answer> {
        let patience = tokio::time::Instant::now() + ANSWER;
        let payload = loop {
            match self.ask_once(question).await? {
                Ok(payload) => break payload.context("the cluster manager answered nothing")?,
                // For some seconds the server takes a killed one for alive. Nobody has heard the question, so it is repeated.
                Err(IqFailure::Remote(error)) if is_nobody(&error) && tokio::time::Instant::now() < patience => {
                    tokio::time::sleep(AGAIN).await;
                }
                Err(IqFailure::Timeout) => bail!("the cluster manager did not answer within {} s", ANSWER.as_secs()),
                Err(failure) => bail!("ask the cluster manager: {failure}"),
            }
        };
        if let Some(jobs) = payload.attr("left-off") {
            eprintln!("starling: {}", crate::shell::describe_left_off(jobs));
        }
        let value: serde_json::Value = serde_json::from_str(&payload.text()).context("understand the answer")?;
        match value.get("error").filter(|_| value.get("id").is_none()) {
            Some(error) => Ok(Answer::Refused(serde_json::from_value(error.clone())?)),
            None => Ok(Answer::Document(value)),
        }
    }

    async fn ask_once(&self, question: &Command) -> Result<Result<Option<Element>, IqFailure>> {
        let mut manager = self.manager.clone();
        let found = timeout(ANSWER, manager.wait_for(Option::is_some)).await;
        let found = found.map_err(|_| anyhow!("the cluster manager is gone"))?.context("the connection ended")?.clone();
        let to = Jid::from(found.context("find the cluster manager")?);
        let reply = match question {
            Command::Submit(xml) => self.agent.iq_set(to, shell::submission(xml), ANSWER).await,
            Command::Cancel(id) => self.agent.iq_set(to, shell::query("cancel", Some(id)), ANSWER).await,
            Command::Status(id) => self.agent.iq_get(to, shell::query("status", Some(id)), ANSWER).await,
            Command::Jobs => self.agent.iq_get(to, shell::query("jobs", None), ANSWER).await,
            Command::Domains => self.agent.iq_get(to, shell::query("domains", None), ANSWER).await,
            Command::Help => self.agent.iq_get(to, shell::query("help", None), ANSWER).await,
        };
        Ok(reply)
    }

    pub async fn close(self) {
        self.agent.close().await;
    }
}

async fn find_manager(events: &mut mpsc::Receiver<AgentEvent>, room: &BareJid) -> Result<FullJid> {
    while let Some(event) = events.recv().await {
        match event {
            AgentEvent::AuthFailed(why) => bail!("the server refuses this account: {why}"),
            AgentEvent::ConnectFailed { error, .. } => eprintln!("starling: {error}; trying again"),
            AgentEvent::RoomLost { room: lost, why } if lost == *room => {
                bail!("the room {room} does not let us in: {why}")
            }
            event => {
                if let Some((true, Some(real))) = active(&event, room) {
                    return Ok(real);
                }
            }
        }
    }
    bail!("the connection ended")
}

/// What an event tells of the active cluster manager: whether it is there, and who it is.
fn active(event: &AgentEvent, room: &BareJid) -> Option<(bool, Option<FullJid>)> {
    match event {
        AgentEvent::Occupant { room: of, nick, real, affiliation, available, .. } if of == room && nick == "active" => {
            Some((*available && matches!(affiliation.as_str(), "owner" | "admin"), real.clone()))
        }
        AgentEvent::RoomLost { room: of, .. } if of == room => Some((false, None)),
        _ => None,
    }
}

/// Whether the addressee was not there.
fn is_nobody(error: &StanzaError) -> bool {
    use DefinedCondition::{RecipientUnavailable, ServiceUnavailable};
    matches!(error.defined_condition, RecipientUnavailable | ServiceUnavailable)
}
