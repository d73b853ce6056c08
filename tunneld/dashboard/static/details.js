// Dialogs: all that is known of one stream, with what passes on it, and the last requests that were seen.
import { cancel, confirmed } from "./changes.js";
import { ask, why } from "./feed.js";
import { daemon, now, streams, tunnels } from "./known.js";
import { describe, describeAgain, fetchRequests, row, tail } from "./looking.js";
import { byId, element, put } from "./table.js";
import { duration, moment, plural, size } from "./words.js";

let open = null; // the feed's number of the stream that is shown
let stop = null; // ends its tail

// -- one stream -----------------------------------------------------------------------------------------------

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

export function openDetails(item) {
  tellOf(item);
  byId("details-cancel").hidden = !daemon.changes;
  byId("details-cancel").onclick = () => {
    byId("details").close();
    cancel(item);
  };
  open = item.i;
  byId("details").showModal();
  lookInto(item);
}
byId("details-close").addEventListener("click", () => byId("details").close());
byId("details").addEventListener("close", () => {
  open = null;
  stop?.();
});

// The stream that is shown, as it is now. Once it is over, what passed stays to be read.
export function drawDetails() {
  if (open === null) return;
  const item = streams.get(open);
  if (item) {
    tellOf(item);
    byId("details-cancel").disabled = daemon.lost !== null;
    return;
  }
  byId("details-cancel").hidden = true;
  if (!byId("tail-state").textContent.startsWith("ended")) put(byId("tail-state"), "ended");
}

function lookInto(item) {
  const place = { list: byId("tail"), state: byId("tail-state"), note: byId("tail-note") };
  place.list.hidden = byId("heads").hidden = true;
  byId("heads").open = false;
  put(place.state, "");
  if (daemon.role !== "agent") {
    put(place.note, `The agent alone can look into a stream: on its own page (metrics.listen), or by tunnelctl tail ${item.request_id.slice(0, 8)} beside it.`);
    return;
  }
  if (!tunnels.get(item.tunnel)?.inspect) {
    put(place.note, `The streams of ${item.tunnel} may not be looked into. Set inspect: true for it in the agent's file, then run tunnelctl reload: streams that begin after it can be seen.`);
    return;
  }
  stop = tail(daemon.api, item, place);
  showHeads(item);
}

async function showHeads(item) {
  try {
    const seen = (await fetchRequests(daemon.api, item.tunnel)).find((one) => one.request_id === item.request_id);
    if (!seen || open !== item.i) return;
    byId("heads").querySelector("div").replaceChildren(...describe(seen));
    byId("heads").hidden = false;
  } catch (error) {
    put(byId("tail-note"), error.message);
  }
}

// -- the last requests ----------------------------------------------------------------------------------------

byId("requests-load").addEventListener("click", async () => {
  put(byId("requests-load"), "Show the newest");
  try {
    const found = await fetchRequests(daemon.api);
    byId("requests").hidden = found.length === 0;
    byId("requests").querySelector("tbody").replaceChildren(...found.map((seen) => row(seen, showRequest)));
    put(byId("requests-note"), found.length ? `${plural(found.length, "request")}, newest first.` : "None was seen yet.");
  } catch (error) {
    put(byId("requests-note"), error.message);
  }
});

function showRequest(seen) {
  byId("request-heads").replaceChildren(...describe(seen));
  byId("request-again").replaceChildren();
  const send = byId("request-send");
  send.hidden = !daemon.changes;
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
    const answer = await ask(`${daemon.api}/requests/${encodeURIComponent(seen.request_id)}/replay`, { method: "POST" });
    if (answer.ok) byId("request-again").replaceChildren(...describeAgain(await answer.json()));
    else byId("request-again").replaceChildren(element("p", {}, await why(answer)));
    byId("request-again").scrollIntoView({ block: "nearest" });
  } catch {
    byId("request-again").replaceChildren(element("p", {}, "The daemon could not be reached; whether it was sent is not known."));
  } finally {
    byId("request-send").disabled = false;
  }
}
