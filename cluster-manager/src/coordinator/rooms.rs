//! What the rooms and the peers say: who is there, whom to believe, and where each request goes.
//!
//! A room shows real JIDs, and only those count. Obeyed are: in the Federation room, occupants with an affiliation whose ad names
//! their own domain; in the Shell room, accounts of this domain and members of the room; as host managers, the accounts
//! that the configuration names. Anybody else is refused and nothing of what they say is kept.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use federation::cluster::{Host, Manager, Status};
use federation::domain::Input;
use federation::event::Mark;
use federation::id::DomainId;
use federation::message::{self, Ad, Envelope};
use federation::xmpp::{AgentEvent, BareJid, Condition, FullJid, Jid, MessageKind, Responder};
use tracing::{debug, info, warn};
use xmpp_parsers::minidom::Element;
use xmpp_parsers::minidom::rxml::{Namespace, xml_ncname};

use super::{Coordinator, Peer, now};
use crate::config::Config;
use crate::hosts::TaskId;
use crate::paste::Pastes;
use crate::shell::{self, Command};

/// The nickname that only one account can hold: the lock of the active cluster manager.
const ACTIVE: &str = "active";

pub struct Rooms {
    pub cluster: BareJid,
    pub shell: BareJid,
    pub federation: BareJid,
    joined: BTreeSet<BareJid>,
    /// Who is behind a nickname of the Shell room, and whether they may ask.
    clients: BTreeMap<String, (FullJid, bool)>,
    /// Jobs that clients are saying line by line.
    pastes: Pastes,
}

impl Rooms {
    pub fn new(config: &Config) -> Result<Self> {
        let room = |name: &str| name.parse::<BareJid>().with_context(|| format!("{name} is not a room"));
        Ok(Self {
            cluster: room(&config.rooms.cluster)?,
            shell: room(&config.rooms.shell)?,
            federation: room(&config.rooms.federation)?,
            joined: BTreeSet::new(),
            clients: BTreeMap::new(),
            pastes: Pastes::default(),
        })
    }

    pub fn all_joined(&self) -> bool {
        [&self.cluster, &self.shell, &self.federation].iter().all(|room| self.joined.contains(*room))
    }

    fn is_ours(&self, room: &BareJid, domain: &str) -> bool {
        room.domain().as_str().strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    }
}

fn is_affiliated(affiliation: &str) -> bool {
    matches!(affiliation, "owner" | "admin" | "member")
}

/// A message. One whose envelope alone is understood becomes one that is no request, and so gets the answer of those.
fn read(payload: Element) -> Result<Envelope, impl std::fmt::Display> {
    let mut verbless = Element::bare("not-understood", message::NS);
    verbless.attrs_mut().clone_from(payload.attrs());
    verbless.attrs_mut().insert(Namespace::NONE, xml_ncname!("reason").into(), "unknown verb".to_owned());
    Envelope::try_from(payload).or_else(|error| Envelope::try_from(verbless).map_err(|_| error))
}

impl Coordinator {
    /// Claims the Cluster room; the others follow once that is held.
    pub(super) async fn enter(&self) {
        let manager = Manager { epoch: self.epoch };
        self.join(&self.rooms.cluster, ACTIVE, Some(manager.into())).await;
    }

    async fn join(&self, room: &BareJid, nick: &str, payload: Option<Element>) {
        if let Err(error) = self.agent.join(room, nick, payload).await {
            self.report("join a room", &error);
        }
    }

    pub(super) async fn on_agent(&mut self, event: AgentEvent) -> Result<()> {
        match event {
            AgentEvent::Online { jid, fresh } => info!(%jid, fresh, "online"),
            AgentEvent::Offline => info!("offline"),
            AgentEvent::AuthFailed(why) => warn!(%why, "the XMPP server refuses our account"),
            AgentEvent::ConnectFailed { error, retry_in } => warn!(%error, ?retry_in, "no connection"),
            AgentEvent::RoomJoined { room, .. } => self.on_joined(room).await,
            AgentEvent::RoomLost { room, why } => {
                warn!(%room, %why, "not in the room");
                self.rooms.joined.remove(&room);
            }
            AgentEvent::Occupant { room, nick, real, affiliation, available, payloads, own, .. } if !own => {
                if room == self.rooms.federation {
                    self.on_federation(real, &affiliation, available, &payloads)?;
                } else if room == self.rooms.shell {
                    self.on_shell_occupant(nick, real, &affiliation, available);
                }
            }
            AgentEvent::Occupant { .. } => {}
            AgentEvent::DirectedPresence { from, available, payloads } => self.on_host(from, available, &payloads)?,
            AgentEvent::Message { room: Some(room), from, kind: MessageKind::Groupchat, body, payloads, delayed }
                if room == self.rooms.shell && !delayed =>
            {
                self.on_shell_message(&from, body.as_deref(), &payloads).await?;
            }
            AgentEvent::Message { .. } => {}
            AgentEvent::Request { from, set, payload, reply } => self.on_request(from, set, payload, reply).await?,
            AgentEvent::Ended => warn!("the XMPP session was closed"),
        }
        Ok(())
    }

    async fn on_joined(&mut self, room: BareJid) {
        info!(%room, "joined");
        if room == self.rooms.cluster {
            self.join(&self.rooms.shell, ACTIVE, None).await;
            let nick = self.me.0.clone();
            // Counted as any other: a later one with the same number would be taken for this one, and not be heard.
            let ad = self.ad();
            self.ad = Some((now(), ad.seq, self.hosts.capacity()));
            self.join(&self.rooms.federation, &nick, Some(ad.into())).await;
        }
        if self.rooms.is_ours(&room, &self.me.0) {
            self.furnish(&room);
        }
        self.rooms.joined.insert(room);
    }

    /// Sets up a room of our own server, in the background: each joining repeats it.
    fn furnish(&self, room: &BareJid) {
        let (agent, room) = (self.agent.clone(), room.clone());
        let is_federation = room == self.rooms.federation;
        let members = self.config.rooms.federation_members.clone();
        self.spawn("furnish", async move {
            let members_only = if is_federation { "1" } else { "0" };
            let fields = [("muc#roomconfig_whois", "anyone"), ("muc#roomconfig_membersonly", members_only)];
            if let Err(error) = agent.room_config(&room, &fields).await {
                warn!(%room, %error, "the room could not be set up");
            }
            for member in members.iter().filter(|_| is_federation) {
                let Ok(jid) = member.parse::<BareJid>() else {
                    warn!(member, "not an account; it is not admitted");
                    continue;
                };
                if let Err(error) = agent.set_affiliation(&room, &jid, "member").await {
                    warn!(%jid, %error, "could not be admitted to the Federation room");
                }
            }
        });
    }

    fn on_federation(
        &mut self,
        real: Option<FullJid>,
        affiliation: &str,
        available: bool,
        payloads: &[Element],
    ) -> Result<()> {
        let Some(jid) = real else { return Ok(()) };
        let domain = DomainId(jid.domain().as_str().to_owned());
        if domain == self.me {
            return Ok(());
        }
        if !available {
            if self.peers.get(&domain).is_some_and(|peer| peer.jid == jid) {
                info!(%domain, "left the federation room");
                self.peers.remove(&domain);
                self.step(Input::AdGone(domain))?;
            }
            return Ok(());
        }
        let ad = payloads.iter().find_map(|p| Ad::try_from(p.clone()).ok());
        match ad {
            Some(ad) if ad.domain == domain && is_affiliated(affiliation) => {
                if self.peers.get(&domain).is_none_or(|peer| peer.jid != jid) {
                    info!(%domain, %jid, "in the federation room");
                }
                self.peers.insert(domain, Peer { jid });
                self.step(Input::Ad(ad))
            }
            Some(ad) => {
                warn!(%jid, affiliation, claims = %ad.domain, "an ad that is not believed");
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn on_shell_occupant(&mut self, nick: String, real: Option<FullJid>, affiliation: &str, available: bool) {
        match real {
            Some(jid) if available => {
                let may_ask = jid.domain().as_str() == self.me.0 || is_affiliated(affiliation);
                self.rooms.clients.insert(nick, (jid, may_ask));
            }
            _ => drop(self.rooms.clients.remove(&nick)),
        }
    }

    fn on_host(&mut self, from: Jid, available: bool, payloads: &[Element]) -> Result<()> {
        let Ok(jid) = from.try_into_full() else { return Ok(()) };
        if !self.is_host(&jid) {
            debug!(%jid, "presence of nobody we know");
            return Ok(());
        }
        let host = payloads.iter().find_map(|p| Host::try_from(p.clone()).ok());
        let lost = match host {
            Some(host) if available => self.hosts.announced(now(), jid, host),
            _ if !available => self.hosts.gone(&jid),
            _ => return Ok(()),
        };
        for task in lost {
            self.task_lost(task, "host-gone", "its host manager left")?;
        }
        Ok(())
    }

    fn is_host(&self, jid: &FullJid) -> bool {
        let name = jid.node().map(|n| n.as_str()).unwrap_or_default();
        jid.domain().as_str() == self.me.0
            && self.config.rooms.host_accounts.iter().any(|pattern| match pattern.strip_suffix('*') {
                Some(prefix) => name.starts_with(prefix),
                None => name == pattern,
            })
    }

    async fn on_request(&mut self, from: Jid, set: bool, payload: Element, reply: Responder) -> Result<()> {
        let Ok(jid) = from.try_into_full() else {
            reply.error(Condition::Forbidden, "requests come from full JIDs");
            return Ok(());
        };
        if set && payload.has_ns(federation::message::NS) {
            return self.on_envelope(jid, payload, reply);
        }
        if set && payload.is("status", federation::cluster::NS) {
            return self.on_status(jid, payload, reply);
        }
        let may_ask = jid.domain().as_str() == self.me.0
            || self.rooms.clients.values().any(|(client, may_ask)| *client == jid && *may_ask);
        match shell::from_payload(&payload) {
            _ if !may_ask => reply.error(Condition::Forbidden, "only this domain's clients are answered"),
            Some(command) => {
                let answer = self.command(&jid, command, false).await?;
                reply.result(Some(answer.payload()));
            }
            None => {
                reply.error(Condition::FeatureNotImplemented, "say <query xmlns='urn:starling:shell:1' verb='help'/>")
            }
        }
        Ok(())
    }

    /// Nothing of a flood is read, let alone worked on, until its sender's mark has cooled down.
    fn is_flooding(&self, domain: &DomainId) -> bool {
        let record = self.domain.book().marks.get(domain);
        record.is_some_and(|record| record.mark == Some(Mark::Flooding) && record.until > now())
    }

    fn on_envelope(&mut self, jid: FullJid, payload: Element, reply: Responder) -> Result<()> {
        let domain = DomainId(jid.domain().as_str().to_owned());
        if self.peers.get(&domain).is_none_or(|peer| peer.jid != jid) {
            warn!(%jid, "a request from outside the Federation room is refused");
            reply.error(Condition::Forbidden, "only members of the Federation room are answered");
            return Ok(());
        }
        if self.is_flooding(&domain) {
            reply.error(Condition::ResourceConstraint, "too many requests; come back later");
            return Ok(());
        }
        match read(payload) {
            Ok(envelope) => {
                self.open.insert((domain.clone(), envelope.id.clone()), reply);
                self.step(Input::Request(domain, envelope))?;
            }
            Err(error) => {
                debug!(%jid, %error, "not a message of ours");
                reply.error(Condition::BadRequest, "not understood");
            }
        }
        Ok(())
    }

    fn on_status(&mut self, jid: FullJid, payload: Element, reply: Responder) -> Result<()> {
        let status = Status::try_from(payload).ok().filter(|_| self.is_host(&jid));
        let Some((task, mut status)) = status.and_then(|s| s.task.parse::<TaskId>().ok().map(|task| (task, s))) else {
            reply.error(Condition::Forbidden, "only host managers report tasks");
            return Ok(());
        };
        let ended = matches!(status.state.as_str(), "done" | "failed" | "unknown");
        if !self.hosts.reported(now(), &jid, &task, ended) {
            reply.error(Condition::UnexpectedRequest, "announce yourself first");
            return Ok(());
        }
        if let Some(usage) = status.usage.as_mut().filter(|_| ended) {
            usage.loaded = self.way_of(&task.lease);
            self.met(usage);
        }
        let TaskId { lease, part, attempt } = task;
        self.step(Input::Task { lease, part, attempt, status })?;
        reply.result(None);
        Ok(())
    }

    async fn on_shell_message(&mut self, from: &Jid, body: Option<&str>, payloads: &[Element]) -> Result<()> {
        let nick = from.resource().map(|r| r.as_str()).unwrap_or_default();
        if nick == ACTIVE {
            return Ok(());
        }
        let client = self.rooms.clients.get(nick).cloned();
        let by_payload = payloads.iter().find_map(shell::from_payload);
        let is_program = by_payload.is_some();
        let text = match (body.filter(|_| !is_program), &client) {
            (Some(body), Some((jid, true))) => self.rooms.pastes.heard(now(), jid, body),
            (body, _) => body.map(str::to_owned), // nothing of a stranger is kept
        };
        let Some(command) = by_payload.or_else(|| shell::from_text(&text?)) else { return Ok(()) };
        let Some((jid, true)) = client else {
            warn!(%from, "a stranger in the Shell room is not obeyed");
            return Ok(());
        };
        self.answer_in_room(&jid, command, is_program).await
    }

    /// Says what is wrong with jobs whose lines have stopped coming.
    pub(super) async fn answer_broken_off(&mut self) -> Result<()> {
        for (jid, text) in self.rooms.pastes.broken_off(now()) {
            if let Some(command) = shell::from_text(&text) {
                self.answer_in_room(&jid, command, false).await?;
            }
        }
        Ok(())
    }

    async fn answer_in_room(&mut self, jid: &FullJid, command: Command, is_program: bool) -> Result<()> {
        let answer = self.command(jid, command, true).await?;
        let room = self.rooms.shell.clone();
        let said = if is_program {
            self.agent.groupchat(&room, answer.payload()).await
        } else {
            self.agent.say(&room, &answer.text).await
        };
        if let Err(error) = said {
            self.report("answer in the Shell room", &error);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use federation::message::Body;

    use super::*;

    #[test]
    fn a_message_with_an_unknown_verb_keeps_its_envelope_and_one_without_an_envelope_is_nothing() {
        let said = |id: &str| {
            let xml = format!(
                "<fly xmlns='{}' {id} job='j-1' home='a' epoch='1' seq='2' sent-at='3' expires-at='4' via='a b' high='1'><wing/></fly>",
                message::NS
            );
            read(xml.parse().unwrap())
        };
        let Ok(envelope) = said("id='b-1'") else { panic!("not read") };
        assert_eq!((&envelope.id.0[..], envelope.seq, envelope.path.len()), ("b-1", 2, 2));
        assert!(matches!(envelope.body, Body::NotUnderstood(_)));
        assert!(said("").is_err());
    }
}
