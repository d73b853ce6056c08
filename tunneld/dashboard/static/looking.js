// Looking into streams, on an agent's page: a stream's events as they pass, the heads of the last requests with their
// secrets masked, and what a request that was sent again is answered. Only where a tunnel has `inspect: true`.
import { ask, read, why } from "./feed.js";
import { element, put } from "./table.js";
import { clock, duration, plural } from "./words.js";

const MOST = 200; // events that stay in sight

// What one message of the tail shows: a line of small words, and the text.
function entry(kind, told) {
  const words = [clock(Date.now() / 1000)];
  let text = told.data ?? told.text ?? "";
  if (kind === "event") {
    if (told.event) words.push(told.event);
    if (told.id !== undefined) words.push(`id ${told.id}`);
    if (told.retry !== undefined) words.push(`retry ${told.retry} ms`);
    if (told.cut) text += ` … and ${plural(told.cut, "character")} more`;
  } else if (kind === "bytes") words.push(plural(told.bytes, "byte"), ...(told.encoding ? [`packed: ${told.encoding}`] : []));
  else if (kind === "frame") words.push(`${told.from}: ${told.kind}`, plural(told.bytes, "byte"));
  else if (kind === "comment") words.push("comment");
  else if (kind === "skipped") words.push(`${plural(told.events, "event")} not shown: they came faster than inspection.events allows`);
  const line = element("div", { class: kind }, element("span", { class: "soft" }, words.join(" · ")));
  if (text) line.append(element("pre", {}, text));
  return line;
}

// Show what passes on a stream until the returned function is called. place: {list, state, note}.
export function tail(api, item, place) {
  const stop = new AbortController();
  let waiting = [];
  place.list.replaceChildren();
  place.list.hidden = false;
  put(place.note, "");
  put(place.state, "waiting for the next event …");
  const draw = () => {
    const last = place.list.scrollTop + place.list.clientHeight > place.list.scrollHeight - 20;
    place.list.append(...waiting.slice(-MOST));
    waiting = [];
    while (place.list.children.length > MOST) place.list.firstChild.remove();
    if (last) place.list.scrollTop = place.list.scrollHeight;
  };
  const heard = (kind, told) => {
    if (kind === "end") {
      put(place.state, `ended: ${told.reason}`);
      return;
    }
    put(place.state, "live");
    if (waiting.push(entry(kind, told)) === 1) requestAnimationFrame(draw);
  };
  const run = async () => {
    try {
      await read(`${api}/streams/${encodeURIComponent(item.request_id)}/tail`, heard, stop);
    } catch (error) {
      if (stop.signal.aborted) return;
      place.list.hidden = place.list.children.length === 0;
      put(place.state, "");
      put(place.note, error.message);
    }
  };
  run();
  return () => stop.abort();
}

function heads(title, first, headers) {
  const list = element("dl", {}, ...headers.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
  return [element("h3", {}, title), element("p", {}, element("code", {}, first)), list];
}

// The heads of a request that was seen, for a dialog.
export function describe(seen) {
  const answer = seen.status
    ? heads("Answer", `${seen.status}`, seen.answer_headers)
    : [element("h3", {}, "Answer"), element("p", { class: "soft" }, "None yet.")];
  return [...heads("Request", `${seen.method} ${seen.path}`, seen.request_headers), ...answer];
}

// What a request that was sent again is answered.
export function describeAgain(told) {
  const end = told.whole ? "" : ", its begin";
  return [
    ...heads("Sent again", `${told.status} after ${(told.seconds * 1000).toFixed(0)} ms${end}`, told.headers),
    element("pre", { tabindex: "0", "aria-label": "Body of the answer" }, told.body || "(empty)"),
  ];
}

// The last requests that were seen, newest first. Throws an Error that says why there are none.
export async function fetchRequests(api, tunnel) {
  const answer = await ask(`${api}/requests${tunnel ? `?${new URLSearchParams({ tunnel })}` : ""}`);
  if (!answer.ok) throw new Error(await why(answer));
  return (await answer.json()).requests;
}

// One row of the list of requests; look(seen) opens one.
export function row(seen, look) {
  const button = element("button", { type: "button", class: "link one" }, seen.path);
  button.addEventListener("click", () => look(seen));
  return element("tr", {},
    element("td", {}, clock(Date.parse(seen.at) / 1000)),
    element("td", {}, button, element("span", { class: "two" }, `${seen.method} · ${seen.tunnel}`)),
    element("td", { class: "right" }, seen.status ? String(seen.status) : "–"),
    element("td", { class: "right took" }, duration(seen.seconds)),
    element("td", { class: "ended" }, seen.reason ?? "under way"));
}
