// How tunnels were through the day: a lane for each that was not always well, and the list of outages.
import { svg } from "./curves.js";
import { byId, element, put } from "./table.js";
import { duration, lately, minute, plural, size, zone } from "./words.js";

const DAY = 86400;
const LANES = 30;
const LISTED = 100; // outages, the newest
const LOOKS = { online: "good", connecting: "wait", degraded: "wait", draining: "wait", resuming: "wait", offline: "bad", failed: "bad", closed: "bad" };

// Events of one tunnel that a lane is drawn for. That it had to connect once, when it began, is no trouble.
function troubled(events) {
  return events.some((event, index) => "seconds" in event || (LOOKS[event.state] !== "good" && (index > 0 || event.state !== "connecting")));
}

function lane(name, events, now) {
  const strip = svg("svg", { viewBox: "0 0 1000 14", preserveAspectRatio: "none", role: "img" });
  const place = (at) => Math.max(0, 1000 - ((now - at) / DAY) * 1000);
  const draw = (look, x, width) => strip.append(svg("rect", { class: `s-${look}`, x: Math.min(1000 - width, x), width, y: 0, height: 14 }));
  const states = events.filter((event) => !("seconds" in event));
  states.forEach((event, index) => {
    const to = index + 1 < states.length ? place(states[index + 1].t) : 1000;
    draw(LOOKS[event.state] ?? "wait", place(event.t), Math.max(1, to - place(event.t)));
  });
  const outages = events.filter((event) => "seconds" in event);
  for (const event of outages) draw(event.resumed ? "wait" : "bad", place(event.t), Math.max(3, (event.seconds / DAY) * 1000));
  const resumed = outages.filter((event) => event.resumed).length;
  strip.setAttribute("aria-label", `${name}: ${plural(outages.length, "outage")}, ${resumed} of them resumed; ${states.at(-1)?.state ?? "not known"} now`);
  return element("div", { class: "lane" }, element("span", { title: name }, name), strip);
}

function row(event) {
  const cost = event.resumed ? `${size(event.replayed_bytes)} sent again, nothing lost` : `${plural(event.streams_lost, "stream")} lost`;
  return element("tr", {},
    element("td", {}, lately(event.t)),
    element("td", { title: event.tunnel }, event.tunnel),
    element("td", { class: "right" }, duration(event.seconds)),
    element("td", {}, element("span", { class: `badge ${event.resumed ? "good" : "bad"}` }, event.resumed ? "resumed" : "not resumed")),
    element("td", { class: "cost" }, cost));
}

// events: {t, tunnel, state} and {t, tunnel, seconds, resumed, …}, the oldest first; now: seconds since the epoch.
export function drawTimeline(events, now) {
  const of = new Map();
  for (const event of events) of.set(event.tunnel, [...(of.get(event.tunnel) ?? []), event]);
  const names = [...of.keys()].filter((name) => troubled(of.get(name))).sort();
  const lanes = names.slice(0, LANES).map((name) => lane(name, of.get(name), now));
  if (lanes.length) {
    const ticks = element("div", { class: "ticks", "aria-hidden": "true" });
    for (const ago of [1, 0.75, 0.5, 0.25, 0]) ticks.append(element("span", {}, ago ? minute(now - ago * DAY) : "now"));
    lanes.push(element("div", { class: "lane" }, element("span"), ticks));
  }
  if (names.length > LANES) lanes.push(element("p", { class: "soft" }, `and ${plural(names.length - LANES, "tunnel")} more`));
  byId("lanes").replaceChildren(...lanes);
  const outages = events.filter((event) => "seconds" in event).slice(-LISTED).reverse();
  byId("no-outages").hidden = lanes.length > 0;
  byId("outages").hidden = outages.length === 0;
  byId("outages").querySelector("tbody").replaceChildren(...outages.map(row));
  put(byId("timeline-count"), `the last 24 hours, times of ${zone()}`);
}
