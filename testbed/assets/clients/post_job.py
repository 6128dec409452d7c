#!/usr/bin/env python3
"""Posts a job to a Shell room as any XMPP client would, with slixmpp, and prints what is answered.

One line per answer: the sender, a tab, the text (or the payload as XML). Exit code 0 when --until was seen or the wait is over,
1 when the room could not be entered or the server cut us off.
"""
import argparse
import asyncio
import ssl
import sys
import xml.etree.ElementTree as ET

import slixmpp
from slixmpp.xmlstream.handler import Callback
from slixmpp.xmlstream.matcher import MatchXPath


class Poster(slixmpp.ClientXMPP):
    def __init__(self, args, password):
        super().__init__(args.jid, password)
        self.args = args
        self.ca_certs = args.ca
        self.code = 1
        self.answered = False
        self.done = asyncio.get_event_loop().create_future()
        self.register_plugin("xep_0045")
        self.add_event_handler("session_start", self.start)
        # Not slixmpp's groupchat_message, nor its message: both leave out what has no text for people.
        self.register_handler(Callback("any message", MatchXPath("{jabber:client}message"), self.answer))
        self.add_event_handler("disconnected", self.cut_off)
        self.add_event_handler("failed_auth", lambda _: self.finish("authentication failed"))

    def finish(self, why=None):
        if why:
            print(why, file=sys.stderr)
        if not self.done.done():
            self.done.set_result(None)

    def cut_off(self, _):
        if not self.done.done():
            self.code = 1
            self.finish("cut off by the server")

    async def start(self, _):
        self.send_presence()
        try:
            await self.plugin["xep_0045"].join_muc_wait(self.args.room, self.args.nick, maxstanzas=0, timeout=15)
        except Exception as error:
            return self.finish(f"cannot enter {self.args.room}: {error!r}")
        self.code = 0
        text = open(self.args.job).read()
        message = self.make_message(mto=self.args.room, mtype="groupchat", mbody=None if self.args.payload else text)
        if self.args.payload:
            message.append(ET.fromstring(text))
        message.send()
        asyncio.get_event_loop().call_later(self.args.wait, self.finish)

    def answer(self, message):
        if message["type"] == "groupchat" and message["mucnick"] == self.args.nick:
            return
        payloads = [ET.tostring(e, encoding="unicode") for e in message.xml if not e.tag.startswith("{jabber:client}")]
        line = message["body"] or " ".join(payloads)
        if line:
            print(f"{message['from']}\t{line}", flush=True)
        # A room's subject and others' jobs are no answer. An end told before it is of another session's job: the account is
        # the same.
        self.answered |= message["type"] == "groupchat" and bool(line) and "urn:starling:job" not in line
        if self.answered and self.args.until and self.args.until in line:
            self.finish()


async def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jid", required=True)
    parser.add_argument("--password-file", required=True)
    parser.add_argument("--server", required=True, metavar="HOST:PORT", help="STARTTLS")
    parser.add_argument("--ca", required=True, help="PEM file of the CA to trust")
    parser.add_argument("--room", required=True)
    parser.add_argument("--nick", default="slixmpp")
    parser.add_argument("--job", required=True, help="file with the XML")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--payload", action="store_true", help="as an element of its own")
    how.add_argument("--text", action="store_true", help="pasted as text (default)")
    parser.add_argument("--wait", type=float, default=10, help="seconds to listen for answers")
    parser.add_argument("--until", help="stop as soon as an answer contains this, once the room has answered")
    args = parser.parse_args()
    with open(args.password_file) as file:
        password = file.readline().rstrip("\n")
    host, port = args.server.rsplit(":", 1)
    poster = Poster(args, password)
    connected = poster.connect(host, int(port))
    if asyncio.iscoroutine(connected):
        await connected
    try:
        await asyncio.wait_for(poster.done, args.wait + 30)
    finally:
        await poster.disconnect(wait=1)
    return poster.code


sys.exit(asyncio.run(main()))
