// Small components that all pages use.

import { html, useEffect, useState } from "./vendor/preact.js";
import { Problem } from "./api.js";
import { NeedsKey } from "./who.js";

export const percent = (p, digits = 1) =>
  p === null || p === undefined || Number.isNaN(p) ? "–" : `${(100 * p).toFixed(p < 0.0995 && p > 0 ? Math.max(digits, 1) : digits)}\u00a0%`;

export const whole = (n) => (n === null || n === undefined ? "–" : Math.round(n).toLocaleString("en"));

/** A time from the API for people: only the time of day if it is today, else also the date. */
export function when(moment) {
  if (!moment) return "never";
  const at = new Date(moment);
  const today = at.toDateString() === new Date().toDateString();
  return at.toLocaleString("en-GB", today ? { hour: "2-digit", minute: "2-digit", second: "2-digit" } : { dateStyle: "medium", timeStyle: "short" });
}

export const Pager = ({ page, pages, go }) => html`<p class="line pager"><button class="small" disabled=${page === 0} onClick=${() => go(page - 1)}>Previous</button>
  <span class="quiet">${page + 1} of ${pages}</span><button class="small" disabled=${page >= pages - 1} onClick=${() => go(page + 1)}>Next</button></p>`;

/** Run `load` when `deps` change: {value, error, loading, again}. Outdated answers are dropped. */
export function useLoaded(load, deps) {
  const [state, setState] = useState({ loading: true });
  const [turn, setTurn] = useState(0);
  useEffect(() => {
    const controller = new AbortController();
    setState((before) => ({ ...before, loading: true, error: undefined }));
    load(controller.signal).then(
      (value) => controller.signal.aborted || setState({ value, loading: false }),
      (error) => controller.signal.aborted || setState({ error, loading: false }),
    );
    return () => controller.abort();
  }, [...deps, turn]);
  return { ...state, again: () => setTurn((n) => n + 1) };
}

export const Loading = ({ what }) => html`<p class="state" role="status"><span class="spinner" aria-hidden="true"></span>Loading ${what} …</p>`;

export const Empty = ({ title, children }) => html`<div class="state"><h2>${title}</h2><div>${children}</div></div>`;

/** Text of the service, where backticks mark code. */
export const Marked = ({ text }) => text.split("`").map((part, i) => (i % 2 ? html`<code>${part}</code>` : part));

/** An error, and the next step: another key after a 401 or 403, else a button to try again. */
export function Failed({ error, again }) {
  if (error instanceof Problem && (error.status === 401 || error.status === 403))
    return html`<${NeedsKey} error=${error} again=${again} />`;
  return html`<div class="state bad" role="alert">
    <h2>${error.title ?? "No answer"}</h2>
    <p><${Marked} text=${error.message} /></p>
    ${again && html`<button onClick=${again}>Try again</button>`}
  </div>`;
}

async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Browsers offer no clipboard API to pages that came over plain HTTP from another machine.
    const field = Object.assign(document.createElement("textarea"), { value: text, className: "sr" });
    document.body.append(field);
    field.select();
    const done = document.execCommand("copy");
    field.remove();
    return done;
  }
}

/** A button that copies text and confirms it. */
export function Copy({ text, label }) {
  const [done, setDone] = useState("");
  const copy = async () => {
    setDone((await copied(text())) ? "Copied" : "Copying is blocked");
    setTimeout(() => setDone(""), 1800);
  };
  return html`<button class="small" onClick=${copy}><span aria-live="polite">${done || label}</span></button>`;
}

export const Group = ({ name }) => html`<span class=${`group ${name}`}>${name}</span>`;
