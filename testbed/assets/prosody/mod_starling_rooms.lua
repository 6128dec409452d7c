-- The only rooms there are, each made as configured by whoever comes first: never locked, never open by mistake, never the
-- first comer's own. Owners are the component's admins.
--   starling_rooms = {
--     shell = { domain = "a.test" };                          -- accounts of this domain, and who an owner makes a member
--     federation = { members_only = true; members = { "cm1@b.test" } };
--     cluster = { domain = "a.test"; moderators_only = true };-- presence of moderators only: N agents cost N, not N^2
--   }
local st = require "util.stanza";
local jid_split = require "util.jid".split;
local jid_bare = require "util.jid".bare;
local jid_host = require "util.jid".host;

local rooms = module:get_option("starling_rooms", {});

local function wanted(room)
	return rooms[(jid_split(room.jid))];
end

local function refuse(event, kind, condition, text)
	event.origin.send(st.error_reply(event.stanza, kind, condition, text, event.room.jid));
	return true;
end

module:hook("muc-room-pre-create", function (event)
	if not wanted(event.room) then
		return refuse(event, "cancel", "not-allowed", "no such room, and none is made here");
	end
end, 100);

-- After the component's own defaults, and before the first comer is judged.
module:hook("muc-room-pre-create", function (event)
	local room = event.room;
	local want = wanted(room);
	room:set_affiliation(true, jid_bare(event.stanza.attr.from), nil); -- Prosody has just made the first comer its owner
	room:set_members_only(want.members_only or false);
	for _, jid in ipairs(want.members or {}) do
		room:set_affiliation(true, jid, "member");
	end
	if want.moderators_only then
		room:set_presence_broadcast({ moderator = true; participant = false; visitor = false; none = false });
	end
end, -100);

module:hook("muc-occupant-pre-join", function (event)
	local want = wanted(event.room);
	local from = event.stanza.attr.from;
	if want and want.domain and jid_host(from) ~= want.domain and not event.room:get_affiliation(from) then
		return refuse(event, "auth", "registration-required", "for accounts of "..want.domain);
	end
end, 5);
