/**
 * The client as a program: options as one JSON argument, one JSON line on stdout for whatever happens, and signals for
 * what to do: SIGUSR2 loses the connection, SIGHUP pings, SIGTERM stops.
 */

import { TunnelClient, type Options } from "./client.js";

const options = JSON.parse(process.argv[2] ?? "{}") as Options;
const client = new TunnelClient(options);

function tell(event: string, fields: object = {}): void {
  process.stdout.write(`${JSON.stringify({ event, at: Date.now(), ...fields })}\n`);
}

client.on("connected", (tunnel_id: string, public_url: string) => tell("connected", { tunnel_id, public_url }));
client.on("error-message", (message: string) => tell("error", { message }));
client.on("failed", (message: string) => tell("failed", { message }));
client.on("closed", (code: number, reason: string) => tell("closed", { code, reason }));
client.on("cancelled", (request_id: string) => tell("cancelled", { request_id }));
client.on("pong", (timestamp: string) => tell("pong", { timestamp }));
client.on("request", (request: object) => tell("request", request));

process.on("SIGUSR2", () => client.cut());
process.on("SIGHUP", () => client.ping());
process.on("SIGTERM", () => client.stop());

if (options.serverKey !== undefined) {
  for (const again of [false, true]) {
    const said = await client.register("written for the tests");
    tell(again ? "registered-again" : "registered", said);
  }
}
client.on("connected", () => client.registerApiKey("visitors-may-come"));
client.connect();
