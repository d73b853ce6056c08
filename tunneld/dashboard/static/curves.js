// Curves: sparklines as SVG, the large ones by uPlot, and the lanes of outages.
import { element } from "./table.js";
import { minute, weekday } from "./words.js";

const SVG = "http://www.w3.org/2000/svg";
export const POINTS = 45; // of a sparkline
export const STEP = 10; // seconds of a point
const WHOLE = Array.from({ length: 41 }, (_, power) => 2 ** power); // bytes between two lines: whole in binary units

export function svg(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

export function spark() {
  const made = svg("svg", { class: "spark", viewBox: "0 0 90 26", preserveAspectRatio: "none", "aria-hidden": "true" });
  made.append(svg("path", { class: "area" }), svg("path", { class: "line" }));
  return made;
}

// Draw values, null where nothing is known; `least` is the height that the scale has at least.
export function drawSpark(node, values, least) {
  const top = Math.max(least, ...values.map((value) => value ?? 0));
  let line = "";
  let area = "";
  let run = [];
  const flush = () => {
    if (run.length === 1) run.push([run[0][0] + 1, run[0][1]]);
    if (run.length) {
      const points = run.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`).join("L");
      line += `M${points}`;
      area += `M${run[0][0].toFixed(1)} 26L${points}L${run.at(-1)[0].toFixed(1)} 26Z`;
    }
    run = [];
  };
  values.forEach((value, index) => {
    if (value === null || value === undefined) flush();
    else run.push([(index * 90) / (POINTS - 1), 25 - (value / top) * 23]);
  });
  flush();
  if (node.lastChild.getAttribute("d") !== line) {
    node.firstChild.setAttribute("d", area);
    node.lastChild.setAttribute("d", line);
  }
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

// uPlot and its style, fetched when there is the first curve to draw: half of the page's bytes, and not needed before.
let library;
function fetchLibrary() {
  library ??= Promise.all(
    [
      element("script", { src: "dashboard/uPlot.iife.min.js" }),
      element("link", { rel: "stylesheet", href: "dashboard/uPlot.min.css" }),
    ].map((node) => new Promise((done, failed) => {
      node.addEventListener("load", done);
      node.addEventListener("error", failed);
      document.head.append(node);
    })),
  );
  library.catch(() => (library = null)); // the next curve asks again
  return library;
}

// The three large curves of one tunnel.
export class Plots {
  constructor(places, format) {
    this.places = places; // {rtt, loss, bytes}
    this.format = format;
    this.plots = {};
    this.data = null;
    this.samples = 0;
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.build());
    new ResizeObserver(() => {
      for (const [name, plot] of Object.entries(this.plots)) {
        plot.setSize({ width: this.places[name].clientWidth, height: 150 });
      }
    }).observe(places.rtt);
  }

  // data: {t, step, rtt, loss, in, out}, as the history tells it.
  async show(data) {
    const fresh = !this.data || this.data.step !== data.step;
    this.data = data;
    this.samples = Math.floor((Date.now() / 1000 % data.step) / STEP) + 1; // of the newest point, about
    await fetchLibrary();
    if (this.data !== data) return; // another was chosen meanwhile
    if (fresh || !this.plots.rtt) this.build();
    else this.fill();
  }

  // One more sample, seconds since the epoch; points of a coarser curve keep the worst, or the mean, as the daemon's do.
  push(at, rtt, loss, received, sent) {
    const data = this.data;
    if (!data) return;
    const index = Math.floor(at / data.step);
    const last = data.t / data.step + data.rtt.length - 1;
    for (let step = last; step < index; step++) {
      for (const key of ["rtt", "loss", "in", "out"]) {
        data[key].shift();
        data[key].push(null);
      }
      data.t += data.step;
      this.samples = 0;
    }
    const worst = (list, value) => {
      if (value !== null) list[list.length - 1] = Math.max(list.at(-1) ?? 0, value);
    };
    worst(data.rtt, rtt);
    worst(data.loss, loss);
    this.samples += 1;
    const mean = (list, value) => {
      const before = list.at(-1) ?? value;
      list[list.length - 1] = before + (value - before) / this.samples;
    };
    mean(data.in, received);
    mean(data.out, sent);
    this.fill();
  }

  columns() {
    const data = this.data;
    const times = data.rtt.map((_, index) => data.t + index * data.step);
    return {
      rtt: [times, data.rtt],
      loss: [times, data.loss.map((value) => (value === null ? null : value * 100))],
      bytes: [times, data.in, data.out],
    };
  }

  fill() {
    const columns = this.columns();
    for (const [name, plot] of Object.entries(this.plots)) plot.setData(columns[name]);
    this.tell();
  }

  // What a reader who sees no curve is told.
  tell() {
    const say = (list, text) => {
      const known = list.filter((value) => value !== null);
      return known.length ? `now ${text(known.at(-1))}, at most ${text(Math.max(...known))}` : "nothing known yet";
    };
    const { rtt, loss, in: received, out } = this.data;
    const size = (value) => `${this.format(value)} a second`;
    this.places.rtt.setAttribute("aria-label", `Round trip: ${say(rtt, (value) => `${value.toFixed(1)} ms`)}`);
    this.places.loss.setAttribute("aria-label", `Loss: ${say(loss, (value) => `${(value * 100).toFixed(1)} %`)}`);
    this.places.bytes.setAttribute("aria-label", `From visitors: ${say(received, size)}. To visitors: ${say(out, size)}`);
  }

  build() {
    if (!this.data || !window.uPlot) return;
    for (const plot of Object.values(this.plots)) plot.destroy();
    const columns = this.columns();
    const long = this.data.step >= 600;
    const axis = {
      stroke: colour("--soft"),
      grid: { stroke: colour("--line"), width: 1 },
      ticks: { show: false },
      font: "11px system-ui, sans-serif",
    };
    const make = (name, series, least, values, more = {}) =>
      new uPlot(
        {
          width: this.places[name].clientWidth,
          height: 150,
          legend: { show: false },
          cursor: { show: true, x: true, y: false, points: { show: false }, drag: { x: false, y: false } },
          scales: { x: { time: true }, y: { range: (_, low, high) => [0, Math.max(least, (high ?? 0) * 1.1)] } },
          axes: [
            { ...axis, size: 26, space: 70, values: (_, at) => at.map(long ? weekday : minute) },
            { ...axis, ...more, size: 58, space: 34, values: (_, list) => list.map(values) },
          ],
          series: [
            {},
            ...series.map((name_) => ({ stroke: colour(name_), width: 1.5, fill: `color-mix(in srgb, ${colour(name_)} 12%, transparent)`, spanGaps: false, points: { show: false } })),
          ],
        },
        columns[name],
        this.places[name],
      );
    const short = (value) => (value >= 10 ? value.toFixed(0) : value.toFixed(1));
    this.plots = {
      rtt: make("rtt", ["--accent"], 1, short),
      loss: make("loss", ["--accent"], 5, short),
      bytes: make("bytes", ["--accent", "--second"], 1024, (value) => this.format(value), { incrs: WHOLE }),
    };
    this.tell();
  }
}
