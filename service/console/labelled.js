// The user's own labelled inputs: balanced error over tau, and the confusion matrix at the tau of the dial.

import { html, useMemo } from "./vendor/preact.js";
import { Chart } from "./chart.js";
import { DIAL_MAX } from "./dial.js";
import { adjusted, argmax } from "./formula.js";
import { percent, whole } from "./widgets.js";

const STEPS = 30;
const GRID = Array.from({ length: STEPS + 1 }, (_, i) => (i * DIAL_MAX) / STEPS);
const MOST_CLASSES = 20;

/** The mean error rate of the true classes; null without cases. cases: [[truth, answer]] as class indices. */
export function balancedError(cases) {
  const seen = new Map();
  for (const [truth, answer] of cases) {
    const [n, wrong] = seen.get(truth) ?? [0, 0];
    seen.set(truth, [n + 1, wrong + (answer !== truth)]);
  }
  return seen.size ? [...seen.values()].reduce((sum, [n, wrong]) => sum + wrong / n, 0) / seen.size : null;
}

export function Labelled({ inputs, scores, answers, rule, tau, setTau, names }) {
  const place = useMemo(() => new Map(names.map((name, i) => [name, i])), [names]);
  const cases = inputs.filter((i) => i.own && i.label !== undefined && scores[i.id]?.logits);
  const curve = useMemo(
    () => GRID.map((t) => 100 * (balancedError(cases.map((i) => [place.get(i.label), argmax(adjusted(scores[i.id].logits, rule.logSigma, rule.logRho, rule.unknown ? 0 : t))])) ?? 0)),
    [cases.length, rule],
  );
  if (cases.length < 2) return null;
  const pairs = cases.map((i) => [place.get(i.label), answers[i.id].is]);
  const now = balancedError(pairs);
  const classes = [...new Set(pairs.flat())].sort((a, b) => a - b);
  const least = Math.min(...curve);
  const best = GRID[curve.indexOf(least)];
  return html`<section aria-label="Your labelled inputs"><h3>Your ${whole(cases.length)} labelled inputs</h3>
    <p>Balanced error at τ = ${tau.toFixed(2)}: <b>${percent(now)}</b>; as trained ${percent(curve[0] / 100)}; lowest at τ = <button class="link" onClick=${() => setTau(best)}>${best.toFixed(1)}</button>: ${percent(least / 100)}.${" "}<span class="quiet">A small sample is noisy: do not choose τ from it.</span></p>
    <${Chart} say="Balanced error of your labelled inputs over tau" data=${[GRID, curve]} mark=${tau} height=${170} shape=${`labelled${cases.length}`} onPick=${(x) => setTau(Math.max(0, Math.min(DIAL_MAX, Math.round(x * 100) / 100)))}
      x=${{ label: "τ" }} y=${{ label: "balanced error", values: (v) => `${v} %`, range: [0, 100] }} series=${[{ label: "balanced error", stroke: "accent" }]} />
    ${classes.length <= MOST_CLASSES ? html`<${Confusion} pairs=${pairs} classes=${classes} names=${names} />` : html`<p class="quiet">The confusion matrix is shown for up to ${MOST_CLASSES} classes; these inputs have ${whole(classes.length)}.</p>`}</section>`;
}

function Confusion({ pairs, classes, names }) {
  const count = (truth, answer) => pairs.filter(([t, a]) => t === truth && a === answer).length;
  return html`<div class="scroll" tabindex="0" role="region" aria-label="Confusion of your inputs"><table class="confusion"><caption class="sr">How often each true class got each answer</caption>
    <thead><tr><th scope="col" class="axes">truth ↓ answer →</th>${classes.map((c) => html`<th scope="col"><span>${names[c]}</span></th>`)}</tr></thead>
    <tbody>${classes.map((truth) => html`<tr><th scope="row">${names[truth]}</th>${classes.map((answer) => {
      const n = count(truth, answer);
      return html`<td class=${n && truth !== answer ? "mistaken" : ""}>${n || ""}</td>`;
    })}</tr>`)}</tbody></table></div>`;
}
