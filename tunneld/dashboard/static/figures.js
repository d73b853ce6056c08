// All figures of the chosen tunnel, in the words and units of `tunnelctl info`.
import { now } from "./known.js";
import { byId, element, put } from "./table.js";
import { age, duration, lately, percent, plural, size } from "./words.js";

const ms = (value) => (value === null || value === undefined ? "–" : `${value.toFixed(1)} ms`);

function rowsOf(item) {
  const { quality, outages } = item;
  const trips = quality.rtt_ms;
  const tcp = quality.tcp;
  const last = outages?.last;
  return {
    Grade: quality.grade ? [quality.grade, quality.reason].filter(Boolean).join(": ") : "no heartbeat answered yet",
    "Round trip": `${ms(trips.last)} last, ${ms(trips.p50)} p50, ${ms(trips.p95)} p95`,
    Jitter: ms(quality.jitter_ms),
    Queueing: ms(quality.queue_ms),
    Loss: quality.loss === null ? "–" : `${percent(quality.loss)}, ${quality.pings_lost ?? 0} of ${plural(quality.pings ?? 0, "ping")} unanswered`,
    "Kernel's round trip": tcp ? `${ms(tcp.rtt_ms)} smoothed, ${ms(tcp.least_rtt_ms)} least` : "–",
    "Sent again": tcp ? `${tcp.retransmitted} of ${plural(tcp.segments, "segment")}` : "–",
    Delivery: tcp?.delivery_rate ? `${size(tcp.delivery_rate)}/s` : "–",
    "From visitors": `${size(item.in)}/s`,
    "To visitors": `${size(item.out)}/s`,
    "Last byte": item.heard === null ? "–" : `${age(now() - item.heard)} ago`,
    Connected: item.since === null ? "–" : `since ${lately(item.since)}, ${plural(item.reconnects, "reconnect")}`,
    Outages: outages?.count ? `${outages.count}, ${duration(outages.seconds)} in sum, ${plural(outages.streams_lost, "stream")} lost` : "none",
    "Last outage": last ? `${lately(Date.parse(last.at) / 1000)}, ${duration(last.seconds)}, ${last.resumed ? "resumed" : "not resumed"}` : "–",
  };
}

// The list beside the curves; item: a tunnel, or undefined for none.
export function drawFigures(item) {
  if (!item) return;
  const list = byId("figures");
  const rows = Object.entries(rowsOf(item));
  if (!list.children.length) {
    list.append(...rows.map(([key]) => element("div", {}, element("dt", {}, key), element("dd"))));
  }
  rows.forEach(([, text], index) => put(list.children[index].lastChild, text));
}
