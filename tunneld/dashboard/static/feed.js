// The live feed: server-sent events read by fetch, because EventSource cannot carry a token.

const SILENCE = 20000; // ms without a byte after which the daemon is taken for gone: four of its keepalives
const KEY = "tunneld-token";

let token = sessionStorage.getItem(KEY);

export function remember(value) {
  token = value;
  if (value) sessionStorage.setItem(KEY, value);
  else sessionStorage.removeItem(KEY);
}

// Ask the API; a change carries the header that no page of another site can set.
export async function ask(path, { method = "GET", signal } = {}) {
  const headers = { "X-Tunneld-Request": "dashboard" };
  if (token) headers.Authorization = `Bearer ${token}`;
  return fetch(path, { method, headers, signal, cache: "no-store", credentials: "omit", redirect: "error" });
}

// What a refusal says, in one sentence.
export async function why(answer) {
  try {
    const problem = await answer.clone().json();
    return problem.detail || problem.title || `The daemon answered ${answer.status}.`;
  } catch {
    return (await answer.text()).trim() || `The daemon answered ${answer.status}.`;
  }
}

// The daemon says why there is no feed, in words for a person.
export class Told extends Error {}
// It asks for a token, or the caller may not read it.
export class Refused extends Told {}

// Read a feed until it ends, or `control` is aborted; calls heard(kind, value) for each message. Throws Told or Refused.
export async function read(path, heard, control = new AbortController()) {
  let timer = setTimeout(() => control.abort(), SILENCE);
  try {
    const answer = await ask(path, { signal: control.signal });
    if (answer.status === 401 || answer.status === 403) throw new Refused(await why(answer));
    if (!answer.ok) throw new Told(await why(answer));
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      clearTimeout(timer);
      timer = setTimeout(() => control.abort(), SILENCE);
      rest += value;
      let end;
      let from = 0;
      while ((end = rest.indexOf("\n\n", from)) >= 0) {
        const message = rest.slice(from, end);
        from = end + 2;
        const found = /^event: (.*)\ndata: (.*)$/.exec(message);
        if (found) heard(found[1], JSON.parse(found[2]));
      }
      rest = rest.slice(from);
    }
  } finally {
    clearTimeout(timer);
  }
}
