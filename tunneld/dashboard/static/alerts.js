// Alerts of the daemon's own rules that fire: in sight while they do, and told to whoever does not look.
import { now, past, tunnels } from "./known.js";
import { byId, element, put } from "./table.js";
import { duration, lately, plural } from "./words.js";

const rows = new Map(); // an alert's key -> its row
let known = null; // keys that were shown last; null: the page has just begun

// What a reader who does not see the list is told: what is new, and what is over.
function announce(alerts) {
  const before = known;
  known = new Map(alerts);
  if (before === null) {
    if (alerts.size) put(byId("alerts-said"), `${plural(alerts.size, "alert")} firing.`);
    return;
  }
  const began = [...alerts].filter(([key]) => !before.has(key)).map(([, alert]) => `Alert ${alert.rule}: ${alert.message}`);
  const over = [...before].filter(([key]) => !alerts.has(key)).map(([, alert]) => `Alert ${alert.rule} of ${alert.subject} is over.`);
  if (began.length || over.length) put(byId("alerts-said"), [...began, ...over].slice(0, 5).join(" "));
}

function make(alert, choose) {
  const subject = element("button", { type: "button", class: "link" });
  subject.addEventListener("click", () => choose(alert.subject));
  return element("li", {}, subject, element("span", { class: "badge bad" }, alert.rule), element("p"), element("span", { class: "soft since" }));
}

function fill(row, alert) {
  const [subject, , message, since] = row.children;
  put(subject, alert.subject);
  subject.disabled = !(alert.tunnel && tunnels.has(alert.subject));
  put(message, alert.message);
  put(since, `since ${lately(alert.since)} (${duration(Math.round(Math.max(0, now() - alert.since)))})`);
}

// choose(name) shows a tunnel's curves.
export function drawAlerts(choose) {
  const { alerts, more } = past;
  announce(alerts);
  for (const [key, row] of rows) {
    if (alerts.has(key)) continue;
    if (row.contains(document.activeElement)) byId("alerts").focus({ preventScroll: true }); // rather than to the page's begin
    row.remove();
    rows.delete(key);
  }
  for (const [key, alert] of alerts) {
    if (!rows.has(key)) {
      rows.set(key, make(alert, choose));
      byId("alerts-list").append(rows.get(key));
    }
    fill(rows.get(key), alert);
  }
  const count = alerts.size + more;
  if (count === 0 && byId("alerts-card").contains(document.activeElement)) byId("tunnels").focus({ preventScroll: true });
  byId("alerts-card").hidden = count === 0;
  put(byId("alerts-count"), more ? `${count} firing, the oldest ${alerts.size} are shown` : `${count} firing`);
  return count;
}
