// The Try page: the service scores each input once, at tau = 0; the page itself computes the answers for the dial.

import { html, useEffect, useMemo, useRef, useState } from "./vendor/preact.js";
import { Problem, getJson, modelPath, sendJson } from "./api.js";
import { Beside } from "./beside.js";
import { Chart } from "./chart.js";
import { DIAL_MAX, Dial } from "./dial.js";
import { adjusted, argmax, decide, flips, groupOf, logNormalised, logSource, logitsOf, measuredSource } from "./formula.js";
import { Sources } from "./inputs.js";
import { fromSample } from "./instances.js";
import { Labelled } from "./labelled.js";
import { CopyAs } from "./snippets.js";
import { Target, uniform } from "./targets.js";
import { Empty, Failed, Group, Loading, percent, useLoaded } from "./widgets.js";

const SHOWN = 10;
const CURVES = 5;
const AT_ONCE = 20000;
const SHORT_BODY = 6000;

/** Score inputs in one request: [{logits, before, warnings}], with logits up to a constant. Warnings are for all inputs together. */
async function score(model, classes, inputs) {
  const instances = inputs.map((input) => input.instance);
  const asked = { instances, settings: [{ tau: 0 }], parameters: { top_k: classes } };  // /adjust does not count as traffic
  const { body } = await sendJson("POST", `${modelPath(model)}/adjust`, asked);
  const { predictions, warnings = [] } = body.results[0];
  return predictions.map(({ top }) => {
    const before = new Array(classes);
    for (const { index, probability } of top) before[index] = probability;
    return { logits: logitsOf(before), before, warnings };
  });
}

const storedPriors = (model, signal) =>
  getJson(`${modelPath(model)}/priors`, { signal }).then(
    (found) => found.priors.filter((p) => p.fits),
    (error) => {
      if (error instanceof Problem) return []; // this key may predict but not observe
      throw error;
    },
  );

/** The report, which holds the model's samples; Try works without it if the key lacks the role observe. */
const reportOf = (model, signal) =>
  getJson(`${modelPath(model)}/report`, { signal }).catch((error) => {
    if (error instanceof Problem && error.status === 403) return { forbidden: true };
    throw error;
  });

export function Try({ model, me }) {
  const loaded = useLoaded(
    async (signal) => {
      const [about, report, stored] = await Promise.all([
        getJson(modelPath(model), { signal }),
        reportOf(model, signal),
        storedPriors(model, signal),
      ]);
      return { bundle: { ...about.bundle, calibrated: about.source === "calibrated" }, samples: (report.samples ?? []).map(fromSample), chosen: report.tau?.chosen, stored, forbidden: report.forbidden };
    },
    [model],
  );
  if (loaded.error) return html`<${Failed} error=${loaded.error} again=${loaded.again} />`;
  if (!loaded.value || loaded.value.bundle.name !== model) return html`<${Loading} what="the model" />`;
  const cannot = me?.keys_required && me.missing.includes("predict");
  return html`${cannot && html`<p class="note">The key <b>${me.name}</b> lacks the role predict, so it cannot score inputs. Use a key with the role predict; a key can have several roles.</p>`}
    ${loaded.value.forbidden && html`<p class="note">The key <b>${me?.name}</b> lacks the role observe, so the model's samples and stored priors are not shown.</p>`}
    <${Bench} key=${model} model=${model} reload=${loaded.again} ...${loaded.value} />`;
}

/** The target of requests that name no prior. */
const usual = (stored) => (stored.some((p) => p.name === "default") ? { kind: "stored", name: "default" } : { kind: "uniform" });

function Bench({ model, bundle, samples, chosen, stored, reload }) {
  const classes = bundle.class_names.length;
  const [inputs, setInputs] = useState(samples);
  const [at, setAt] = useState(samples[0]?.id);
  const [scores, setScores] = useState({});
  const [tau, setTau] = useState(bundle.default_tau);
  const [chosenByHand, choose] = useState(null);
  const choice = useMemo(() => chosenByHand ?? usual(stored), [chosenByHand, stored]);
  const rule = useRule(model, bundle, choice);
  const asked = useRef(new Set());

  const request = (some) => {
    const fresh = some.filter((input) => !asked.current.has(input.id));
    if (!fresh.length) return;
    fresh.forEach((input) => asked.current.add(input.id));
    const most = Math.max(1, Math.floor(AT_ONCE / classes));
    const next = (from) => {
      const some = fresh.slice(from, from + most);
      if (!some.length) return;
      const note = (values) => setScores((old) => ({ ...old, ...Object.fromEntries(some.map((input, i) => [input.id, values(i)])) }));
      score(model, classes, some).then(
        (found) => note((i) => found[i]),
        (error) => note(() => ({ error })),
      ).then(() => next(from + most));
    };
    next(0);
  };
  const together = samples.length * classes <= AT_ONCE;
  useEffect(() => request(together ? samples : samples.slice(0, 1)), []);
  const add = (fresh) => {
    fresh.forEach((input) => asked.current.delete(input.id));
    setScores((old) => Object.fromEntries(Object.entries(old).filter(([id]) => !fresh.some((input) => input.id === id))));
    setInputs((old) => [...old.filter((input) => !fresh.some((f) => f.id === input.id)), ...fresh]);
    setAt(fresh[0].id);
    request(fresh);
  };
  const pick = (input) => {
    setAt(input.id);
    request([input]);
  };
  const again = () => {
    const failed = inputs.filter((input) => scores[input.id]?.error); // with a new key, or once the service is back, all may succeed
    failed.forEach((input) => asked.current.delete(input.id));
    setScores((old) => Object.fromEntries(Object.entries(old).filter(([, scored]) => !scored.error)));
    request(failed);
    if (scores[at]?.error instanceof Problem) reload(); // the stored priors may be visible now
  };

  const answers = useMemo(() => rule && answersOf(inputs, scores, rule, tau), [inputs, scores, rule, tau]);
  // Begin with a sample whose answer the adjustment corrects, to show at once what the dial does.
  const begun = useRef(false);
  useEffect(() => {
    if (begun.current || !answers || !samples.every((s) => answers[s.id] || !together)) return;
    begun.current = true;
    const answerOf = (s) => answers[s.id];
    const best = samples.find((s) => answerOf(s) && answerOf(s).was !== answerOf(s).is && bundle.class_names[answerOf(s).is] === s.label);
    if (best) setAt(best.id);
  }, [answers]);

  const input = inputs.find((i) => i.id === at);
  const scored = scores[at];
  return html`<h1 class="sr">Try ${model}</h1><div class="bench">
    <section class="card" aria-label="Input">
      <h2>Input</h2>
      <${Gallery} inputs=${inputs} at=${at} pick=${pick} answers=${answers} names=${bundle.class_names} />
      <${Sources} bundle=${bundle} samples=${samples} chosen=${input} add=${add} />
      ${[...new Set(scored?.warnings ?? [])].map((words) => html`<p class="note" role="status">${words}</p>`)}
      ${answers && html`<${Score} inputs=${inputs} answers=${answers} names=${bundle.class_names} />`}
    </section>
    <section class="card answer" aria-label="Answer">
      ${!input && html`<${Empty} title="Nothing to score yet"><p>This model has no samples. Enter an input of your own under <i>Input</i>.</p></${Empty}>`}
      ${input && scored?.error && html`<${Failed} error=${scored.error} again=${again} />`}
      ${input && (!scored || !rule) && html`<${Loading} what="the answer" />`}
      ${scored?.logits && rule && html`<${Answer} ...${{ model, bundle, input, scored, rule, tau, setTau, choice, choose, chosen, stored }} />`}
      ${rule && answers && html`<${Labelled} ...${{ inputs, scores, answers, rule, tau, setTau, names: bundle.class_names }} />`}
    </section>
  </div>`;
}

/** The vectors of the chosen target: {logSigma, logRho, share, costs}; null while a stored prior is being read. */
function useRule(model, bundle, choice) {
  const stored = useLoaded(
    async (signal) => (choice.kind === "stored" ? getJson(`${modelPath(model)}/priors/${encodeURIComponent(choice.name)}`, { signal }) : null),
    [model, choice.kind, choice.name],
  );
  return useMemo(() => {
    const names = bundle.class_names;
    let logSigma = bundle.calibrated ? measuredSource(bundle.estimation) : logSource(bundle.class_counts, bundle.loss_tau, names.length);
    let target = choice.weights ?? uniform(names);
    if (choice.kind === "training") target = bundle.class_counts;
    if (choice.kind === "stored") {
      if (stored.loading || !stored.value?.target) return null;
      target = names.map((name) => stored.value.target[name]);
      if (stored.value.source_prior) logSigma = names.map((name) => Math.log(stored.value.source_prior[name]));
    }
    const costs = choice.kind === "stored" ? stored.value.as_written?.costs : null;
    const sum = target.reduce((a, b) => a + b, 0);
    if (!(sum > 0)) return { logSigma, logRho: logNormalised(uniform(names)), share: target, impossible: true };
    return { logSigma: logSigma ?? new Array(names.length).fill(0), unknown: !logSigma, logRho: logNormalised(target), share: target.map((t) => t / sum), costs };
  }, [bundle, choice, stored.value, stored.loading]);
}

function answersOf(inputs, scores, rule, tau) {
  const found = {};
  for (const { id } of inputs)
    if (scores[id]?.logits) found[id] = { was: argmax(scores[id].before), is: argmax(adjusted(scores[id].logits, rule.logSigma, rule.logRho, tau)) };
  return found;
}

function Gallery({ inputs, at, pick, answers, names }) {
  const caption = (input) => {
    const answer = answers?.[input.id];
    if (!answer) return { words: "", mark: "" };
    const right = input.label === undefined ? undefined : names[answer.is] === input.label;
    const changed = answer.was !== answer.is;
    return {
      words: `, answer ${names[answer.is]}${changed ? `, was ${names[answer.was]}` : ""}`,
      mark: right === undefined ? (changed ? "↻" : "") : right ? "✓" : "✗",
      kind: `${right === undefined ? "" : right ? "right" : "wrong"} ${changed ? "moved" : ""}`,
    };
  };
  return html`<div class="samples" role="group" aria-label="Inputs">${inputs.map((input) => {
    const { words, mark, kind } = caption(input);
    return html`<button key=${input.id} class=${`sample ${kind ?? ""}`} aria-pressed=${input.id === at} onClick=${() => pick(input)}
        aria-label=${`${input.name}${input.short && !input.picture ? ` ${input.short}` : ""}${input.label === undefined ? "" : `: ${input.label}`}${words}`}>
      ${input.picture ? html`<img src=${input.picture} alt="" />` : html`<span class="excerpt">${input.short}</span>`}
      ${mark && html`<i class="tick" aria-hidden="true">${mark}</i>`}
    </button>`;
  })}</div>`;
}

/** How many of the samples are answered correctly, as trained and at the current setting. */
function Score({ inputs, answers, names }) {
  const labelled = inputs.filter((i) => i.label !== undefined && answers[i.id]);
  if (!labelled.length) return null;
  const right = (which) => labelled.filter((i) => names[answers[i.id][which]] === i.label).length;
  const moved = labelled.filter((i) => answers[i.id].was !== answers[i.id].is).length;
  return html`<p class="score" role="status">Correct: <b>${right("was")}</b> of ${labelled.length} as trained, <b class="changed">${right("is")}</b> at this setting.
    ${moved ? ` ${moved} ${moved === 1 ? "answer" : "answers"} changed.` : ""}</p>`;
}

function Answer({ model, bundle, input, scored, rule, tau, setTau, choice, choose, chosen, stored }) {
  const names = bundle.class_names;
  const after = adjusted(scored.logits, rule.logSigma, rule.logRho, rule.unknown ? 0 : tau);
  const was = argmax(scored.before);
  const is = argmax(after);
  const turns = useMemo(() => flips(scored.logits, rule.logSigma, rule.logRho, DIAL_MAX), [scored, rule]);
  const stops = [{ tau: 0, label: "as trained" }, { tau: 1, label: "full adjustment" }];
  if (chosen !== undefined && chosen !== null && chosen !== 0 && chosen !== 1) stops.push({ tau: chosen, label: "best on validation" });
  stops.sort((a, b) => a.tau - b.tau);
  return html`
    <div class="verdict">
      <p role="status" class="said">${was === is
        ? html`<b>${names[is]}</b><span class="quiet">${percent(scored.before[was])} as trained, ${percent(after[is])} at this setting</span>`
        : html`<s>${names[was]}</s><span aria-hidden="true">→</span><span class="sr"> becomes </span><b class="changed">${names[is]}</b>
            <span class="quiet">${percent(after[is])}, was ${percent(scored.before[is])}</span>`}</p>
      ${rule.costs && html`<${Decision} names=${names} is=${is} decision=${decide(after, rule.costs, names)} />`}
      ${input.label !== undefined && html`<p class="quiet">True class: <b>${input.label}</b></p>`}
    </div>
    ${rule.unknown && html`<p class="note">The model's label frequencies are unknown, so its answers cannot be adjusted. <a href=${`#/priors?model=${encodeURIComponent(model)}&name=default&tab=edit`}>Give label frequencies</a> first.</p>`}
    ${rule.impossible && html`<p class="note">All weights are 0, so no class is possible: raise one of the sliders.</p>`}
    <${Dial} tau=${tau} setTau=${setTau} stops=${stops} flips=${turns} />
    <p class="quiet flips">${turns.length
      ? html`The answer becomes ${turns.map((t, i) => html`${i ? ", then " : ""}${names[t.to]} at τ = <button class="link" onClick=${() => setTau(Math.min(DIAL_MAX, Math.ceil(t.tau * 100 + 1e-9) / 100))}>${t.tau.toFixed(2)}</button>`)}.`
      : "Turning the dial does not change this answer."}</p>
    <${Target} names=${names} counts=${bundle.class_counts} stored=${stored} choice=${choice} choose=${choose} share=${rule.share} />
    <${BeforeAfter} names=${names} counts=${bundle.class_counts} before=${scored.before} after=${after} />
    <${Curves} names=${names} logits=${scored.logits} rule=${rule} tau=${tau} setTau=${setTau} />
    <${Beside} bundle=${bundle} input=${input} tau=${rule.unknown ? 0 : tau} prior=${priorOf(names, choice, rule)} />
    <${CopyAs} what="this prediction" call=${() => callOf(model, bundle, input, choice, tau)} />`;
}

/** The decision by the prior's costs at the current probabilities. */
function Decision({ names, is, decision }) {
  const cost = decision.cost.toLocaleString("en", { maximumSignificantDigits: 3 });
  if (decision.index === null) return html`<p class="decision">Decision by cost: <b>none, the row is rejected</b>, which costs ${cost}.</p>`;
  return html`<p class="decision">Decision by cost: <b>${names[decision.index]}</b>${decision.index === is ? "" : ", not the most probable class"}. Expected cost ${cost}.</p>`;
}

/** The chosen target as a prior that any model with these classes accepts. */
function priorOf(names, choice, rule) {
  if (choice.kind === "uniform" || choice.kind === "training") return choice.kind;
  return { target: Object.fromEntries(names.map((name, i) => [name, Number(rule.share[i].toPrecision(6))])) };
}

/** The request whose answer the page shows. */
function callOf(model, bundle, input, choice, tau) {
  const path = `${modelPath(model)}/predict`;
  const named = { uniform: "uniform", training: "training", stored: choice.name }[choice.kind];
  const settings = { tau: Number(tau.toFixed(6)), prior: named ?? { target: Object.fromEntries(bundle.class_names.map((name, i) => [name, Number(choice.weights[i].toPrecision(6))])) } };
  const long = JSON.stringify(input.instance).length > SHORT_BODY;
  if (named && input.file && (long || input.blob)) return { method: "POST", path, query: settings, file: input.file, type: input.blob.type };
  return { method: "POST", path, json: { instances: [input.instance], parameters: settings } };
}

function BeforeAfter({ names, counts, before, after }) {
  const rows = names.map((_, i) => i);
  if (names.length > SHOWN) {
    rows.sort((a, b) => Math.max(before[b], after[b]) - Math.max(before[a], after[a])).splice(SHOWN);
    rows.sort((a, b) => after[b] - after[a]);
  }
  return html`<table class="before-after">
    <caption class="sr">Probability of each class as trained and at this setting</caption>
    <thead><tr><th scope="col">Class</th><th scope="col"><span class="sr">Bars</span></th><th scope="col"><i class="key bg-was"></i>As trained</th><th scope="col"><i class="key bg-accent"></i>Now</th></tr></thead>
    <tbody>${rows.map(
      (i) => html`<tr key=${i}>
        <th scope="row"><span class="name">${names[i]}</span> <${Group} name=${groupOf(counts?.[i])} /></th>
        <td class="bars"><i class="was" style=${{ width: `${100 * before[i]}%` }}></i><i class="is" style=${{ width: `${100 * after[i]}%` }}></i></td>
        <td class="number quiet">${percent(before[i])}</td><td class="number">${percent(after[i])}</td>
      </tr>`,
    )}</tbody>
  </table>
  ${names.length > SHOWN && html`<p class="quiet">The ${SHOWN} most likely of ${names.length.toLocaleString("en")} classes.</p>`}`;
}

const GRID = Array.from({ length: 121 }, (_, i) => (i * DIAL_MAX) / 120);
const STROKES = ["c1", "c2", "c3", "c4", "c5"];

/** Probability of the leading classes over the full range of the dial. */
function Curves({ names, logits, rule, tau, setTau }) {
  const { leading, data } = useMemo(() => {
    const columns = GRID.map((t) => adjusted(logits, rule.logSigma, rule.logRho, t));
    const peak = names.map((_, i) => Math.max(columns[0][i], columns[40][i], columns[80][i], columns[120][i]));
    const order = names.map((_, i) => i).sort((a, b) => peak[b] - peak[a]).slice(0, CURVES);
    return { leading: order, data: [GRID, ...order.map((i) => columns.map((c) => 100 * c[i]))] };
  }, [logits, rule]);
  return html`<h3>What turning the dial does</h3>
    <${Chart} say=${`Probability against tau of ${leading.map((i) => names[i]).join(", ")}`} data=${data} mark=${tau} height=${200}
      onPick=${(x) => setTau(Math.max(0, Math.min(DIAL_MAX, Math.round(x * 100) / 100)))} shape=${leading.join()}
      x=${{ label: "τ" }} y=${{ label: "probability", values: (v) => `${v} %`, range: [0, 100] }}
      series=${leading.map((i, n) => ({ label: names[i], stroke: STROKES[n] }))} />`;
}
