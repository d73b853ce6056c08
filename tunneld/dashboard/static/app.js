// The dashboard: what the daemon tells by its feed, and what a person may do about it.
import { drawAlerts } from "./alerts.js";
import { Plots } from "./curves.js";
import { drawDetails, openDetails } from "./details.js";
import { ask, Told, read, Refused, remember } from "./feed.js";
import { drawFigures } from "./figures.js";
import { changed, daemon, lastDay, lose, now, outages, past, sample, streams, takeAll, takeSparks, takeTick, tunnels } from "./known.js";
import { byId, put } from "./table.js";
import { LOOKS, narrow, streamTable, tunnelTable } from "./tables.js";
import { drawTimeline } from "./timeline.js";
import { clock, duration, plural, size } from "./words.js";

let chosen = null; // name of the tunnel whose curves are shown
let span = 0;

const tables = { tunnels: tunnelTable((item) => choose(item.name, true)), streams: streamTable(openDetails) };
tables.tunnels.decorate = (row, item) => row.classList.toggle("chosen", item.name === chosen);
window.dashboardTables = tables; // for who looks from outside what a draw costs
const plots = new Plots({ rtt: byId("plot-rtt"), loss: byId("plot-loss"), bytes: byId("plot-bytes") }, size);
window.dashboardPlots = plots; // and what is drawn

// -- what is in sight -------------------------------------------------------------------------------------

function wanted(words, item, keys) {
  const text = keys.map((key) => item[key] ?? "").join(" ").toLowerCase();
  return words.every((word) => text.includes(word));
}

let asked = false;
function refresh() {
  if (asked) return;
  asked = true;
  queueMicrotask(() => {
    asked = false;
    draw();
  });
}
document.addEventListener("known", refresh);
narrow.addEventListener("change", refresh);

function draw() {
  const looked = byId("search").value.trim();
  const words = looked.toLowerCase().split(/\s+/).filter(Boolean);
  const fitting = [...streams.values()].filter((item) => wanted(words, item, ["path", "tunnel", "client", "request_id", "kind", "method", "state", "last_event_id"]));
  const carrying = new Set(words.length ? fitting.map((item) => item.tunnel) : []);
  const known = [...tunnels.values()].filter((item) => carrying.has(item.name) || wanted(words, { ...item, ...item.quality }, ["name", "state", "grade", "reason", "public_url", "service", "peer", "token"]));
  const none = (all, what) => (all && looked ? `No ${what} fits “${looked}”.` : undefined);
  tables.tunnels.show(known, none(tunnels.size, "tunnel"));
  tables.streams.show(fitting, none(streams.size, "stream"));
  const of = (shown, all) => (shown === all ? String(all) : `${shown} of ${all}`);
  put(byId("tunnels-count"), of(known.length, tunnels.size));
  put(byId("streams-count"), of(fitting.length, streams.size));
  const quality = tunnels.get(chosen)?.quality;
  byId("requests-card").hidden = ![...tunnels.values()].some((item) => item.inspect);
  put(byId("curves-why"), [quality?.grade, quality?.reason].filter(Boolean).join(": "));
  drawDetails();
  drawFigures(tunnels.get(chosen));
  sums();
  warn();
}

// What there is to be told at once: alerts, and that the daemon leaves.
function warn() {
  const alerts = daemon.version === null ? 0 : drawAlerts((name) => choose(name, true));
  const title = `tunneld ${daemon.role}`.trim();
  document.title = alerts ? `(${plural(alerts, "alert")}) ${title}` : title;
  byId("draining").hidden = !daemon.draining;
  if (daemon.draining) {
    put(byId("draining"), `This ${daemon.role} is being drained: it takes no new streams, ${streams.size ? `waits for the ${plural(streams.size, "stream")} under way` : "has none under way any more"}, and leaves.`);
  }
}

function sums() {
  const states = new Map();
  let received = 0;
  let sent = 0;
  for (const item of tunnels.values()) {
    states.set(item.state, (states.get(item.state) ?? 0) + 1);
    received += item.in;
    sent += item.out;
  }
  put(byId("sum-online"), `${states.get("online") ?? 0} of ${tunnels.size}`);
  states.delete("online");
  const trouble = byId("sum-trouble");
  trouble.hidden = states.size === 0;
  put(trouble, [...states].map(([state, count]) => `${count} ${state}`).join(", "));
  trouble.className = `trouble ${[...states.keys()].some((state) => LOOKS[state] === "bad") ? "bad" : "wait"}`;
  put(byId("sum-streams"), String(streams.size));
  put(byId("sum-in"), `${size(received)}/s`);
  put(byId("sum-out"), `${size(sent)}/s`);
  const count = outages().length;
  put(byId("sum-outages"), String(count));
  put(byId("sum-outages-word"), count === 1 ? "outage in 24 h" : "outages in 24 h");
}

byId("sum-trouble").addEventListener("click", () => {
  tables.tunnels.sortBy("state", false);
  byId("tunnels").scrollTop = 0;
  byId("tunnels").focus();
});

const timeline = () => drawTimeline(lastDay(), now());

// -- curves -----------------------------------------------------------------------------------------------

async function choose(name, go) {
  chosen = name;
  byId("curves").hidden = name === null;
  put(byId("curves-name"), name ?? "");
  refresh();
  if (name === null) return;
  if (go) byId("curves").scrollIntoView({ block: "nearest", behavior: "smooth" });
  try {
    const answer = await ask(`dashboard/history?${new URLSearchParams({ tunnel: name, span })}`);
    if (answer.ok && chosen === name) await plots.show(await answer.json());
  } catch {
    // The feed is lost then too, which is said; its next begin asks again.
  }
}

// The chosen tunnel, or the first where that one is not there.
function keepChosen() {
  if (!tunnels.has(chosen)) choose(tunnels.keys().next().value ?? null);
}

for (const radio of document.querySelectorAll("input[name=span]")) {
  radio.addEventListener("change", () => {
    span = radio.value;
    if (chosen !== null) choose(chosen);
  });
}

async function fetchSparks() {
  try {
    const answer = await ask("dashboard/sparks");
    if (answer.ok) takeSparks(await answer.json());
    refresh();
  } catch {
    // as above
  }
}

// -- what the feed tells ----------------------------------------------------------------------------------

function begin(all) {
  // Another version's page may not understand what this one tells.
  if (daemon.version !== null && daemon.version !== all.version) location.reload();
  takeAll(all);
  put(byId("role"), all.role);
  put(byId("about"), [all.server, `version ${all.version}`, `up ${duration(Math.round(all.uptime_s))}`].filter(Boolean).join(" · "));
  fetchSparks();
  if (tunnels.has(chosen)) choose(chosen);
  else keepChosen();
  timeline();
  live("live", daemon.changes ? "Live" : "Live, read only");
}

function heard(kind, told) {
  retry = 500;
  if (kind === "all") {
    begin(told);
    return;
  }
  takeTick(told);
  keepChosen();
  if (told.events) timeline();
  refresh();
}

let seconds = 0;
setInterval(() => {
  sample((item, [rtt, loss]) => item.name === chosen && plots.push(now(), rtt, loss, item.in, item.out));
  if (document.hidden) return;
  tables.tunnels.later();
  tables.streams.later();
  drawDetails();
  drawFigures(tunnels.get(chosen));
  if (past.alerts.size) drawAlerts((name) => choose(name, true));
  if (++seconds % 60 === 0) timeline();
}, 1000);

// -- the page ---------------------------------------------------------------------------------------------

// A browser lets the timers of a page that is not seen rest: its curves are asked for anew when it is seen again.
document.addEventListener("visibilitychange", () => {
  if (document.hidden || daemon.version === null || daemon.lost !== null) return;
  fetchSparks();
  choose(chosen);
});
byId("search").addEventListener("input", () => {
  byId("streams").scrollTop = byId("tunnels").scrollTop = 0;
  refresh();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && !/^(INPUT|TEXTAREA)$/.test(event.target.tagName) && !document.querySelector("dialog[open]")) {
    event.preventDefault();
    byId("search").focus();
  }
});

// state: waiting, live, lost, or out: nobody is signed in. why: what else there is to say of it.
function live(state, text, why = "") {
  lose(state === "lost" || state === "out");
  byId("live").dataset.state = document.body.dataset.feed = state;
  put(byId("live-text"), text);
  const old = daemon.lost !== null && daemon.version !== null ? `What stands here is as it was at ${clock(daemon.lost)}.` : "";
  put(byId("stale"), state === "lost" ? `${why} ${old}`.trim() : "");
  refresh();
}

let signedIn;
byId("sign-in").addEventListener("submit", (event) => {
  event.preventDefault();
  remember(byId("token").value.trim());
  byId("token").value = "";
  byId("sign-in").hidden = true;
  byId("board").hidden = false;
  signedIn?.();
});

async function signIn(reason, given) {
  byId("board").hidden = true;
  byId("sign-in").hidden = false;
  live("out", "Not signed in");
  byId("sign-in-wrong").hidden = !given;
  if (given) put(byId("sign-in-wrong"), `That token was refused. ${reason}`);
  byId("token").focus();
  await new Promise((done) => (signedIn = done));
  live("waiting", "Connecting …");
}

// Until the time is over, or sooner where the browser says that there is hope again.
function pause(time) {
  return new Promise((done) => {
    setTimeout(done, time);
    addEventListener("online", done, { once: true });
  });
}

// Why there is no feed any more.
function over(why = "The daemon ended the feed; trying again …") {
  return daemon.draining ? `This ${daemon.role} was drained and has left; trying again …` : why;
}

let retry = 500;
for (;;) {
  const given = Boolean(sessionStorage.getItem("tunneld-token"));
  try {
    await read("dashboard/feed", heard);
    live("lost", daemon.draining ? "Drained" : "No connection", over());
  } catch (error) {
    if (error instanceof Refused) {
      remember(null);
      await signIn(error.message, given);
      continue;
    }
    live("lost", daemon.draining ? "Drained" : "No connection", error instanceof Told ? error.message : over("The daemon does not answer; trying again …"));
  }
  await pause(retry);
  retry = Math.min(8000, retry * 2);
}
