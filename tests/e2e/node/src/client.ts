/**
 * A client of the older dialect as the field has them: TypeScript, the `ws` package, Node's own `http`.
 * Written from the description of the dialect alone; it shares nothing with the server.
 */

import { EventEmitter } from "node:events";
import http from "node:http";
import { StringDecoder } from "node:string_decoder";
import WebSocket from "ws";

const PING_EVERY = 25_000;
const COME_BACK = 5_000;

export interface Options {
  /** Base address of the server: `http://HOST`, with `/v2/TOKEN` behind it where the server wants tokens. */
  base: string;
  name: string;
  /** The local service: `http://127.0.0.1:PORT`. */
  service: string;
  serverKey?: string;
}

interface TunnelRequest {
  type: "request";
  request_id: string;
  method: string;
  path: string;
  headers: Record<string, string>;
  query_params: Record<string, string>;
  body?: string;
  tunnel_id: string;
}

type FromServer =
  | TunnelRequest
  | { type: "connected"; tunnel_id: string; public_url: string }
  | { type: "ping"; timestamp: string }
  | { type: "pong"; timestamp: string }
  | { type: "stream_cancel"; request_id: string }
  | { type: "error"; message: string };

/** Emits `connected`, `error`, `closed`, `request`, `cancelled`, `pong`. */
export class TunnelClient extends EventEmitter {
  private socket: WebSocket | undefined;
  private pinger: NodeJS.Timeout | undefined;
  private comeBack: NodeJS.Timeout | undefined;
  private stopped = false;
  private readonly streams = new Map<string, http.ClientRequest>();

  constructor(private readonly options: Options) {
    super();
  }

  /** Tell the server who we are; resolves with the status and what it answered. */
  async register(description: string): Promise<{ status: number; body: Record<string, unknown> }> {
    const response = await fetch(`${this.options.base}/register`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({
        name: this.options.name,
        server_key: this.options.serverKey,
        description,
        connection_url: this.options.service,
      }),
    });
    return { status: response.status, body: (await response.json()) as Record<string, unknown> };
  }

  connect(): void {
    const base = this.options.base.replace(/^http/, "ws");
    const socket = new WebSocket(`${base}/tunnel/connect?name=${encodeURIComponent(this.options.name)}`);
    this.socket = socket;
    socket.on("open", () => {
      this.pinger = setInterval(() => this.ping(), PING_EVERY);
    });
    socket.on("message", (data) => this.take(JSON.parse(data.toString()) as FromServer));
    socket.on("error", (error) => this.emit("failed", error.message));
    socket.on("close", (code, reason) => this.over(code, reason.toString()));
  }

  ping(): void {
    this.say({ type: "ping", timestamp: new Date().toISOString() });
  }

  registerApiKey(key: string): void {
    this.say({ type: "register_api_key", api_key: key });
  }

  stop(): void {
    this.stopped = true;
    clearTimeout(this.comeBack);
    this.socket?.close();
  }

  /** Lose the connection as a network does. */
  cut(): void {
    this.socket?.terminate();
  }

  private say(message: object): void {
    if (this.socket?.readyState === WebSocket.OPEN) {
      this.socket.send(JSON.stringify(message));
    }
  }

  private over(code: number, reason: string): void {
    clearInterval(this.pinger);
    for (const request of this.streams.values()) request.destroy();
    this.streams.clear();
    this.emit("closed", code, reason);
    if (!this.stopped) this.comeBack = setTimeout(() => this.connect(), COME_BACK);
  }

  private take(message: FromServer): void {
    switch (message.type) {
      case "connected":
        this.emit("connected", message.tunnel_id, message.public_url);
        break;
      case "ping":
        this.say({ type: "pong", timestamp: message.timestamp });
        break;
      case "pong":
        this.emit("pong", message.timestamp);
        break;
      case "error":
        this.emit("error-message", message.message);
        break;
      case "stream_cancel":
        this.emit("cancelled", message.request_id);
        this.streams.get(message.request_id)?.destroy();
        this.streams.delete(message.request_id);
        break;
      case "request":
        this.emit("request", message);
        this.forward(message);
        break;
    }
  }

  private forward(message: TunnelRequest): void {
    const isStream = message.method === "GET" && message.path.includes("/sse");
    const request = http.request(
      this.options.service + message.path,
      { method: message.method, headers: message.headers },
      (answer) => {
        if (isStream && answer.statusCode === 200) this.stream(message.request_id, answer);
        else this.answer(message.request_id, answer);
      },
    );
    request.on("error", (error) => {
      this.streams.delete(message.request_id);
      this.respond(message.request_id, 502, { "content-type": "text/plain" }, `Bad gateway: ${error.message}`);
    });
    if (isStream) this.streams.set(message.request_id, request);
    if (message.body !== undefined) request.write(message.body);
    request.end();
  }

  private stream(id: string, answer: http.IncomingMessage): void {
    const decoder = new StringDecoder("utf8");
    answer.on("data", (piece: Buffer) => this.say({ type: "stream_chunk", request_id: id, body: decoder.write(piece) }));
    answer.on("end", () => {
      this.streams.delete(id);
      this.say({ type: "stream_end", request_id: id });
    });
  }

  private answer(id: string, answer: http.IncomingMessage): void {
    this.streams.delete(id);
    const pieces: Buffer[] = [];
    answer.on("data", (piece: Buffer) => pieces.push(piece));
    answer.on("end", () => {
      const headers: Record<string, string> = {};
      for (const [name, value] of Object.entries(answer.headers)) {
        if (value !== undefined) headers[name] = Array.isArray(value) ? value.join(", ") : value;
      }
      this.respond(id, answer.statusCode ?? 502, headers, Buffer.concat(pieces).toString());
    });
  }

  private respond(id: string, status: number, headers: Record<string, string>, body: string): void {
    this.say({ type: "response", request_id: id, status_code: status, headers, body });
  }
}
