"use strict";
// The console: domains with what they advertise, jobs with one cell a part, loads with their nodes. Reads `/api/domains`, `/api/jobs`,
// `/api/jobs/{id}` and `/api/loads`; text from there only ever becomes text, never markup.

const PERIOD_MS = 1000;
const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#56b4e9", "#5d3a9b", "#777777"]; // after Okabe and Ito
const KEPT = new Set(["uploaded", "verified", "done"]);
const OVER = new Set(["done", "complete", "failed", "cancelled"]);
const colours = new Map();

/** The same colour for a domain in every job. */
function colour(domain) {
  if (!colours.has(domain)) colours.set(domain, COLOURS[colours.size % COLOURS.length]);
  return colours.get(domain);
}

/** An element with attributes and children; strings become text. */
function make(name, attributes = {}, ...children) {
  const node = Object.assign(document.createElement(name), attributes);
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

async function ask(path) {
  const response = await fetch(path, { cache: "no-store" });
  if (!response.ok) throw new Error(`${path} answered ${response.status}`);
  return response.json();
}

const list = (answer, name) => (Array.isArray(answer) ? answer : answer?.[name] ?? []);

function domainsTable(domains) {
  if (!domains.length) return make("p", { className: "quiet" }, "No domain has joined the Federation room yet.");
  const columns = [["name", "Domain"], ["health", "Health"], ["slots_free", "Free slots"], ["slots", "Slots"], ["price", "Price of a part"], ["version", "Version"], ["marks", "Held against it"]];
  return table(columns, domains, (domain, key) => (key === "name" && domain.home ? `${domain.name} (home)` : [domain[key]].flat().join(", ")));
}

function table(columns, rows, cell) {
  return make(
    "table", {},
    make("thead", {}, make("tr", {}, ...columns.map(([, title]) => make("th", { scope: "col" }, title)))),
    make("tbody", {}, ...rows.map((row) => make("tr", {}, ...columns.map(([key]) => make("td", {}, cell(row, key)))))),
  );
}

function loadCard(load) {
  const columns = [["address", "Node"], ["state", "State"], ["bytes", "Bytes held"], ["from_peers", "From peers"], ["from_origin", "From the origin"], ["sources", "Sources"]];
  const swarm = load.swarm;
  return make(
    "article", {},
    make("h3", {}, `${load.job} · ${load.loaded}`),
    swarm ? make("div", { className: "quiet" }, `${swarm.complete} of ${load.nodes.length} nodes whole, ${load.given} bytes given by the origin, λ2 ${swarm.lambda2.toFixed(2)}`) : null,
    load.nodes.length ? table(columns, load.nodes, (node, key) => String(node[key])) : null,
  );
}

async function loads() {
  const all = list(await ask("/api/loads"), "loads");
  return all.length ? all.map(loadCard) : [make("p", { className: "quiet" }, "Nothing is being loaded.")];
}

function partCell(part) {
  const kept = KEPT.has(part.state);
  const percent = kept ? 100 : Math.min(100, Math.max(0, Number(part.percent) || 0));
  const fill = make("i");
  fill.style.width = `${percent}%`;
  fill.style.background = part.domain ? colour(part.domain) : "transparent";
  const mega = part.bytes ? `, ${(part.bytes / 1e6).toFixed(1)} MB` : "";
  const attempt = part.attempt > 1 ? `, attempt ${part.attempt}` : "";
  const title = `part ${part.n}: ${part.state}${part.domain ? ` at ${part.domain}` : ""}, ${Math.round(percent)} %${mega}${attempt}`;
  return make("div", { className: `cell${kept ? " kept" : ""}${/fail/.test(part.state) ? " failed" : ""}`, title }, fill, make("b", {}, String(part.n)));
}

/** Only web addresses become links. */
function link(text, href) {
  return /^(https?:|\/)/.test(href ?? "") ? make("a", { href }, text) : null;
}

function jobCard(job) {
  const parts = job.parts ?? [];
  const results = job.results ?? {};
  const done = parts.filter((part) => KEPT.has(part.state)).length;
  const domains = [...new Set(parts.map((part) => part.domain).filter(Boolean))];
  const key = (domain) => {
    const mark = make("i");
    mark.style.background = colour(domain);
    const count = parts.filter((part) => part.domain === domain).length;
    return make("span", { className: "key" }, mark, `${domain}: ${count}`);
  };
  const player = results.smil ? `/player?smil=${encodeURIComponent(results.smil)}` : null;
  // A finished job's picture does not change; a running one's is asked for anew.
  const stamp = OVER.has(job.state) ? job.state : Math.floor(Date.now() / 5000);
  const timeline = make("img", { className: "timeline", alt: "Timeline of the job", src: `/api/jobs/${encodeURIComponent(job.id)}/timeline.svg?at=${stamp}` });
  timeline.addEventListener("error", () => timeline.classList.add("absent"));
  return make(
    "article", {},
    make("h3", {}, `${job.id} · ${job.kind ?? "job"} · ${job.state}`),
    make("div", { className: "quiet" }, `${job.source} → ${job.target}, for ${job.owner}`),
    job.error ? make("p", { className: "error" }, [job.error.code, job.error.message, job.error.hint].filter(Boolean).join(" · ")) : null,
    make("div", { className: "quiet" }, `${done} of ${parts.length} parts are there`),
    make("div", { className: "strip" }, ...parts.map(partCell)),
    make("div", {}, ...domains.map(key)),
    make("p", { className: "links" }, player && link("Play", player), link("SMIL", results.smil), link("HLS", results.hls), link("DASH", results.dash)),
    job.timeline?.length ? timeline : null,
  );
}

const finished = new Map(); // cards of jobs that will not change

async function jobs() {
  const all = list(await ask("/api/jobs"), "jobs");
  if (!all.length) return [make("p", { className: "quiet" }, "No job yet. Post one in the Shell room, or use “starling submit”.")];
  return Promise.all(
    all.map(async ({ id, state }) => {
      if (finished.has(id)) return finished.get(id);
      const card = jobCard(await ask(`/api/jobs/${encodeURIComponent(id)}`));
      if (OVER.has(state)) finished.set(id, card);
      return card;
    }),
  );
}

async function refresh() {
  const show = async (id, build) => document.getElementById(id).replaceChildren(...[await build()].flat());
  const outcomes = await Promise.allSettled([
    show("domains", async () => domainsTable(list(await ask("/api/domains"), "domains"))),
    show("jobs", jobs),
    show("loads", loads),
  ]);
  const problem = outcomes.find((outcome) => outcome.status === "rejected");
  document.getElementById("problem").textContent = problem ? `The cluster manager does not answer as it should: ${problem.reason.message}.` : "";
  setTimeout(refresh, PERIOD_MS);
}

refresh();
