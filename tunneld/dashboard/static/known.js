// What the page knows of the daemon: what its feed told, and nothing of how that is shown.
import { POINTS, STEP } from "./curves.js";

export const tunnels = new Map(); // name -> tunnel
export const streams = new Map(); // the feed's number -> stream
export const daemon = { api: "api/v1", role: "", version: null, changes: false, draining: false, skew: 0, lost: null };
// What happened in the last day: {t, tunnel, state} and {t, tunnel, seconds, resumed, …}; and the alerts that fire:
// their key -> {rule, subject, tunnel, since, message}, and how many more there are.
export const past = { events: [], alerts: new Map(), more: 0 };

const DAY = 86400;
const MOST = 2000; // of what happened
let stepped; // the newest point of the curves

// Seconds since the epoch by the daemon's clock; while it is not heard, as it was when it was heard last.
export const now = () => (daemon.lost ?? Date.now() / 1000) + daemon.skew;

// The feed is lost since this moment, or is there.
export function lose(lost) {
  daemon.lost = lost ? (daemon.lost ?? Date.now() / 1000) : null;
}

// Whoever shows it looks again.
export const changed = () => document.dispatchEvent(new Event("known"));

const blank = () => Array(POINTS).fill(null);

function takeTunnel(name, told) {
  const before = tunnels.get(name) ?? { name, in: 0, out: 0, streams: 0, sparks: [blank(), blank(), blank()], sum: 0, count: 0 };
  tunnels.set(name, Object.assign(before, told));
}

function takeStream(told) {
  const at = now();
  streams.set(told.i, { ...told, began: at - told.age_s, moved: at - told.idle_s });
}

const keyOf = (rule, subject) => JSON.stringify([rule, subject]);

function takeAlerts(told) {
  for (const one of told) past.alerts.set(keyOf(one.rule, one.subject), one);
}

// The feed's first message: all that there is.
export function takeAll(all) {
  Object.assign(daemon, { api: all.api, role: all.role, version: all.version, changes: all.changes, skew: all.now - Date.now() / 1000, lost: null });
  tunnels.clear();
  streams.clear();
  for (const one of all.tunnels) takeTunnel(one.name, one);
  for (const one of all.streams) takeStream(one);
  past.events = all.events;
  past.alerts.clear();
  past.more = 0;
  takeAlerts(all.alerts ?? []);
  daemon.draining = Boolean(all.draining);
  stepped = Math.floor(now() / STEP);
}

// Each other one: what has changed.
export function takeTick(told) {
  for (const number of told.end ?? []) streams.delete(number);
  for (const name of told.gone ?? []) tunnels.delete(name);
  for (const [name, change] of Object.entries(told.tunnels ?? {})) takeTunnel(name, change);
  for (const [name, [count, received, sent]] of Object.entries(told.rates ?? {})) {
    const item = tunnels.get(name);
    if (item) Object.assign(item, { streams: count, in: received, out: sent });
  }
  for (const one of told.open ?? []) takeStream(one);
  for (const [number, bytes_in, bytes_out, count, last_event_id, state, kind, idle] of told.set ?? []) {
    const item = streams.get(number);
    if (item) Object.assign(item, { bytes_in, bytes_out, events: count, last_event_id, state, kind, moved: now() - idle });
  }
  for (const [rule, subject] of told.calm ?? []) past.alerts.delete(keyOf(rule, subject));
  takeAlerts(told.alerts ?? []);
  past.more = told.more ?? past.more;
  daemon.draining = told.draining ?? daemon.draining;
  if (told.events) past.events = lastDay(past.events.concat(told.events)).slice(-MOST);
}

export function takeSparks(told) {
  for (const [name, curves] of Object.entries(told)) {
    const item = tunnels.get(name);
    if (item) item.sparks = curves;
  }
}

// What happened in the last day, and before it the state that each tunnel had when the day began.
export function lastDay(events = past.events) {
  const from = now() - DAY;
  const before = new Map();
  const within = [];
  for (const event of events) {
    if (event.t > from) within.push(event);
    else if (!("seconds" in event)) before.set(event.tunnel, event);
  }
  return [...before.values(), ...within];
}

export const outages = () => past.events.filter((event) => "seconds" in event && event.t > now() - DAY);

// Each second: what the curves are made of. Each STEP: one more point of every curve, of which `noted` is told.
export function sample(noted) {
  if (daemon.lost !== null) return;
  const index = Math.floor(now() / STEP);
  for (const item of tunnels.values()) {
    item.sum += item.in + item.out;
    item.count += 1;
    if (index === stepped) continue;
    const up = item.state === "online" || item.state === "degraded";
    const row = [up ? item.quality.rtt_ms.last : null, up ? item.quality.loss : null, item.sum / item.count];
    row.forEach((value, number) => {
      item.sparks[number].shift();
      item.sparks[number].push(value);
    });
    item.sum = item.count = 0;
    noted(item, row);
  }
  stepped = index;
}
