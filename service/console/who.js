// The API key of this tab, its roles, and the form to use another one or none.

import { html, useEffect, useRef, useState } from "./vendor/preact.js";
import { KEY_CHANGED, Problem, ROLES, getJson, key } from "./api.js";

/** {value: the answer of /whoami, error}; requested again when the key changes. */
export function useWhoAmI() {
  const [state, setState] = useState({});
  useEffect(() => {
    let asked = 0;
    const ask = () => {
      const turn = ++asked;
      const take = (next) => turn === asked && setState(next);
      getJson("whoami").then((value) => take({ value }), (error) => take({ error }));
    };
    ask();
    addEventListener(KEY_CHANGED, ask);
    return () => removeEventListener(KEY_CHANGED, ask);
  }, []);
  return state;
}

const listed = (roles) => html`<ul>${roles.map((r) => html`<li><b>${r}</b>: ${ROLES[r] ?? r}</li>`)}</ul>`;

/** The part in the page's header; empty if the service requires no key. signedOut: called after the key was dropped. */
export function Who({ me, signedOut }) {
  const place = useRef();
  const [asked, setAsked] = useState(false);
  useEffect(() => {
    const close = () => place.current && (place.current.open = false);
    addEventListener("hashchange", close);
    return () => removeEventListener("hashchange", close);
  }, []);
  if (me.value && !me.value.keys_required) return null;
  if (!me.value && !(me.error instanceof Problem && me.error.status === 401)) return null;
  const known = me.value;
  const leave = () => {
    place.current.open = false;
    key.set("");
    signedOut();
  };
  return html`<details class="who" ref=${place} onToggle=${(e) => setAsked(e.currentTarget.open)}>
    <summary>${known ? known.name : "No key"}</summary>
    ${asked && html`<div class="panel">${known
      ? html`<p>This tab uses the API key <b>${known.name}</b>. It may:</p>${listed(known.roles)}
        ${known.missing.length > 0 && html`<p>It lacks:</p>${listed(known.missing)}`}
        <p class="line"><button onClick=${leave}>Sign out</button><span class="quiet">Closing the tab does the same.</span></p>`
      : html`<p>${key.get() ? me.error.message : "This service asks for an API key, and this tab has none."}</p><${KeyForm} used=${() => { place.current.open = false; signedOut(); }} />`}</div>`}
  </details>`;
}

/** A form for a key. The key is used only if the service accepts it; otherwise the form says why not. */
export function KeyForm({ used }) {
  const field = useRef();
  const [wrong, setWrong] = useState("");
  const save = async (event) => {
    event.preventDefault();
    const before = key.get();
    setWrong("");
    key.set(field.current.value.trim());
    try {
      await getJson("whoami");
      used();
    } catch (error) {
      key.set(before);
      setWrong(error instanceof Problem && error.status === 401 ? `The service does not accept this key: ${error.message}` : error.message);
    }
  };
  return html`<form onSubmit=${save}>
    <p class="line"><label>API key <input ref=${field} type="password" autocomplete="off" spellcheck=${false} /></label>
      <button>Use it in this tab</button></p>
    ${wrong && html`<p class="wrong" role="alert">${wrong}</p>`}
    <p class="quiet">It stays in this tab until you sign out or close the tab.</p>
  </form>`;
}

/** Shown where a missing key, a wrong key or a missing role prevents an answer. */
export function NeedsKey({ error, again }) {
  const me = useWhoAmI();
  const known = error.status === 403 && me.value;
  return html`<div class="state">
    <h2>${error.status === 403 ? "This key may not do that" : key.get() ? "This key is not accepted" : "An API key is needed"}</h2>
    ${error.status === 401 && !key.get() ? html`<p>What a key may do depends on its roles:</p>${listed(Object.keys(ROLES))}` : html`<p>${error.message}.</p>`}
    ${known && html`<p>The key <b>${known.name}</b> may ${known.roles.map((r) => ROLES[r] ?? r).join("; ")}. A key with ${known.missing.length > 1 ? "the roles" : "the role"} <b>${known.missing.join(", ")}</b> may do the rest.</p>`}
    <${KeyForm} used=${() => again?.()} />
  </div>`;
}
