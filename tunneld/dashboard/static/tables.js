// The two tables: every tunnel, and every stream under way.
import { cancel, reconnect } from "./changes.js";
import { drawSpark, spark } from "./curves.js";
import { daemon, now } from "./known.js";
import { byId, element, put, Table } from "./table.js";
import { age, milliseconds, percent, plural, size } from "./words.js";

// How each state and grade looks.
export const LOOKS = { online: "good", excellent: "good", good: "good", fair: "wait", degraded: "wait", resuming: "wait", connecting: "wait", draining: "wait", poor: "bad", down: "bad", offline: "bad", failed: "bad", closed: "bad" };
const GRADES = ["excellent", "good", "fair", "poor", "down"];
// The worst first.
const STATES = ["failed", "offline", "closed", "resuming", "degraded", "connecting", "draining", "online"];
export const narrow = matchMedia("(max-width: 1100px)"); // where the client has no column of its own

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
  const look = `badge ${LOOKS[word] || ""}`;
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

function drawAction(cell, item) {
  const button = cell.firstChild;
  button.hidden = !daemon.changes;
  button.disabled = Boolean(item.asked) || daemon.lost !== null;
  const label = item.path ? `Cancel ${item.path} of ${item.tunnel}` : `Reconnect ${item.name}`;
  if (button.getAttribute("aria-label") !== label) button.setAttribute("aria-label", label);
  button.classList.toggle("danger", Boolean(item.path));
}

// Its name, or a stream's path, as the button that opens it, over two lines more.
function opener(open) {
  return (cell, row) => {
    const button = element("button", { type: "button", class: "link one" });
    button.addEventListener("click", () => open(row.item));
    cell.append(button, element("span", { class: "two" }), element("span", { class: "three" }));
  };
}

// open(tunnel) is called for one that is chosen.
export function tunnelTable(open) {
  return new Table(byId("tunnels"), {
    caption: "Tunnels",
    key: (item) => item.name,
    empty: "No tunnel is known yet.",
    sort: ["name", false],
    columns: [
      {
        key: "name", title: "Tunnel", of: (item) => item.name, make: opener(open),
        draw(cell, item) {
          put(cell.children[0], item.name);
          put(cell.children[1], item.last_error && item.state !== "online" ? item.last_error : item.service || item.public_url || "");
          note(cell, [item.name, item.public_url, item.host_url, item.peer && `agent ${item.peer}`].filter(Boolean).join("\n"));
          put(cell.children[2], `${item.state} · ${milliseconds(item.quality.rtt_ms.last)} · ${plural(item.streams, "stream")}`);
        },
      },
      { key: "state", title: "State", of: (item) => STATES.indexOf(item.state), make: badge, draw: (cell, item) => drawBadge(cell.firstChild, item.state) },
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
}

// open(stream) shows all that is known of one.
export function streamTable(open) {
  return new Table(byId("streams"), {
    caption: "Live streams",
    key: (item) => item.i,
    empty: "No visitor's request is under way.",
    sort: ["age", true],
    columns: [
      {
        key: "path", title: "Path and tunnel", of: (item) => item.path, make: opener(open),
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
}
