// Compares other models or versions with the page's own: their answers to the same input, tau and target.

import { html, useMemo, useState } from "./vendor/preact.js";
import { getJson, modelPath, sendJson } from "./api.js";
import { Failed, Loading, percent, useLoaded } from "./widgets.js";

const TOP = 5;

/** Every other loaded version that takes this kind of input, as [{name, version}]; those of the same model first. */
async function others(bundle, signal) {
  const { models } = await getJson("models", { signal });
  const all = models.filter((m) => m.input === bundle.input.kind).flatMap((m) => m.versions.map((version) => ({ name: m.name, version })));
  const here = (m) => m.name === bundle.name;
  return all.filter((m) => !(here(m) && m.version === bundle.version)).sort((a, b) => here(b) - here(a));
}

/** prior: a built-in name, or {target: {class: weight}}. A stored prior belongs to one model, so its target is sent instead. */
export function Beside({ bundle, input, tau, prior }) {
  const list = useLoaded((signal) => others(bundle, signal), [bundle]);
  const [chosen, setChosen] = useState([]);
  if (!list.value?.length) return null;
  const key = (m) => `${m.name}/${m.version}`;
  const turn = (name, on) => setChosen(on ? [...chosen, name] : chosen.filter((n) => n !== name));
  const shown = list.value.filter((m) => chosen.includes(key(m)));
  return html`<details class="beside"><summary>Compare with other models or versions</summary>
    <fieldset class="chips"><legend class="sr">Models and versions</legend>${list.value.map((m) => html`<label class="chip"><input type="checkbox" checked=${chosen.includes(key(m))} onChange=${(e) => turn(key(m), e.target.checked)} /><span>${m.name} version ${m.version}</span></label>`)}</fieldset>
    <div class="others">${shown.map((at) => html`<${Answer} key=${key(at)} ...${{ at, input, tau, prior }} />`)}</div></details>`;
}

function Answer({ at, input, tau, prior }) {
  const rounded = Math.round(tau * 100) / 100;
  const asked = useMemo(() => ({ instances: [input.instance], settings: [{ tau: 0 }, { tau: rounded, prior }], parameters: { top_k: 1 } }), [input.id, rounded, JSON.stringify(prior)]);
  const found = useLoaded(
    async (signal) => {
      const { bundle } = await getJson(`${modelPath(at.name)}?version=${at.version}`, { signal });
      const parameters = { version: at.version, top_k: Math.min(TOP, bundle.class_names.length) };
      return (await sendJson("POST", `${modelPath(at.name)}/adjust`, { ...asked, parameters }, { signal })).body;
    },
    [at.name, at.version, asked],
  );
  if (found.error) return html`<div><p>${at.name} version ${at.version}:</p><${Failed} error=${found.error} again=${found.again} /></div>`;
  if (!found.value) return html`<${Loading} what="its answer" />`;
  const [was, is] = found.value.results.map((r) => r.predictions[0]);
  return html`<div role="status" aria-label=${`The answer of ${at.name} version ${at.version}`}><p>${at.name} version ${at.version} answers <b>${is.label}</b> (${percent(is.probability)})${was.label === is.label ? "" : html`, <s>${was.label}</s> as trained`}.</p>
    <table class="plain"><thead><tr><th scope="col">Class</th><th scope="col" class="number">At this setting</th></tr></thead>
      <tbody>${is.top.map((t) => html`<tr class="first"><th scope="row">${t.label}</th><td class="number">${percent(t.probability)}</td></tr>`)}</tbody></table></div>`;
}
