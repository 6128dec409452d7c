-- Where other domains' servers are, without DNS:
--   s2s_peers = { ["b.test"] = { "127.0.0.3", 15269 }; ["conference.b.test"] = { "127.0.0.3", 15269 } }
-- Certificates are verified as usual. Prosody 13.0 has an event for this (s2sout-pre-connect); 0.12 has none, so the
-- resolver's constructor is wrapped.
module:set_global();

local service = require "net.resolvers.service";
local basic = require "net.resolvers.basic";

local nothing = { next = function (_, callback) callback(nil); end };
local original = service.new;

function service.new(hostname, name, conn_type, extra)
	local peer = module:get_option("s2s_peers", {})[hostname];
	if not peer then return original(hostname, name, conn_type, extra); end
	if name ~= "xmpp-server" then return nothing; end -- STARTTLS only
	return basic.new(peer[1], peer[2], conn_type, extra);
end

function module.unload()
	service.new = original;
end
