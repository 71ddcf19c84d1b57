// The Priors page: the list of priors, and one prior with its vectors, editor and history.

import { html, useState } from "./vendor/preact.js";
import { getJson, modelPath, sendJson } from "./api.js";
import { Editor } from "./prior-edit.js";
import { History, MEMBERS, brief } from "./prior-history.js";
import { Vectors } from "./prior-view.js";
import { CopyAs } from "./snippets.js";
import { Failed, Loading, useLoaded, when } from "./widgets.js";

export const priorPath = (model, name) => `${modelPath(model)}/priors/${encodeURIComponent(name)}`;
const NAME = /^[a-z0-9][a-z0-9._-]{0,63}$/;

export function Priors({ model, query, go }) {
  const loaded = useLoaded(
    async (signal) => {
      const [list, about] = await Promise.all([getJson(`${modelPath(model)}/priors`, { signal }), getJson(modelPath(model), { signal })]);
      return { list, bundle: about.bundle };
    },
    [model],
  );
  if (loaded.error) return html`<${Failed} error=${loaded.error} again=${loaded.again} />`;
  if (loaded.value?.list.model !== model) return html`<${Loading} what="the priors" />`;
  const { list, bundle } = loaded.value;
  const stored = list.priors.map((p) => p.name);
  const name = query.get("name") ?? (stored.includes("default") ? "default" : stored[0] ?? "default");
  return html`<h1>Priors of ${model}</h1><div class="bench list">
    <section class="card" aria-label="All priors"><h2>All priors</h2>
      <${List} list=${list} name=${name} go=${go} />
      <${Fresh} taken=${[...stored, ...list.built_in]} go=${go} />
    </section>
    <${Prior} key=${`${model} ${name}`} model=${model} bundle=${bundle} name=${name} builtIn=${list.built_in.includes(name)} stored=${stored.includes(name)}
      tab=${query.get("tab") ?? "view"} go=${go} changed=${loaded.again} />
  </div>`;
}

function List({ list, name, go }) {
  const entries = [...list.priors];
  if (!entries.some((p) => p.name === "default")) entries.unshift({ name: "default", unstored: true });
  const line = (p) => html`<li><a href=${go.to({ name: p.name })} aria-current=${p.name === name ? "true" : undefined}>
    <b>${p.name}</b> ${p.unstored ? html`<span class="quiet">not stored: the model's own rule</span>` : p.builtIn ? html`<span class="quiet">built in</span>`
      : html`<span class="quiet">@${p.revision}, ${when(p.updated_at)}${p.by && p.by !== "anonymous" ? ` by ${p.by}` : ""}</span>`}
    ${p.note && html`<span class="quiet cut">${p.note}</span>`}
    ${p.fits === false && html`<span class="wrong">made for another class list; not applied</span>`}</a></li>`;
  return html`<ul class="names">${entries.map(line)}${list.built_in.map((b) => line({ name: b, builtIn: true }))}</ul>`;
}

function Fresh({ taken, go }) {
  const [name, setName] = useState("");
  const wrong = name && !NAME.test(name) ? "Use at most 64 lowercase letters, digits, '.', '_' and '-', with a letter or digit first." : taken.includes(name) ? "A prior with this name already exists." : "";
  const make = (event) => {
    event.preventDefault();
    if (name && !wrong) go({ name, tab: "edit" });
  };
  return html`<form class="line" onSubmit=${make}><input type="text" aria-label="Name of a new prior" placeholder="new-name" value=${name} onInput=${(e) => setName(e.target.value.trim())} spellcheck=${false} />
    <button disabled=${!name || Boolean(wrong)}>New prior</button>${wrong && html`<span class="wrong" role="alert">${wrong}</span>`}</form>`;
}

function Prior({ model, bundle, name, builtIn, stored, tab, go, changed }) {
  const path = priorPath(model, name);
  const exists = stored || builtIn || name === "default";
  const found = useLoaded(async (signal) => (exists ? getJson(path, { signal }) : null), [path, exists]);
  const [notice, setNotice] = useState("");
  const readAgain = () => {
    found.again();
    changed();
  };
  const done = (words) => {
    setNotice(words);
    readAgain();
  };
  if (found.error) return html`<section class="card"><${Failed} error=${found.error} again=${found.again} /></section>`;
  if (found.value === undefined) return html`<section class="card"><${Loading} what="the prior" /></section>`;
  const prior = found.value;
  const tabs = builtIn ? [["view", "Vectors"]] : [...(prior ? [["view", "Vectors"]] : []), ["edit", "Edit"], ...(exists || tab === "history" ? [["history", "History"]] : [])];
  const here = tabs.some(([t]) => t === tab) ? tab : tabs[0][0];
  return html`<section class="card" aria-label=${`Prior ${name}`}>
    <div class="line apart"><h2 class="big">${name}${prior?.revision ? html` <span class="quiet">revision ${prior.revision}</span>` : ""}</h2>
      ${tabs.length > 1 && html`<div class="tabs" role="group" aria-label="What to show">${tabs.map(([t, words]) => html`<a href=${go.to({ name, tab: t })} aria-current=${t === here ? "true" : undefined}>${words}</a>`)}</div>`}</div>
    ${prior?.updated_at && html`<p class="quiet">Saved ${when(prior.updated_at)}${prior.by && prior.by !== "anonymous" ? ` by ${prior.by}` : ""}${prior.note && html`: <q>${prior.note}</q>`}.${prior.expected ? " The target is the mix that traffic is expected to have." : ""}</p>`}
    ${!stored && name === "default" && html`<p class="quiet">Nothing is stored under this name. ${prior && !prior.source_prior ? "The model states no class counts, so its answers are not adjusted until you save label frequencies here." : "The model's own rule applies: the model's source prior is divided out, and the target is uniform."} What you save here applies to every request that names no prior.</p>`}
    ${prior?.warnings.map((w) => html`<p class="note">${w}</p>`)}
    ${notice && html`<p class="done" role="status">${notice}</p>`}
    ${here === "view" && html`${MEMBERS.filter((m) => prior.as_written?.[m]).map((m) => html`<p>Its ${m}: <code>${brief(prior.as_written[m])}</code></p>`)}<${Vectors} bundle=${bundle} prior=${prior} />
      <p class="line apart"><${CopyAs} what="this prior" call=${() => ({ method: "GET", path })} />
      ${stored && html`<${Remove} path=${path} name=${name} revision=${prior.revision} removed=${() => { go({ name: "default" }); changed(); }} />`}</p>`}
    ${here === "edit" && html`<${Editor} bundle=${bundle} path=${path} name=${name} prior=${prior} stored=${stored} saved=${(words) => { go({ name, tab: "view" }); done(words); }} />`}
    ${here === "history" && html`<${History} bundle=${bundle} path=${path} name=${name} prior=${prior ?? { revision: 0, name }} done=${done} stale=${readAgain} />`}
  </section>`;
}

function Remove({ path, name, revision, removed }) {
  const [asked, setAsked] = useState(false);
  const [error, setError] = useState("");
  const remove = async () => {
    try {
      await sendJson("DELETE", path, undefined, { headers: { "If-Match": `"${revision}"` } });
      removed();
    } catch (problem) {
      setError(problem.message);
    }
  };
  if (!asked) return html`<button class="small" onClick=${() => setAsked(true)}>Take out of use …</button>`;
  return html`<span class="line" role="group" aria-label="Take out of use">Requests that name ${name} will ${name === "default" ? "use the model's own rule" : "be refused"}. The history stays, and you can go back to any revision in it.
    <button class="small danger" onClick=${remove}>Take ${name} out of use</button><button class="small" onClick=${() => setAsked(false)}>Keep it</button>
    ${error && html`<span class="wrong" role="alert">${error}</span>`}</span>`;
}
