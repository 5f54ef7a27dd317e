/** Requests to the server, and their failures in plain words. */

const TOKEN = "yolact-token";

/** A request failed. `kind`: "away", "busy", "token" or "refused"; `wait`: seconds until a retry makes sense. */
export class RequestError extends Error {
  constructor(kind, message, wait = 2) {
    super(message);
    this.kind = kind;
    this.wait = wait;
  }
}

/** Remember the token until the tab is closed. */
export function rememberToken(token) {
  if (token) sessionStorage.setItem(TOKEN, token);
  else sessionStorage.removeItem(TOKEN);
}

/** Answer of the server as JSON; throws RequestError. */
export async function ask(path, { method = "GET", body, type, signal } = {}) {
  const headers = {};
  const token = sessionStorage.getItem(TOKEN);
  if (token) headers.Authorization = `Bearer ${token}`;
  if (type) headers["Content-Type"] = type;
  let answer;
  try {
    answer = await fetch(path, { method, body, headers, signal, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new RequestError("away", "The server does not answer.");
  }
  const tree = await answer.json().catch(() => ({}));
  if (answer.ok) return tree;
  throw failure(answer.status, tree.error ?? "", Number(answer.headers.get("Retry-After")) || 2);
}

function failure(status, text, wait) {
  if (status === 401) return new RequestError("token", "The server needs a token.");
  if (status === 429) return new RequestError("busy", "The server is busy.", wait);
  if (status === 503 && text.startsWith("the model")) {
    return new RequestError("away", "The server has no model yet.", wait);
  }
  if (status === 503 && text.startsWith("the candidate")) {
    return new RequestError("refused", "The server could not load its candidate yet; its log says why.");
  }
  if (status >= 502 && status <= 503) return new RequestError("away", "The server is not available.", wait);
  if (status === 504) return new RequestError("refused", "The server took too long. Try a smaller image.");
  if (status === 413) return new RequestError("refused", `The image is too large: ${text}.`);
  const reason = text.replace(/^image 1( \(.*?\))?: /, "");
  if (status === 422 || status === 415) return new RequestError("refused", `This image cannot be used: ${reason}.`);
  return new RequestError("refused", `The server could not answer (${status})${text ? `: ${text}` : ""}.`);
}

/** Wait until the server is ready again. */
export async function untilReady(signal, seconds = 2) {
  for (;;) {
    await pause(seconds, signal);
    try {
      const answer = await fetch("readyz", { cache: "no-store", signal });
      if (answer.ok) return;
    } catch (error) {
      if (error.name === "AbortError") throw error;
    }
  }
}

/** Wait; throws AbortError if the signal comes first. */
export function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(new DOMException("aborted", "AbortError"));
    });
  });
}
