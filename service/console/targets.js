// The choice of the target on the Try page: built in, stored, or set by hand.

import { html, useMemo, useState } from "./vendor/preact.js";
import { Group, percent } from "./widgets.js";
import { groupOf } from "./formula.js";

const FEW_CLASSES = 12;

/** Slider position 0 … 100 to a weight: 0 is impossible, 50 is 1, each 25 a factor of 10. */
const weightAt = (position) => (position <= 0 ? 0 : 10 ** ((position - 50) / 25));
const positionOf = (weight) => (weight <= 0 ? 0 : Math.max(1, Math.min(100, 50 + 25 * Math.log10(weight))));

export const uniform = (names) => names.map(() => 1);

/** choice: {kind: "uniform" | "training" | "stored" | "custom", name?, weights?}. stored: [{name, revision}]. */
export function Target({ names, counts, stored, choice, choose, share }) {
  const is = (kind, name) => choice.kind === kind && choice.name === name;
  const radio = (kind, label, name, disabled = false) => html`<label class="chip">
    <input type="radio" name="target" checked=${is(kind, name)} disabled=${disabled} onChange=${() => choose({ kind, name })} /><span>${label}</span></label>`;
  return html`<fieldset class="chips"><legend>Target prior: the class mix that the answer assumes</legend>
      ${radio("uniform", "uniform")}
      ${radio("training", "as in training", undefined, !counts)}
      ${stored.map((p) => radio("stored", `${p.name} @${p.revision}`, p.name))}
      <label class="chip"><input type="radio" name="target" checked=${choice.kind === "custom"}
        onChange=${() => choose({ kind: "custom", weights: share.map((s) => s * names.length) })} /><span>by hand</span></label>
    </fieldset>
    ${choice.kind === "custom" && html`<${ByHand} names=${names} counts=${counts} weights=${choice.weights} share=${share}
      change=${(weights) => choose({ kind: "custom", weights })} />`}`;
}

function ByHand({ names, counts, weights, share, change }) {
  const [search, setSearch] = useState("");
  const shown = useMemo(() => {
    if (names.length <= FEW_CLASSES) return names.map((_, i) => i);
    const wanted = search.trim().toLowerCase();
    const found = [];
    for (let i = 0; i < names.length && found.length < FEW_CLASSES; i++)
      if (wanted ? names[i].toLowerCase().includes(wanted) : Math.abs(weights[i] - 1) > 1e-9) found.push(i);
    return found.length || wanted ? found : names.slice(0, 6).map((_, i) => i);
  }, [names, search, weights]);
  const set = (i, weight) => change(weights.map((w, j) => (j === i ? weight : w)));
  const few = names.map((_, i) => (groupOf(counts?.[i]) === "few" ? 10 : 1));
  const hasGroups = counts && few.some((w) => w > 1);
  const reversed = counts && names.map((_, i) => 1 / counts[i]);
  const scaled = (values) => {
    const sum = values.reduce((a, b) => a + b, 0);
    change(values.map((v) => (v / sum) * names.length));
  };
  return html`<div class="by-hand" role="group" aria-label="Weight of each class">
    <p class="line"><span class="quiet">Start from</span>
      <button class="small" onClick=${() => change(uniform(names))}>uniform</button>
      ${counts && html`<button class="small" onClick=${() => scaled(counts)}>training</button>
        <button class="small" onClick=${() => scaled(reversed)}>training reversed</button>`}
      ${hasGroups && html`<button class="small" onClick=${() => scaled(few)}>rare classes ×10</button>`}
      ${names.length > FEW_CLASSES && html`<input type="search" placeholder="Find a class" aria-label="Find a class to weigh" value=${search} onInput=${(e) => setSearch(e.target.value)} />`}
    </p>
    <div class="weights">${shown.map(
      (i) => html`<label key=${i}><span>${names[i]} <${Group} name=${groupOf(counts?.[i])} /></span>
        <input type="range" min="0" max="100" step="0.5" value=${positionOf(weights[i])} aria-valuetext=${percent(share[i], 2)}
          onInput=${(e) => set(i, weightAt(+e.target.value))} />
        <output class="number">${weights[i] === 0 ? "never" : percent(share[i], share[i] < 0.001 ? 3 : 1)}</output></label>`,
    )}</div>
  </div>`;
}
