"use strict";
// Plays a SMIL sequence of fragmented MP4 objects without gaps: every object is cut into its fragments, which go to one
// SourceBuffer a track, at the times they carry. The SMIL is read again while its job runs, so that a film can be
// watched from its first part on.

const AHEAD_S = 45; // fetched before it is needed
const BEHIND_S = 300; // kept after it was shown, to go back without fetching
const POLL_MS = 1000; // how often an unfinished SMIL is read again
const TRIES = 4; // of a fetch that failed for the moment

const ui = Object.fromEntries(["title", "video", "message", "how", "quality", "facts", "open"].map((id) => [id, document.getElementById(id)]));
const video = ui.video;

// ---------------------------------------------------------------- SMIL

/** Clock values of SMIL 3.0: `10s`, `1.5min`, `npt=10s`, `00:00:10`; seconds, or NaN. */
function clock(text) {
  if (!text) return NaN;
  const value = text.trim().replace(/^npt=/, "");
  if (value.includes(":")) return value.split(":").reduce((sum, field) => sum * 60 + Number(field), 0);
  const [, number, unit] = /^([\d.]+)(h|min|s|ms)?$/.exec(value) ?? [];
  return Number(number) * { h: 3600, min: 60, s: 1, ms: 0.001 }[unit ?? "s"];
}

/** What to play: `{title, parts, total, sound, complete, seconds, tracks: {video: [item], audio: [item]}}`,
    an item being `{begin, dur, choices: [{src, type, title, bitrate}]}`. */
function readSmil(text, url) {
  const xml = new DOMParser().parseFromString(text, "application/xml");
  const root = xml.documentElement;
  if (xml.querySelector("parsererror") || root.localName !== "smil") throw new Error("This is not a SMIL document.");
  const meta = (name) => [...root.getElementsByTagName("meta")].find((m) => m.getAttribute("name") === name)?.getAttribute("content");
  const metaBase = [...root.getElementsByTagName("meta")].map((m) => m.getAttribute("base")).find(Boolean);
  const base = new URL(root.getAttribute("xml:base") ?? meta("base") ?? metaBase ?? "", url);
  const tracks = { video: [], audio: [] };

  const choice = (node) => ({
    src: new URL(node.getAttribute("src"), base).href,
    type: node.getAttribute("type") ?? "",
    title: node.getAttribute("title") ?? "",
    bitrate: Number(node.getAttribute("systemBitrate") ?? node.getAttribute("system-bitrate") ?? 0),
  });
  const media = (nodes, begin) => {
    const at = begin + (clock(nodes[0].getAttribute("begin")) || 0);
    const dur = clock(nodes[0].getAttribute("dur"));
    const track = nodes[0].localName === "audio" ? tracks.audio : tracks.video;
    track.push({ begin: at, dur, choices: nodes.map(choice) });
    return at + (dur || 0);
  };
  const isMedia = (node) => ["video", "audio", "ref"].includes(node.localName) && node.hasAttribute("src");
  // Returns when the node ends.
  const walk = (node, begin) => {
    const children = [...node.children];
    if (isMedia(node)) return media([node], begin);
    if (node.localName === "switch") {
      const choices = children.filter(isMedia);
      return choices.length ? media(choices, begin) : children.length ? walk(children[0], begin) : begin;
    }
    if (node.localName === "par") {
      const ends = children.map((child) => walk(child, begin));
      return begin + (clock(node.getAttribute("dur")) || Math.max(0, ...ends.map((end) => end - begin)));
    }
    return children.reduce((end, child) => walk(child, end), begin); // seq, body
  };
  const body = root.getElementsByTagName("body")[0];
  const seconds = body ? walk(body, 0) : 0;
  const [parts, total] = (meta("starling-parts") ?? "").split("/").map(Number);
  const sound = meta("starling-sound");
  return {
    title: meta("title") ?? "",
    ours: total > 0,
    parts: parts || tracks.video.length,
    total: total || tracks.video.length,
    sound,
    complete: !(total > 0) || (parts === total && sound !== "pending"),
    seconds,
    tracks,
  };
}

// ---------------------------------------------------------------- fetching

class Stopped extends Error {}

const pause = (ms) => new Promise((done) => setTimeout(done, ms));

function refusal(status) {
  if (status === 403) return "The store refuses access (403): the link may have expired, or the bucket is not open to readers.";
  if (status === 404) return "The store has no such object (404).";
  return `The server answered ${status}.`;
}

/** GET that is patient with lost connections and with a busy server. */
async function get(url, options, signal) {
  for (let attempt = 1; ; attempt++) {
    let problem;
    try {
      const response = await fetch(url, { ...options, signal });
      if (response.ok) return response;
      problem = new Error(`${refusal(response.status)} ${shown(url)}`);
      if (response.status < 500 && response.status !== 429) throw Object.assign(problem, { final: true });
    } catch (error) {
      if (signal?.aborted) throw new Stopped();
      if (error.final) throw error;
      problem ??= new Error(`No connection, or the store does not let pages of other sites read (CORS). ${shown(url)}`);
    }
    if (attempt >= TRIES) throw problem;
    await pause(250 * 2 ** attempt);
  }
}

/** A URL without what may be a signature. */
const shown = (url) => String(url).split("?")[0];

// ---------------------------------------------------------------- boxes (ISO/IEC 14496-12)

function* boxes(bytes, from = 0, to = bytes.length) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  for (let at = from; at + 8 <= to; ) {
    let size = view.getUint32(at);
    let head = 8;
    if (size === 1 && at + 16 <= to) [size, head] = [Number(view.getBigUint64(at + 8)), 16];
    if (size === 0) size = to - at;
    if (size < head) return;
    yield { type: String.fromCharCode(...bytes.subarray(at + 4, at + 8)), at, size, body: at + head, end: Math.min(at + size, to) };
    at += size;
  }
}

function find(bytes, ...path) {
  let [from, to] = [0, bytes.length];
  let box;
  for (const type of path) {
    box = [...boxes(bytes, from, to)].find((candidate) => candidate.type === type);
    if (!box) return null;
    [from, to] = [box.body, box.end];
  }
  return box;
}

const view = (bytes, box) => new DataView(bytes.buffer, bytes.byteOffset + box.body, box.end - box.body);

function timescale(init) {
  const mdhd = find(init, "moov", "trak", "mdia", "mdhd");
  if (!mdhd) throw new Error("The object is not a fragmented MP4.");
  const data = view(init, mdhd);
  return data.getUint32(data.getUint8(0) === 1 ? 20 : 12);
}

function decodeTime(fragment) {
  const tfdt = find(fragment, "moof", "traf", "tfdt");
  if (!tfdt) return 0;
  const data = view(fragment, tfdt);
  return data.getUint8(0) === 1 ? Number(data.getBigUint64(4)) : data.getUint32(4);
}

/** Cuts a stream of an fMP4 object into `{init}` and then `{fragment}`s, each a Uint8Array. */
async function* cut(reader) {
  let held = new Uint8Array(0);
  let ready = 0; // bytes of whole boxes at the start of `held` which wait for their mdat or moof
  let started = false;
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    const joined = new Uint8Array(held.length + value.length);
    joined.set(held);
    joined.set(value, held.length);
    held = joined;
    for (;;) {
      const box = boxes(held, ready).next().value;
      if (!box) break;
      if (box.type === "moof" && !started) {
        yield { init: held.slice(0, box.at) };
        [held, ready, started] = [held.slice(box.at), 0, true];
        continue;
      }
      if (box.at + box.size > held.length) break;
      ready = box.at + box.size;
      if (box.type === "mdat" && started) {
        yield { fragment: held.slice(0, ready) };
        [held, ready] = [held.slice(ready), 0];
      }
    }
  }
  if (!started) throw new Error("The object is not a fragmented MP4.");
}

/** MIME type with codecs, read from the object where the SMIL does not say. */
async function mime(item, kind) {
  const { type, src } = item.choices[0];
  if (/codecs=/.test(type)) return type.replace(/codecs=([^";]+)/, 'codecs="$1"');
  const response = await get(src, { headers: { Range: "bytes=0-65535" } });
  const head = new Uint8Array(await response.arrayBuffer());
  const text = new TextDecoder("latin1").decode(head);
  const avc = text.indexOf("avcC");
  const hex = (n) => head[n].toString(16).padStart(2, "0");
  const codec = kind === "audio" ? "mp4a.40.2" : avc < 0 ? null : `avc1.${hex(avc + 5)}${hex(avc + 6)}${hex(avc + 7)}`;
  if (!codec) throw new Error(`No codec that this page knows. ${shown(src)}`);
  return `${kind}/mp4; codecs="${codec}"`;
}

// ---------------------------------------------------------------- playing

/** A condition variable: everybody who waits goes on when something has changed. */
class Bell {
  #waiting = [];
  ring() {
    for (const done of this.#waiting.splice(0)) done();
  }
  wait() {
    return new Promise((done) => this.#waiting.push(done));
  }
}

const once = (target, event) => new Promise((done) => target.addEventListener(event, done, { once: true }));

/** End of the buffered run around `time`, or `time` itself. */
function reach(buffered, time) {
  for (let n = 0; n < buffered.length; n++) {
    if (buffered.start(n) - 0.1 <= time && time < buffered.end(n)) return buffered.end(n);
  }
  return time;
}

class Player {
  constructor(film, fail) {
    this.film = film;
    this.fail = fail;
    this.quality = 0;
    this.bell = new Bell();
    this.feeders = [];
    this.closed = false;
  }

  /** Attaches a fresh MediaSource and feeds it from `time` on. */
  async open(time) {
    this.source = new MediaSource();
    const url = URL.createObjectURL(this.source);
    const opened = once(this.source, "sourceopen");
    video.src = url;
    await opened;
    URL.revokeObjectURL(url);
    for (const kind of ["video", "audio"]) {
      const items = this.film.tracks[kind];
      if (!items.length) continue;
      const type = await mime(items[0], kind);
      if (this.closed) return;
      if (!MediaSource.isTypeSupported(type)) throw new Error(`This browser cannot play ${type}.`);
      this.feeders.push(new Feeder(this, kind, this.source.addSourceBuffer(type)));
    }
    if (!this.feeders.length) throw new Error("There is nothing to play in this SMIL document.");
    this.grow();
    if (time > 0) video.currentTime = time;
    this.start(time);
    video.addEventListener("seeking", (this.onSeek = () => this.start(video.currentTime)));
    video.addEventListener("timeupdate", (this.onTime = () => this.bell.ring()));
  }

  start(time) {
    for (const feeder of this.feeders) feeder.start(time);
  }

  close() {
    this.closed = true;
    for (const feeder of this.feeders) feeder.stop();
    video.removeEventListener("seeking", this.onSeek);
    video.removeEventListener("timeupdate", this.onTime);
  }

  /** The SMIL was read again. */
  update(film) {
    this.film = film;
    this.grow();
    this.bell.ring();
  }

  grow() {
    const busy = this.feeders.some((feeder) => feeder.buffer.updating);
    if (this.source.readyState !== "open" || busy || !this.film.seconds) return;
    if (!(this.source.duration >= this.film.seconds)) this.source.duration = this.film.seconds;
  }

  /** All feeders have given all there is and will ever be. */
  end() {
    const over = this.film.complete && this.feeders.every((feeder) => feeder.fed >= feeder.items.length && !feeder.buffer.updating);
    if (over && this.source.readyState === "open") this.source.endOfStream();
  }
}

class Feeder {
  constructor(player, kind, buffer) {
    Object.assign(this, { player, kind, buffer, fed: 0, control: null, last: Promise.resolve() });
  }

  get items() {
    return this.player.film.tracks[this.kind];
  }

  stop() {
    this.control?.abort();
    this.player.bell.ring();
  }

  /** Feeds from `time` on, or from where the data that is already there ends. */
  start(time) {
    this.stop();
    const control = (this.control = new AbortController());
    this.fed = 0;
    this.last = this.last.then(() => this.run(time, control.signal)).catch((error) => {
      if (!(error instanceof Stopped) && !control.signal.aborted) this.player.fail(error);
    });
  }

  async run(time, signal) {
    const from = reach(this.buffer.buffered, time);
    let n = this.items.findLastIndex((item) => item.begin <= from + 0.001);
    for (n = Math.max(n, 0); !signal.aborted; ) {
      if (n < this.items.length) {
        await this.room(signal);
        await this.item(this.items[n++], from, signal);
        continue;
      }
      // Counted, not flagged: the film may have grown by the time another feeder asks.
      this.fed = n;
      this.player.end();
      await this.player.bell.wait();
    }
  }

  /** Waits until less than enough is buffered, and forgets what is long past. */
  async room(signal) {
    const { buffer } = this;
    while (!signal.aborted && reach(buffer.buffered, video.currentTime) - video.currentTime > AHEAD_S) await this.player.bell.wait();
    if (signal.aborted) throw new Stopped();
    const old = video.currentTime - BEHIND_S;
    if (buffer.buffered.length && buffer.buffered.start(0) < old - 30) await this.remove(old);
  }

  async remove(until) {
    this.buffer.remove(0, until);
    await once(this.buffer, "updateend");
  }

  /** One object: its init segment, then those of its fragments that reach beyond `from`. */
  async item(item, from, signal) {
    const { src } = item.choices[Math.min(this.player.quality, item.choices.length - 1)];
    const response = await get(src, {}, signal);
    const reader = response.body.getReader();
    let scale = 1;
    let shift = null;
    let kept = null; // appended when the next is known to start after `from`
    try {
      for await (const { init, fragment } of cut(reader)) {
        if (init) {
          scale = timescale(init);
          await this.append(init, signal);
          continue;
        }
        const time = decodeTime(fragment) / scale;
        if (shift === null) {
          // Chunks of others may count from 0 each.
          shift = Math.abs(time - item.begin) > 1 ? item.begin - time : 0;
          if (shift !== this.buffer.timestampOffset) this.buffer.timestampOffset = shift;
        }
        if (kept && time + shift > from) await this.append(kept, signal);
        kept = fragment;
        if (time + shift > from) {
          await this.append(kept, signal);
          kept = null;
          await this.room(signal);
        }
      }
      if (kept) await this.append(kept, signal);
    } catch (error) {
      if (signal.aborted) throw new Stopped();
      throw error;
    } finally {
      reader.cancel().catch(() => {});
    }
  }

  async append(bytes, signal) {
    if (signal.aborted) throw new Stopped();
    for (;;) {
      try {
        this.buffer.appendBuffer(bytes);
        break;
      } catch (error) {
        if (error.name !== "QuotaExceededError") throw error;
        const old = Math.max(0, video.currentTime - 10);
        if (this.buffer.buffered.length && this.buffer.buffered.start(0) < old - 1) await this.remove(old);
        else await this.player.bell.wait();
        if (signal.aborted) throw new Stopped();
      }
    }
    await once(this.buffer, "updateend");
    if (video.error) throw new Error(video.error.message);
    this.player.grow();
  }
}

// ---------------------------------------------------------------- the page

/** What tests and curious people read from outside. */
const starling = (window.starling = { state: "opening", error: null, stalls: 0, slow: 0, parts: 0, total: 0 });
let player = null;
let begun = false;

function say(state, text) {
  starling.state = state;
  ui.message.textContent = text;
  ui.message.className = state === "failed" ? "error" : "";
}

function fail(error) {
  starling.error = error.message;
  player?.close();
  say("failed", error.message);
}

function facts() {
  const { totalVideoFrames = 0, droppedVideoFrames = 0 } = video.getVideoPlaybackQuality?.() ?? {};
  const parts = starling.total ? `${starling.parts} of ${starling.total} parts · ` : "";
  ui.facts.textContent = `${parts}${totalVideoFrames} frames, ${droppedVideoFrames} dropped · ${starling.stalls} stalls`;
}

function describe(film) {
  Object.assign(starling, { parts: film.parts, total: film.total });
  ui.title.textContent = film.title || "Untitled film";
  document.title = film.title ? `${film.title} – Starling` : "Starling player";
  const names = film.tracks.video[0]?.choices.map((choice, n) => choice.title || `choice ${n + 1}`) ?? [];
  if (ui.quality.length !== names.length) ui.quality.replaceChildren(...names.map((name, n) => new Option(name, n)));
  ui.quality.disabled = names.length < 2;
  facts();
}

async function readFilm(url) {
  const response = await get(url, { cache: "no-store" });
  return readSmil(await response.text(), response.url);
}

async function playSmil(url) {
  if (!window.MediaSource) throw new Error("This browser has no Media Source Extensions; choose HLS if it is offered.");
  let film = await readFilm(url);
  describe(film);
  player = new Player(film, fail);
  await player.open(0);
  say("ready", film.complete ? "Ready." : "Ready; the job is still running, and the film grows while you watch.");
  video.play().catch(() => say("ready", "Press play."));
  while (!film.complete && !player.closed) {
    await pause(POLL_MS);
    if (player.closed) return;
    film = await readFilm(url);
    describe(film);
    if (film.tracks.audio.length && player.feeders.length === 1) {
      // A MediaSource takes no further track once it plays.
      const [time, playing, quality] = [video.currentTime, !video.paused, player.quality];
      player.close();
      player = new Player(film, fail);
      player.quality = quality;
      await player.open(time);
      if (playing) video.play().catch(() => {});
    } else {
      player.update(film);
    }
  }
}

const ways = {
  smil: { name: "SMIL (parts joined by this page)", go: playSmil },
  hls: {
    name: "HLS (the browser's own)",
    go: async (url) => {
      video.src = new URL("master.m3u8", url).href;
      video.play().catch(() => say("ready", "Press play."));
    },
  },
};

function main() {
  const given = new URLSearchParams(location.search).get("smil");
  if (!given) {
    ui.open.hidden = false;
    say("ready", "Which film? Give the URL of a SMIL file.");
    return;
  }
  const url = new URL(given, location.href);
  if (!/^https?:$/.test(url.protocol)) return fail(new Error("Only http and https URLs are played."));
  const native = video.canPlayType("application/vnd.apple.mpegurl") !== "";
  for (const [key, way] of Object.entries(ways)) if (key === "smil" || native) ui.how.add(new Option(way.name, key));
  ui.how.value = window.MediaSource || !native ? "smil" : "hls";
  const go = () => {
    player?.close();
    player = null;
    begun = false;
    Object.assign(starling, { error: null, stalls: 0, slow: 0 });
    say("opening", "Opening.");
    ways[ui.how.value].go(url).catch(fail);
  };
  ui.how.addEventListener("change", go);
  ui.quality.addEventListener("change", () => {
    if (!player) return;
    player.quality = Number(ui.quality.value);
    player.start(reach(video.buffered, video.currentTime));
  });
  go();
}

video.addEventListener("playing", () => {
  begun = true;
  say("playing", "Playing.");
});
video.addEventListener("pause", () => starling.state === "playing" && say("paused", "Paused."));
video.addEventListener("ended", () => say("ended", "The end."));
video.addEventListener("waiting", () => {
  if (!begun || video.seeking || video.ended) return;
  if (reach(video.buffered, video.currentTime) - video.currentTime > 0.1) {
    starling.slow += 1; // the data is there; the machine is too busy to decode it
    return;
  }
  starling.stalls += 1;
  const growing = player && !player.film.complete;
  say("waiting", growing ? `Waiting for part ${player.film.parts + 1} of ${player.film.total}.` : "Waiting for data.");
});
video.addEventListener("error", () => video.error && fail(new Error(`The browser cannot play this: ${video.error.message || video.error.code}`)));
setInterval(facts, 500);
main();
