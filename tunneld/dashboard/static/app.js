// The dashboard: what the daemon tells by its feed, and what a person may do about it.
import { ask, read, Refused, remember, why } from "./feed.js";
import { element, put, Table } from "./table.js";
import { describe, describeAgain, fetchRequests, row as requestRow, tail } from "./looking.js";
import { drawLanes, drawSpark, Plots, POINTS, spark, STEP } from "./curves.js";

const byId = (id) => document.getElementById(id);
const tunnels = new Map(); // name -> tunnel
const streams = new Map(); // the feed's number -> stream
let events = [];
let server = { api: "api/v1", changes: false, skew: 0 };
let chosen = null;
let span = 0;
let retry = 500;

// -- words ------------------------------------------------------------------------------------------------

const now = () => Date.now() / 1000 + server.skew; // of the daemon, seconds since the epoch

function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  const whole = Math.max(0, Math.round(seconds));
  if (seconds < 9.95 && seconds % 1) return `${Math.max(0, seconds).toFixed(1)} s`;
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  if (whole < 86400) return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  return `${Math.floor(whole / 86400)} d ${Math.floor((whole % 86400) / 3600)} h`;
}

// For a live counter: whole seconds, short.
function age(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")} min`;
  return duration(whole);
}

function size(bytes) {
  if (bytes === null || bytes === undefined) return "–";
  if (bytes < 1024) return `${Math.round(bytes)} B`;
  let value = bytes;
  for (const unit of ["KiB", "MiB", "GiB", "TiB"]) {
    value /= 1024;
    if (value < 1023.5 || unit === "TiB") return `${value < 99.95 ? value.toFixed(1) : value.toFixed(0)} ${unit}`;
  }
}

const milliseconds = (value) => (value === null || value === undefined ? "–" : `${value < 10 ? value.toFixed(1) : value.toFixed(0)} ms`);
const percent = (value) => (value === null || value === undefined ? "–" : `${(value * 100).toFixed(value && value < 0.1 ? 1 : 0)} %`);
const moment = (at) => new Intl.DateTimeFormat("en", { dateStyle: "medium", timeStyle: "medium", hourCycle: "h23" }).format(at * 1000);
const lately = (at) => new Intl.DateTimeFormat("en", { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" }).format(at * 1000);
const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
const GOOD = { online: "good", excellent: "good", good: "good", fair: "wait", degraded: "wait", resuming: "wait", connecting: "wait", draining: "wait", poor: "bad", down: "bad", offline: "bad", failed: "bad" };
const GRADES = ["excellent", "good", "fair", "poor", "down"];

let hush;
function say(text) {
  byId("said").textContent = text;
  clearTimeout(hush);
  hush = setTimeout(() => (byId("said").textContent = ""), 6000);
}

// -- tables -----------------------------------------------------------------------------------------------

function lines(cell, count) {
  for (const name of ["one", "two", "three"].slice(0, count)) cell.append(element("span", { class: name }));
}

function note(cell, text) {
  if (cell.title !== text) cell.title = text;
}

function badge(cell) {
  cell.append(element("span", { class: "badge" }));
}

function drawBadge(node, word) {
  put(node, word || "–");
  const look = `badge ${GOOD[word] || ""}`;
  if (node.className !== look) node.className = look;
}

function measure(cell) {
  const text = element("span");
  cell.append(element("div", { class: "measure" }, text, spark()));
}

function drawMeasure(cell, text, values, least) {
  const [label, curve] = cell.firstChild.children;
  put(label, text);
  drawSpark(curve, values, least);
}

function action(word, run) {
  return (cell, row) => {
    const button = element("button", { type: "button" }, word);
    button.addEventListener("click", () => run(row.item));
    cell.append(button);
  };
}

const tunnelTable = new Table(byId("tunnels"), {
  caption: "Tunnels",
  key: (item) => item.name,
  empty: "No tunnel is known yet.",
  sort: ["name", false],
  columns: [
    {
      key: "name", title: "Tunnel", of: (item) => item.name,
      make(cell, row) {
        const button = element("button", { type: "button", class: "link one" });
        button.addEventListener("click", () => choose(row.item.name, true));
        cell.append(button, element("span", { class: "two" }), element("span", { class: "three" }));
      },
      draw(cell, item) {
        put(cell.children[0], item.name);
        put(cell.children[1], item.last_error && item.state !== "online" ? item.last_error : item.service || item.public_url || "");
        note(cell, [item.public_url, item.host_url, item.peer && `agent ${item.peer}`].filter(Boolean).join("\n"));
        put(cell.children[2], `${item.state} · ${plural(item.streams, "stream")}`);
      },
    },
    { key: "state", title: "State", of: (item) => item.state, make: badge, draw: (cell, item) => drawBadge(cell.firstChild, item.state) },
    {
      key: "grade", title: "Quality", of: (item) => GRADES.indexOf(item.quality.grade ?? "down"),
      make(cell) {
        badge(cell);
        cell.append(element("span", { class: "two" }));
      },
      draw(cell, item) {
        drawBadge(cell.firstChild, item.quality.grade);
        const reason = item.quality.reason || (item.quality.grade ? "" : "no heartbeat answered yet");
        put(cell.lastChild, reason);
        note(cell, reason);
      },
    },
    { key: "rtt", title: "Round trip", of: (item) => item.quality.rtt_ms.last ?? -1, make: measure, draw: (cell, item) => drawMeasure(cell, milliseconds(item.quality.rtt_ms.last), item.sparks[0], 1) },
    { key: "loss", title: "Loss", of: (item) => item.quality.loss ?? -1, make: measure, draw: (cell, item) => drawMeasure(cell, percent(item.quality.loss), item.sparks[1], 0.05) },
    { key: "bytes", title: "Throughput", of: (item) => item.in + item.out, make: measure, draw: (cell, item) => drawMeasure(cell, `${size(item.in + item.out)}/s`, item.sparks[2], 512) },
    { key: "streams", title: "Streams", right: true, of: (item) => item.streams, draw: (cell, item) => put(cell, String(item.streams)) },
    { key: "heard", title: "Heard", right: true, of: (item) => -(item.heard ?? 0), draw: (cell, item) => put(cell, item.heard === null ? "–" : age(now() - item.heard)) },
    { key: "act", title: "Actions", right: true, make: action("Reconnect", reconnect), draw: drawAction },
  ],
});
tunnelTable.decorate = (row, item) => row.classList.toggle("chosen", item.name === chosen);

const streamTable = new Table(byId("streams"), {
  caption: "Live streams",
  key: (item) => item.i,
  empty: "No visitor's request is under way.",
  sort: ["age", true],
  columns: [
    {
      key: "path", title: "Path and tunnel", of: (item) => item.path,
      make(cell, row) {
        const button = element("button", { type: "button", class: "link one" });
        button.addEventListener("click", () => details(row.item));
        cell.append(button, element("span", { class: "two" }), element("span", { class: "three" }));
      },
      draw(cell, item) {
        put(cell.children[0], item.path);
        note(cell, item.path);
        put(cell.children[1], `${item.method} · ${item.tunnel}${narrow.matches ? ` · ${item.client}` : ""}`);
        put(cell.children[2], `${size(item.bytes_in + item.bytes_out)} · ${item.kind === "sse" ? `${plural(item.events, "event")} · id ${item.last_event_id ?? "–"}` : item.kind}`);
      },
    },
    { key: "client", title: "Client", of: (item) => item.client, draw: (cell, item) => put(cell, item.client || "–") },
    {
      key: "kind", title: "Kind", of: (item) => item.kind, make: (cell) => lines(cell, 2),
      draw(cell, item) {
        put(cell.children[0], item.kind);
        put(cell.children[1], item.state);
      },
    },
    { key: "age", title: "Age", right: true, of: (item) => -item.began, draw: (cell, item) => put(cell, age(now() - item.began)) },
    { key: "idle", title: "Quiet", right: true, of: (item) => -item.moved, draw: (cell, item) => put(cell, age(now() - item.moved)) },
    { key: "in", title: "In", right: true, of: (item) => item.bytes_in, draw: (cell, item) => put(cell, size(item.bytes_in)) },
    { key: "out", title: "Out", right: true, of: (item) => item.bytes_out, draw: (cell, item) => put(cell, size(item.bytes_out)) },
    { key: "events", title: "Events", right: true, of: (item) => item.events, draw: (cell, item) => put(cell, item.kind === "sse" ? String(item.events) : "–") },
    {
      key: "last", title: "Last id", of: (item) => item.last_event_id ?? "", make: (cell) => lines(cell, 1),
      draw(cell, item) {
        put(cell.firstChild, item.last_event_id ?? "–");
        note(cell, item.last_event_id ?? "");
      },
    },
    { key: "act", title: "Actions", right: true, make: action("Cancel", cancel), draw: drawAction },
  ],
});

window.dashboardTables = { tunnels: tunnelTable, streams: streamTable }; // for who looks from outside what a draw costs

function drawAction(cell, item) {
  const button = cell.firstChild;
  button.hidden = !server.changes;
  button.disabled = Boolean(item.asked);
  const label = item.path ? `Cancel ${item.path} of ${item.tunnel}` : `Reconnect ${item.name}`;
  if (button.getAttribute("aria-label") !== label) button.setAttribute("aria-label", label);
  button.classList.toggle("danger", Boolean(item.path));
}

const narrow = matchMedia("(max-width: 1100px)"); // where the client has no column of its own
narrow.addEventListener("change", refresh);

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
    const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const fitting = [...streams.values()].filter((item) => wanted(words, item, ["path", "tunnel", "client", "request_id", "kind", "method", "state", "last_event_id"]));
    const carrying = new Set(words.length ? fitting.map((item) => item.tunnel) : []);
    const known = [...tunnels.values()].filter((item) => carrying.has(item.name) || wanted(words, { ...item, ...item.quality }, ["name", "state", "grade", "reason", "public_url", "service", "peer", "token"]));
    tunnelTable.show(known);
    streamTable.show(fitting);
    const of = (shown, all) => (shown === all ? String(all) : `${shown} of ${all}`);
    put(byId("tunnels-count"), of(known.length, tunnels.size));
    put(byId("streams-count"), of(fitting.length, streams.size));
    const quality = tunnels.get(chosen)?.quality;
    byId("requests-card").hidden = ![...tunnels.values()].some((item) => item.inspect);
    put(byId("curves-why"), quality?.grade ? described(quality) : "");
    sums();
  });
}

// What the chosen tunnel's curves do not draw.
function described(quality) {
  const words = [[quality.grade, quality.reason].filter(Boolean).join(": ")];
  if (quality.jitter_ms !== null) words.push(`jitter ${milliseconds(quality.jitter_ms)}`);
  if (typeof quality.queue_ms === "number") words.push(`queueing ${milliseconds(quality.queue_ms)}`);
  return words.join(", ");
}

function sums() {
  let online = 0;
  let received = 0;
  let sent = 0;
  for (const item of tunnels.values()) {
    if (item.state === "online") online += 1;
    received += item.in;
    sent += item.out;
  }
  put(byId("sum-online"), `${online} of ${tunnels.size}`);
  put(byId("sum-streams"), String(streams.size));
  put(byId("sum-in"), `${size(received)}/s`);
  put(byId("sum-out"), `${size(sent)}/s`);
  const outages = events.filter((event) => "seconds" in event).length;
  put(byId("sum-outages"), String(outages));
  put(byId("sum-outages-word"), outages === 1 ? "outage in 24 h" : "outages in 24 h");
}

// -- what the feed tells ------------------------------------------------------------------------------------

const blank = () => Array(POINTS).fill(null);

function takeTunnel(name, told) {
  const before = tunnels.get(name) ?? { name, in: 0, out: 0, streams: 0, sparks: [blank(), blank(), blank()], sum: 0, count: 0 };
  tunnels.set(name, Object.assign(before, told));
}

function takeStream(told) {
  const at = now();
  streams.set(told.i, { ...told, began: at - told.age_s, moved: at - told.idle_s });
}

function takeAll(all) {
  server = { api: all.api, role: all.role, changes: all.changes, skew: all.now - Date.now() / 1000 };
  put(byId("role"), all.role);
  put(byId("about"), [all.server, `version ${all.version}`, `up ${duration(Math.round(all.uptime_s))}`].filter(Boolean).join(" · "));
  document.title = `tunneld ${all.role}`;
  tunnels.clear();
  streams.clear();
  for (const one of all.tunnels) takeTunnel(one.name, one);
  for (const one of all.streams) takeStream(one);
  events = all.events;
  if (!tunnels.has(chosen)) chosen = all.tunnels.length ? all.tunnels[0].name : null;
  fetchSparks();
  if (chosen) choose(chosen);
  timeline();
  refresh();
}

function takeTick(told) {
  for (const number of told.end ?? []) {
    if (details.open === number) endDetails();
    streams.delete(number);
  }
  for (const name of told.gone ?? []) tunnels.delete(name);
  for (const [name, change] of Object.entries(told.tunnels ?? {})) {
    takeTunnel(name, change);
    if (!chosen) choose(name);
  }
  for (const [name, [count, received, sent]] of Object.entries(told.rates ?? {})) {
    const item = tunnels.get(name);
    if (item) Object.assign(item, { streams: count, in: received, out: sent });
  }
  for (const one of told.open ?? []) takeStream(one);
  for (const [number, bytes_in, bytes_out, count, last_event_id, state, kind, idle] of told.set ?? []) {
    const item = streams.get(number);
    if (item) Object.assign(item, { bytes_in, bytes_out, events: count, last_event_id, state, kind, moved: now() - idle });
  }
  if (told.events) {
    events = events.concat(told.events).filter((event) => event.t > now() - 86400).slice(-2000);
    timeline();
  }
  refresh();
}

async function fetchSparks() {
  const answer = await ask("dashboard/sparks");
  if (!answer.ok) return;
  for (const [name, curves] of Object.entries(await answer.json())) {
    const item = tunnels.get(name);
    if (item) item.sparks = curves;
  }
  refresh();
}

// Each second: ages; each STEP: one more point of every curve, made of what the feed told.
let stepped = Math.floor(Date.now() / 1000 / STEP);
setInterval(() => {
  const index = Math.floor(now() / STEP);
  for (const item of tunnels.values()) {
    item.sum += item.in + item.out;
    item.count += 1;
  }
  if (index !== stepped && byId("live").dataset.state === "live") {
    for (const item of tunnels.values()) {
      const up = item.state === "online" || item.state === "degraded";
      const row = [up ? item.quality.rtt_ms.last : null, up ? item.quality.loss : null, item.sum / item.count];
      row.forEach((value, number) => {
        item.sparks[number].shift();
        item.sparks[number].push(value);
      });
      if (item.name === chosen) plots.push(now(), row[0], row[1], item.in, item.out);
      item.sum = item.count = 0;
    }
    stepped = index;
  }
  if (document.hidden) return;
  tunnelTable.later();
  streamTable.later();
  if (streams.has(details.open)) tellOf(streams.get(details.open));
}, 1000);

// -- curves and timeline ------------------------------------------------------------------------------------

const plots = new Plots({ rtt: byId("plot-rtt"), loss: byId("plot-loss"), bytes: byId("plot-bytes") }, size);

async function choose(name, go) {
  chosen = name;
  byId("curves").hidden = false;
  put(byId("curves-name"), name);
  refresh();
  if (go) byId("curves").scrollIntoView({ block: "nearest", behavior: "smooth" });
  const query = new URLSearchParams({ tunnel: name, span });
  const answer = await ask(`dashboard/history?${query}`);
  if (answer.ok && chosen === name) plots.show(await answer.json());
}

for (const radio of document.querySelectorAll("input[name=span]")) {
  radio.addEventListener("change", () => {
    span = radio.value;
    if (chosen) choose(chosen);
  });
}

function timeline() {
  drawLanes(byId("lanes"), events, now());
  const outages = events.filter((event) => "seconds" in event).slice(-100).reverse();
  byId("no-outages").hidden = byId("lanes").children.length > 0;
  byId("outages").hidden = outages.length === 0;
  byId("outages").querySelector("tbody").replaceChildren(
    ...outages.map((event) => {
      const cost = event.resumed ? `${size(event.replayed_bytes)} sent again, nothing lost` : `${plural(event.streams_lost, "stream")} lost`;
      return element("tr", {},
        element("td", {}, lately(event.t)),
        element("td", {}, event.tunnel),
        element("td", { class: "right" }, duration(event.seconds)),
        element("td", {}, element("span", { class: `badge ${event.resumed ? "good" : "bad"}` }, event.resumed ? "resumed" : "not resumed")),
        element("td", { class: "cost" }, cost));
    }),
  );
}

// -- changes --------------------------------------------------------------------------------------------------

function confirmed(title, text, yes) {
  put(byId("confirm-title"), title);
  put(byId("confirm-text"), text);
  put(byId("confirm-yes"), yes);
  const dialog = byId("confirm");
  dialog.returnValue = "";
  dialog.showModal();
  byId("confirm-no").focus();
  return new Promise((answer) => {
    dialog.addEventListener("close", () => answer(dialog.returnValue === "yes"), { once: true });
  });
}
byId("confirm-no").addEventListener("click", () => byId("confirm").close(""));
byId("confirm-yes").addEventListener("click", () => byId("confirm").close("yes"));

async function change(item, method, path, done) {
  item.asked = true;
  refresh();
  try {
    const answer = await ask(`${server.api}/${path}`, { method });
    say(answer.ok ? done : await why(answer));
  } catch {
    say("The daemon could not be reached; nothing is known to have changed.");
  } finally {
    item.asked = false;
    refresh();
  }
}

async function cancel(item) {
  const text = `${item.method} ${item.path} of ${item.tunnel}, from ${item.client || "an unknown client"}: its service's work stops now.`;
  if (await confirmed("Cancel this stream?", text, "Cancel stream")) {
    await change(item, "DELETE", `streams/${encodeURIComponent(item.request_id)}`, `Cancelled ${item.path} of ${item.tunnel}.`);
  }
}

async function reconnect(item) {
  const text = `The connection of ${item.name} is closed and dialled again. ${item.streams ? `Its ${plural(item.streams, "stream")} should go on where they were.` : "It carries no stream now."}`;
  if (await confirmed(`Reconnect ${item.name}?`, text, "Reconnect")) {
    await change(item, "POST", `tunnels/${encodeURIComponent(item.name)}/reconnect`, `${item.name} dials again.`);
  }
}

// What is known of a stream, as it is now.
function tellOf(item) {
  const at = now();
  const rows = {
    "Request id": item.request_id, Tunnel: item.tunnel, Method: item.method, Path: item.path, Client: item.client || "–", Kind: item.kind, State: item.state,
    Began: moment(item.began), Age: duration(Math.round(at - item.began)), Quiet: duration(Math.round(at - item.moved)),
    "From the visitor": size(item.bytes_in), "To the visitor": size(item.bytes_out),
    Events: item.kind === "sse" ? String(item.events) : "–", "Last event id": item.last_event_id ?? "–",
  };
  const list = byId("details-list");
  if (!list.children.length) {
    list.append(...Object.keys(rows).flatMap((key) => [element("dt", {}, key), element("dd")]));
  }
  Object.values(rows).forEach((value, index) => put(list.children[2 * index + 1], value));
}

function details(item) {
  tellOf(item);
  byId("details-cancel").hidden = !server.changes;
  byId("details-cancel").onclick = () => {
    byId("details").close();
    cancel(item);
  };
  details.open = item.i;
  byId("details").showModal();
  lookInto(item);
}
byId("details-close").addEventListener("click", () => byId("details").close());
byId("details").addEventListener("close", () => {
  details.open = null;
  lookInto.stop?.();
});

// The stream is over: what passed stays to be read.
function endDetails() {
  byId("details-cancel").hidden = true;
  if (!byId("tail-state").textContent.startsWith("ended")) put(byId("tail-state"), "ended");
}

// -- looking into streams -----------------------------------------------------------------------------------------

function lookInto(item) {
  const place = { list: byId("tail"), state: byId("tail-state"), note: byId("tail-note") };
  place.list.hidden = byId("heads").hidden = true;
  byId("heads").open = false;
  put(place.state, "");
  if (server.role !== "agent") {
    put(place.note, `The agent alone can look into a stream: on its own page (metrics.listen), or by tunnelctl tail ${item.request_id.slice(0, 8)} beside it.`);
    return;
  }
  if (!tunnels.get(item.tunnel)?.inspect) {
    put(place.note, `The streams of ${item.tunnel} may not be looked into. Set inspect: true for it in the agent's file, then run tunnelctl reload: streams that begin after it can be seen.`);
    return;
  }
  lookInto.stop = tail(server.api, item, place);
  showHeads(item);
}

async function showHeads(item) {
  try {
    const seen = (await fetchRequests(server.api, item.tunnel)).find((one) => one.request_id === item.request_id);
    if (!seen || details.open !== item.i) return;
    byId("heads").querySelector("div").replaceChildren(...describe(seen));
    byId("heads").hidden = false;
  } catch (error) {
    put(byId("tail-note"), error.message);
  }
}

byId("requests-load").addEventListener("click", async () => {
  put(byId("requests-load"), "Show the newest");
  try {
    const found = await fetchRequests(server.api);
    byId("requests").hidden = found.length === 0;
    byId("requests").querySelector("tbody").replaceChildren(...found.map((seen) => requestRow(seen, showRequest)));
    put(byId("requests-note"), found.length ? `${plural(found.length, "request")}, newest first.` : "None was seen yet.");
  } catch (error) {
    put(byId("requests-note"), error.message);
  }
});

function showRequest(seen) {
  byId("request-heads").replaceChildren(...describe(seen));
  byId("request-again").replaceChildren();
  const send = byId("request-send");
  send.hidden = !server.changes;
  send.disabled = !seen.body_whole;
  send.title = seen.body_whole ? "" : "Its body was longer than inspection.body keeps.";
  send.onclick = () => sendAgain(seen);
  byId("request").showModal();
}
byId("request-close").addEventListener("click", () => byId("request").close());

async function sendAgain(seen) {
  const again = /^(GET|HEAD|OPTIONS)$/.test(seen.method) ? "" : " It may act on it once more.";
  const text = `${seen.method} ${seen.path} goes to the local service of ${seen.tunnel}; the visitor gets nothing of it.${again}`;
  if (!(await confirmed("Send this request again?", text, "Send again"))) return;
  byId("request-send").disabled = true;
  try {
    const answer = await ask(`${server.api}/requests/${encodeURIComponent(seen.request_id)}/replay`, { method: "POST" });
    if (answer.ok) byId("request-again").replaceChildren(...describeAgain(await answer.json()));
    else byId("request-again").replaceChildren(element("p", {}, await why(answer)));
    byId("request-again").scrollIntoView({ block: "nearest" });
  } catch {
    byId("request-again").replaceChildren(element("p", {}, "The daemon could not be reached; whether it was sent is not known."));
  } finally {
    byId("request-send").disabled = false;
  }
}

// -- the page ---------------------------------------------------------------------------------------------------

byId("search").addEventListener("input", () => {
  byId("streams").scrollTop = 0;
  refresh();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && !/^(INPUT|TEXTAREA)$/.test(event.target.tagName) && !document.querySelector("dialog[open]")) {
    event.preventDefault();
    byId("search").focus();
  }
});

function live(state, text) {
  byId("live").dataset.state = state;
  put(byId("live-text"), text);
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

async function signIn(reason, first) {
  live("lost", "Not signed in");
  byId("board").hidden = true;
  byId("sign-in").hidden = false;
  if (!first) put(byId("sign-in-why"), reason);
  byId("token").focus();
  await new Promise((done) => (signedIn = done));
}

// The first call makes a daemon load what answers it, a second or two of one core: not while the browser paints first.
// A page that is not seen is never painted, and one may be hidden meanwhile: then it begins all the same.
function painted() {
  return new Promise((done) => {
    new PerformanceObserver(done).observe({ type: "paint", buffered: true });
    setTimeout(done, document.hidden ? 0 : 500);
  });
}

await painted();
let tried = Boolean(sessionStorage.getItem("tunneld-token"));
for (;;) {
  try {
    await read("dashboard/feed", (kind, value) => {
      retry = 500;
      if (kind === "all") {
        takeAll(value);
        live("live", server.changes ? "Live" : "Live, read only");
      } else takeTick(value);
    });
    live("lost", "The daemon ended the feed; trying again …");
  } catch (error) {
    if (error instanceof Refused) {
      remember(null);
      await signIn(error.message, !tried);
      tried = true;
      live("waiting", "Connecting …");
      continue;
    }
    live("lost", "Connection lost; trying again …");
  }
  await new Promise((done) => setTimeout(done, retry));
  retry = Math.min(8000, retry * 2);
}
