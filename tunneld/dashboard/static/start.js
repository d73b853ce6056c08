// Loads the page's scripts once it is painted: before, they would take the processor from the first paint, a tenth of a
// second in a browser that was just started; and the daemon's first call loads a core for a second or two.
const MODULES = ["alerts", "app", "changes", "curves", "details", "feed", "figures", "known", "looking", "table", "tables", "timeline", "words"];

// A page that is not seen is never painted, and one may be hidden meanwhile: then it begins all the same.
function painted() {
  return new Promise((done) => {
    const look = (list) => list.getEntriesByName("first-contentful-paint").length && done(); // the first may be of the paper alone
    new PerformanceObserver(look).observe({ type: "paint", buffered: true });
    setTimeout(done, document.hidden ? 0 : 500);
  });
}

await painted();
for (const name of MODULES) {
  const link = document.createElement("link"); // all at once, not one after the other as they name each other
  link.rel = "modulepreload";
  link.href = `dashboard/${name}.js`;
  document.head.append(link);
}
await import("./app.js");
