// Try: one input, scored once; the dial and the target redraw the answer here.

import { html, useMemo, useState } from "./vendor/preact.js";
import { getJson, modelPath, sendBytes, sendJson } from "./api.js";
import { adjusted, argmax, flips, groupOf, logNormalised, logSource, logitsOf } from "./formula.js";
import { Empty, Failed, Group, Loading, percent, useLoaded } from "./widgets.js";

const SHOWN = 10;
export const DIAL = 3;

const bytesOf = (base64) => Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));

/** Probabilities at tau = 0 of one input, by the public API. */
async function score(model, classes, input, signal) {
  const path = `${modelPath(model)}/predict?tau=0&top_k=${classes}`;
  const answer =
    input.png !== undefined && input.instance === undefined
      ? await sendBytes(path, new Blob([bytesOf(input.png)], { type: "image/png" }), { signal })
      : (await sendJson("POST", path, { instances: [input.instance] }, { signal })).body;
  const probabilities = new Array(classes);
  for (const { index, probability } of answer.predictions[0].top) probabilities[index] = probability;
  return { logits: logitsOf(probabilities), probabilities };
}

export function Try({ model }) {
  const loaded = useLoaded(
    async (signal) => {
      const [about, report] = await Promise.all([
        getJson(modelPath(model), { signal }),
        getJson(`${modelPath(model)}/report`, { signal }),
      ]);
      return { bundle: about.bundle, samples: report.samples || [], chosen: report.tau?.chosen };
    },
    [model],
  );
  if (loaded.error) return html`<${Failed} error=${loaded.error} again=${loaded.again} />`;
  if (!loaded.value) return html`<${Loading} what="the model" />`;
  return html`<${Bench} key=${model} model=${model} ...${loaded.value} />`;
}

function Bench({ model, bundle, samples, chosen }) {
  const [at, setAt] = useState(0);
  const [tau, setTau] = useState(bundle.default_tau);
  const [target, setTarget] = useState("uniform");
  const sample = samples[at];
  const scored = useLoaded(
    async (signal) => (sample ? score(model, bundle.class_names.length, sample, signal) : null),
    [model, at],
  );
  if (!sample)
    return html`<${Empty} title="No samples"><p>This model was published without sample inputs.</p></${Empty}>`;
  return html`<div class="bench">
    <section class="card" aria-label="Input">
      <h2>Input</h2>
      <div class="samples" role="group" aria-label="Samples shipped with the model">
        ${samples.map(
          (s, i) => html`<button class="sample" aria-pressed=${i === at} aria-label=${`Sample ${i + 1}: ${s.label}`} onClick=${() => setAt(i)}>
            ${s.png ? html`<img src=${`data:image/png;base64,${s.png}`} alt="" />` : s.label}
          </button>`,
        )}
      </div>
      <p class="quiet">True class: <b>${sample.label}</b></p>
    </section>
    <section class="card answer" aria-label="Answer">
      ${scored.error && html`<${Failed} error=${scored.error} again=${scored.again} />`}
      ${!scored.error && !scored.value && html`<${Loading} what="the answer" />`}
      ${scored.value &&
      html`<${Answer} bundle=${bundle} logits=${scored.value.logits} before=${scored.value.probabilities}
        tau=${tau} setTau=${setTau} target=${target} setTarget=${setTarget} chosen=${chosen} />`}
    </section>
  </div>`;
}

function Answer({ bundle, logits, before, tau, setTau, target, setTarget, chosen }) {
  const names = bundle.class_names;
  const counts = bundle.class_counts;
  const logSigma = useMemo(() => logSource(counts, bundle.loss_tau, names.length), [bundle]);
  const logRho = useMemo(
    () => logNormalised(target === "training" ? counts : new Array(names.length).fill(1)),
    [bundle, target],
  );
  if (!logSigma)
    return html`<${Empty} title="The label frequencies are unknown"><p>This model tells no class counts, so it answers as trained.</p></${Empty}>`;
  const after = adjusted(logits, logSigma, logRho, tau);
  const was = argmax(before);
  const is = argmax(after);
  const turns = flips(logits, logSigma, logRho, DIAL);
  return html`
    <p class="verdict" aria-live="polite">
      ${was === is
        ? html`<b>${names[is]}</b> <span class="quiet">as trained ${percent(before[was])}, now ${percent(after[is])}</span>`
        : html`<s>${names[was]}</s> <span aria-hidden="true">→</span><span class="sr"> becomes </span><b class="changed">${names[is]}</b>
            <span class="quiet">${percent(before[was])} → ${percent(after[is])}</span>`}
    </p>
    <div class="dial">
      <label for="tau">τ, how much of the adjustment is applied</label>
      <div class="line">
        <input id="tau" type="range" min="0" max=${DIAL} step="0.01" value=${tau} onInput=${(e) => setTau(+e.target.value)} />
        <output for="tau">${tau.toFixed(2)}</output>
      </div>
      <p class="quiet">0 is the model as trained, 1 the whole change${chosen === undefined || chosen === null ? "" : `; ${chosen} was best on validation`}.
        ${turns.length ? ` The answer changes at ${turns.map((t) => `${t.tau.toFixed(2)} (${names[t.to]})`).join(", ")}.` : " Turning the dial does not change this answer."}</p>
    </div>
    <fieldset class="choices"><legend>Target prior</legend>
      ${["uniform", "training"].map(
        (t) => html`<label><input type="radio" name="target" checked=${target === t} disabled=${t === "training" && !counts} onChange=${() => setTarget(t)} /> ${t}</label>`,
      )}
    </fieldset>
    <${BeforeAfter} names=${names} counts=${counts} before=${before} after=${after} />`;
}

function BeforeAfter({ names, counts, before, after }) {
  const rows = names
    .map((_, i) => i)
    .sort((a, b) => Math.max(before[b], after[b]) - Math.max(before[a], after[a]))
    .slice(0, SHOWN);
  if (names.length <= SHOWN) rows.sort((a, b) => a - b);
  return html`<table class="before-after">
    <caption class="sr">Probability of each class before and after the adjustment</caption>
    <thead><tr><th scope="col">Class</th><th scope="col"><span class="sr">Bars</span></th><th scope="col">As trained</th><th scope="col">Adjusted</th></tr></thead>
    <tbody>${rows.map(
      (i) => html`<tr key=${i}>
        <th scope="row">${names[i]} <${Group} name=${groupOf(counts?.[i])} /></th>
        <td class="bars"><i class="was" style=${{ width: `${100 * before[i]}%` }}></i><i class="is" style=${{ width: `${100 * after[i]}%` }}></i></td>
        <td class="number">${percent(before[i])}</td><td class="number">${percent(after[i])}</td>
      </tr>`,
    )}</tbody>
  </table>`;
}
