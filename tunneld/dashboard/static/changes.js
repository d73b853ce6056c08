// What a person may do about a tunnel or a stream, each asked about once more before it is done.
import { ask, why } from "./feed.js";
import { changed, daemon } from "./known.js";
import { byId, put } from "./table.js";
import { plural } from "./words.js";

let hush;
export function say(text) {
  put(byId("said"), text);
  clearTimeout(hush);
  hush = setTimeout(() => put(byId("said"), ""), 6000);
}

// Whether a person says yes; the safe answer has the focus.
export function confirmed(title, text, yes) {
  put(byId("confirm-title"), title);
  put(byId("confirm-text"), text);
  put(byId("confirm-yes"), yes);
  const dialog = byId("confirm");
  dialog.returnValue = "";
  dialog.showModal();
  byId("confirm-no").focus();
  return new Promise((answer) => {
    dialog.addEventListener("close", () => answer(dialog.returnValue === "yes"), { once: true });
  });
}
byId("confirm-no").addEventListener("click", () => byId("confirm").close(""));
byId("confirm-yes").addEventListener("click", () => byId("confirm").close("yes"));

async function change(item, method, path, done) {
  item.asked = true;
  changed();
  try {
    const answer = await ask(`${daemon.api}/${path}`, { method });
    say(answer.ok ? done : await why(answer));
  } catch {
    say("The daemon could not be reached; nothing is known to have changed.");
  } finally {
    item.asked = false;
    changed();
  }
}

export async function cancel(item) {
  const text = `${item.method} ${item.path} of ${item.tunnel}, from ${item.client || "an unknown client"}: its service's work stops now.`;
  if (await confirmed("Cancel this stream?", text, "Cancel stream")) {
    await change(item, "DELETE", `streams/${encodeURIComponent(item.request_id)}`, `Cancelled ${item.path} of ${item.tunnel}.`);
  }
}

export async function reconnect(item) {
  const text = `The connection of ${item.name} is closed and dialled again. ${item.streams ? `Its ${plural(item.streams, "stream")} should go on where they were.` : "It carries no stream now."}`;
  if (await confirmed(`Reconnect ${item.name}?`, text, "Reconnect")) {
    await change(item, "POST", `tunnels/${encodeURIComponent(item.name)}/reconnect`, `${item.name} dials again.`);
  }
}
