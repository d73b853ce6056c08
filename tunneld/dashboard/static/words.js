// Numbers and moments as a person reads them: sizes in binary units, times of the day in the browser's own time zone.

const clockwork = (options) => new Intl.DateTimeFormat("en", { ...options, hourCycle: "h23" });
const FORMATS = {
  moment: clockwork({ dateStyle: "medium", timeStyle: "medium" }),
  lately: clockwork({ month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", second: "2-digit" }),
  clock: clockwork({ timeStyle: "medium" }),
  minute: clockwork({ hour: "2-digit", minute: "2-digit" }),
  weekday: clockwork({ weekday: "short", hour: "2-digit", minute: "2-digit" }),
};

// Moments are seconds since the epoch.
export const moment = (at) => FORMATS.moment.format(at * 1000);
export const lately = (at) => FORMATS.lately.format(at * 1000);
export const clock = (at) => FORMATS.clock.format(at * 1000);
export const minute = (at) => FORMATS.minute.format(at * 1000);
export const weekday = (at) => FORMATS.weekday.format(at * 1000);
export const zone = () => FORMATS.clock.resolvedOptions().timeZone;

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  const whole = Math.max(0, Math.round(seconds));
  if (seconds > 0 && seconds < 0.995) return `${Math.max(1, Math.round(seconds * 1000))} ms`;
  if (seconds < 9.95 && seconds % 1) return `${seconds.toFixed(1)} s`;
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  if (whole < 86400) return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  return `${Math.floor(whole / 86400)} d ${Math.floor((whole % 86400) / 3600)} h`;
}

// For a live counter: whole seconds, short.
export function age(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")} min`;
  return duration(whole);
}

export function size(bytes) {
  if (bytes === null || bytes === undefined) return "–";
  if (bytes < 1024) return `${Math.round(bytes)} B`;
  let value = bytes;
  for (const unit of ["KiB", "MiB", "GiB", "TiB"]) {
    value /= 1024;
    if (value < 1023.5 || unit === "TiB") return `${value < 99.95 ? value.toFixed(1) : value.toFixed(0)} ${unit}`;
  }
}

export const milliseconds = (value) => (value === null || value === undefined ? "–" : `${value < 10 ? value.toFixed(1) : value.toFixed(0)} ms`);
export const percent = (value) => (value === null || value === undefined ? "–" : `${(value * 100).toFixed(value && value < 0.1 ? 1 : 0)} %`);
export const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
