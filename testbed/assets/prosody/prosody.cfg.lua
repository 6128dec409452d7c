-- One domain's XMPP server, for Prosody 0.12 (Debian bookworm). The @WORDS@ are filled in by testbed/src/prosody.rs.
-- ---- process
@RUN_AS_ROOT@
pidfile      = "@DIR@/prosody.pid"
data_path    = "@DIR@/data"
plugin_paths = { "@DIR@/plugins" }
log          = { info = "@DIR@/prosody.log" }
gc           = { mode = "incremental"; threshold = 400; speed = 250 } -- default 105 and 500: half of the time goes into collecting

-- ---- network: this address and nothing else
interfaces = { "@IP@" }
local_interfaces = { "@IP@" }
http_interfaces = { "@IP@" }
https_interfaces = { "@IP@" }
use_ipv6 = false
c2s_ports = { @C2S@ }
c2s_direct_tls_ports = { @C2S_TLS@ }
s2s_ports = { @S2S@ }
http_ports = { @HTTP@ }
https_ports = { @HTTPS@ }
network_settings = {
	nagle = false;       -- else 44 ms per IQ with stream management
	read_timeout = 10;   -- default 840 s: how long a hung peer stays unnoticed
	send_timeout = 15;
	tcp_backlog = 511;   -- many agents come back at once after a restart
}

-- ---- other domains: a fixed map, and no DNS at all
s2s_peers = { @PEERS@ }
unbound = { resolvconf = false; hoststxt = false; options = { ["local-zone:"] = ". static" } }

-- ---- modules
modules_enabled = {
	"disco"; "roster"; "saslauth"; "tls"; "smacks"; "ping"; "posix"; "limits"; "time"; "version"; "uptime";
	"websocket"; "s2s_bidi"; "s2s_peers";
}
modules_disabled = { "offline" } -- a message to nobody is an error, not mail

-- ---- security
authentication = "internal_hashed"
password_hash = "SHA-256"
-- PLAIN stays offered, inside TLS only: Debian's go-sendxmpp knows nothing else. Our agents use SCRAM or fail.
allow_registration = false
c2s_require_encryption = true
s2s_require_encryption = true
s2s_secure_auth = true            -- by certificate; no dialback
ssl = { cafile = "@DIR@/certs/ca.crt"; capath = false; protocol = "tlsv1_2+"; certificate = "@DIR@/certs/@DOMAIN@.crt"; key = "@DIR@/certs/@DOMAIN@.key" }
consider_websocket_secure = true  -- ws:// is served on loopback only

-- ---- limits: an agent refuses to send a stanza above 200 kB, so that these never cut a link
limits = { c2s = { rate = "10mb/s"; burst = "2s" }; s2sin = { rate = "50mb/s"; burst = "2s" } }
c2s_stanza_size_limit = 1024 * 1024
s2s_stanza_size_limit = 1024 * 1024

-- ---- stream management
smacks_hibernation_time = 10      -- how long a dead process still looks alive (default 600 s)
smacks_max_unacked_stanzas = 5
smacks_max_old_sessions = 1

VirtualHost "@DOMAIN@"

Component "conference.@DOMAIN@" "muc"
	modules_enabled = { "starling_rooms" }
	storage = "memory"            -- no room outlives the server: its members make it again
	admins = { @ADMINS@ }         -- owners of every room, whoever came first
	starling_rooms = { @ROOMS@ }
	muc_room_locking = false
	muc_tombstones = false
	muc_room_cache_size = 1000
	muc_room_default_public = false
	muc_room_default_public_jids = true -- everybody sees who everybody is
	muc_room_default_persistent = false
	muc_room_default_history_length = 0
	muc_room_default_change_subject = false
