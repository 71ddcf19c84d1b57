// The public API of the service: relative addresses, problems as errors, the API key of this tab.

const KEY = "priordial-key";

/** An error answer of the service, with its own message. */
export class Problem extends Error {
  constructor(status, body) {
    super(body.detail || body.title || `The service answered ${status}`);
    this.status = status;
    this.title = body.title || "The request failed";
    this.errors = body.errors || [];
    this.type = body.type || "";
  }
}

/** The service could not be reached at all. */
export class Unreachable extends Error {}

/** Fired on the window when the tab's key changes or is dropped. */
export const KEY_CHANGED = "priordial-key-changed";

/** The API key is kept only in this tab's session storage, and never written into a URL or a snippet. */
export const key = {
  get: () => sessionStorage.getItem(KEY) || "",
  set: (value) => {
    if (value) sessionStorage.setItem(KEY, value);
    else sessionStorage.removeItem(KEY);
    dispatchEvent(new Event(KEY_CHANGED));
  },
};

/** What each role allows, in words. */
export const ROLES = {
  predict: "score inputs (Try)",
  observe: "read priors, traffic and reports",
  operate: "change priors and load models; includes observe",
};

async function request(method, path, { body, headers = {}, signal } = {}) {
  const all = { ...headers };
  if (key.get()) all["Authorization"] = `Bearer ${key.get()}`;
  let response;
  try {
    response = await fetch(path, { method, body, headers: all, signal, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Unreachable("The service cannot be reached. Is it still running?");
  }
  if (!response.ok) {
    const problem = await response.json().catch(() => ({}));
    throw new Problem(response.status, problem);
  }
  return response;
}

/** GET as JSON. */
export const getJson = async (path, options) => (await request("GET", path, options)).json();

/** GET as text, for /metrics. */
export const getText = async (path, options) => (await request("GET", path, options)).text();

/** Send an object as JSON. Returns {etag, status, body} of the answer. */
export async function sendJson(method, path, value, { headers = {}, signal } = {}) {
  const response = await request(method, path, {
    body: value === undefined ? undefined : JSON.stringify(value),
    headers: value === undefined ? headers : { "Content-Type": "application/json", ...headers },
    signal,
  });
  const text = await response.text();
  return { etag: response.headers.get("ETag"), status: response.status, body: text ? JSON.parse(text) : null };
}

/** Send raw bytes, for images. */
export async function sendBytes(path, blob, { signal } = {}) {
  return (await request("POST", path, { body: blob, headers: { "Content-Type": blob.type }, signal })).json();
}

export const modelPath = (model) => `models/${encodeURIComponent(model)}`;
