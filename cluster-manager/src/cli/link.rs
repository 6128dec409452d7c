//! A client's connection: in the Shell room, with the active cluster manager found.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use federation::xmpp::{Agent, AgentEvent, IqFailure};
use tokio::sync::mpsc;
use tokio::time::timeout;
use xmpp_parsers::jid::{BareJid, FullJid, Jid};
use xmpp_parsers::minidom::Element;

use super::access::Access;
use crate::shell::{self, Command};
use crate::view::ErrorDoc;

/// Long enough for a log-in on a loaded machine, short enough for a person.
const COME_IN: Duration = Duration::from_secs(30);
const ANSWER: Duration = Duration::from_secs(20);

pub enum Answer {
    Document(serde_json::Value),
    Refused(ErrorDoc),
}

pub struct Link {
    agent: Agent,
    manager: FullJid,
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
        // Nothing else is of interest, but the channel must not fill.
        tokio::spawn(async move { while events.recv().await.is_some() {} });
        Ok(Self { agent, manager })
    }

    pub async fn ask(&self, question: &Command) -> Result<Answer> {
        let to = Jid::from(self.manager.clone());
        let reply = match question {
            Command::Submit(xml) => self.agent.iq_set(to, xml.parse::<Element>()?, ANSWER).await,
            Command::Cancel(id) => self.agent.iq_set(to, shell::query("cancel", Some(id)), ANSWER).await,
            Command::Status(id) => self.agent.iq_get(to, shell::query("status", Some(id)), ANSWER).await,
            Command::Jobs => self.agent.iq_get(to, shell::query("jobs", None), ANSWER).await,
            Command::Domains => self.agent.iq_get(to, shell::query("domains", None), ANSWER).await,
            Command::Help => self.agent.iq_get(to, shell::query("help", None), ANSWER).await,
        };
        let payload = match reply {
            Ok(payload) => payload.context("the cluster manager answered nothing")?,
            Err(IqFailure::Timeout) => bail!("the cluster manager did not answer within {} s", ANSWER.as_secs()),
            Err(failure) => bail!("ask the cluster manager: {failure}"),
        };
        let value: serde_json::Value = serde_json::from_str(&payload.text()).context("understand the answer")?;
        match value.get("error").filter(|_| value.get("id").is_none()) {
            Some(error) => Ok(Answer::Refused(serde_json::from_value(error.clone())?)),
            None => Ok(Answer::Document(value)),
        }
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
            AgentEvent::Occupant { room: of, nick, real: Some(real), affiliation, available: true, .. }
                if of == *room && nick == "active" && matches!(affiliation.as_str(), "owner" | "admin") =>
            {
                return Ok(real);
            }
            _ => {}
        }
    }
    bail!("the connection ended")
}
