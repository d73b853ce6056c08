// A WebSocket service made with `ws`: says all back under /echo. One line of JSON on stdout for its port, and one for
// each connection that ended: what came, how it ended, by the number in the query.
import { createHash } from "node:crypto";
import { WebSocketServer } from "ws";

const short = (data, binary) => [binary ? "bytes" : "str", data.length, createHash("sha256").update(data).digest("hex").slice(0, 12)];
const say = (what) => console.log(JSON.stringify(what));

const server = new WebSocketServer({
  port: 0,
  host: "127.0.0.1",
  perMessageDeflate: { threshold: 0 },
  maxPayload: 64 << 20,
  handleProtocols: (offered) => (offered.has("chat.v2") ? "chat.v2" : false),
});
server.on("listening", () => say({ port: server.address().port }));
server.on("connection", (socket, request) => {
  const [path, query] = request.url.split("?");
  const seen = { query, messages: [], pings: [], error: null };
  socket.on("message", (data, binary) => {
    seen.messages.push(short(data, binary));
    if (path === "/echo" && socket.readyState === 1) socket.send(data, { binary });
  });
  socket.on("ping", (data) => seen.pings.push(short(data, true)));
  socket.on("error", (error) => (seen.error = error.code));
  socket.on("close", (code, reason) => say({ ...seen, code, reason: reason.toString("latin1") }));
});
