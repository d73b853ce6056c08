// A WebSocket client made with `ws`. Reads lines of JSON from stdin, one connection each:
//   {id, url, protocols, send: [[kind, text or size]], close: [code, reason] | null}
// kind is text, binary (a size), ping; when all echoes are there it closes. Without `send` it only listens. Writes what it
// saw, a line each.
import { createHash } from "node:crypto";
import { createInterface } from "node:readline";
import { WebSocket } from "ws";

const short = (data, binary) => [binary ? "bytes" : "str", data.length, createHash("sha256").update(data).digest("hex").slice(0, 12)];

function run({ id, url, protocols, send = [], close = null, deflate = true }) {
  const seen = { id, messages: [], pings: [], pongs: [], error: null, protocol: null, extensions: null };
  const socket = new WebSocket(url, protocols ?? [], { perMessageDeflate: deflate, maxPayload: 64 << 20 });
  const wanted = send.filter(([kind]) => kind !== "ping").length;
  const pongs = send.length - wanted;
  const finish = () => {
    if (close !== null && seen.messages.length === wanted && seen.pongs.length === pongs) socket.close(...close);
  };
  socket.on("open", () => {
    seen.protocol = socket.protocol;
    seen.extensions = socket.extensions;
    for (const [kind, what] of send) {
      if (kind === "text") socket.send(what);
      else if (kind === "binary") socket.send(Buffer.alloc(what, "x"));
      else socket.ping(what);
    }
    finish();
  });
  socket.on("message", (data, binary) => (seen.messages.push(short(data, binary)), finish()));
  socket.on("ping", (data) => seen.pings.push(short(data, true)));
  socket.on("pong", (data) => (seen.pongs.push(data.toString()), finish()));
  socket.on("unexpected-response", (request, response) => {
    console.log(JSON.stringify({ id, status: response.statusCode, code: response.headers["x-tunnel-error"] ?? null }));
    seen.told = true;
    request.destroy();
  });
  socket.on("error", (error) => (seen.error = error.code ?? "error"));
  socket.on("close", (code, reason) => {
    if (!seen.told) console.log(JSON.stringify({ ...seen, code, reason: reason.toString("latin1") }));
  });
}

createInterface({ input: process.stdin }).on("line", (line) => run(JSON.parse(line)));
