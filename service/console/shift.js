// Shift: the class mix of traffic against the target, over time; the effect of adopting it; and undoing that.

import { html, useEffect, useMemo, useState } from "./vendor/preact.js";
import { getJson, modelPath, sendJson } from "./api.js";
import { Chart } from "./chart.js";
import { groupOf, largest } from "./formula.js";
import { fine } from "./prior-view.js";
import { CopyAs } from "./snippets.js";
import { Empty, Failed, Group, Loading, Marked, Pager, percent, useLoaded, when, whole } from "./widgets.js";

const EVERY_MS = 2000;
const PAGE = 20;
const SAYS = {
  usable: ["Usable", "The newest answers look like a mix of the known classes."],
  too_little_traffic: ["Too little traffic", "There are too few rows for an estimate."],
  too_many_classes: ["Too many classes", "The service cannot keep enough rows for so many classes."],
  uncalibrated: ["Not calibrated", "It is unknown how wrong an estimate would be."],
  ill_conditioned: ["Ill-conditioned", "On validation, estimates near this mix are wrong."],
  suspect: ["Suspect", "The newest answers fit a mix of the known classes badly."],
  not_explained: ["Not explained", "No mix of the known classes explains the newest answers."],
};
const MODES = { on: "on", dry_run: "dry run: it only reports what it would do", off: "off" };

/** The service's estimate, read again every two seconds while the page is visible. */
function useShift(path) {
  const [state, setState] = useState({});
  const [turn, setTurn] = useState(0);
  useEffect(() => {
    const controller = new AbortController();
    let timer;
    const look = async () => {
      try {
        if (!document.hidden) setState({ value: await getJson(`${path}/shift?points=300`, { signal: controller.signal }), path });
      } catch (error) {
        if (error.name === "AbortError") return;
        setState((before) => ({ ...before, error }));
        if (error.status >= 400 && error.status < 500) return;
      }
      timer = setTimeout(look, EVERY_MS);
    };
    look();
    return () => {
      controller.abort();
      clearTimeout(timer);
    };
  }, [path, turn]);
  return { ...state, again: () => setTurn((n) => n + 1) };
}

export function Shift({ model, query, go }) {
  const name = query.get("name") || "default";
  const path = `${modelPath(model)}/priors/${encodeURIComponent(name)}`;
  const { value, error, again, path: read } = useShift(path);
  const about = useLoaded(async (signal) => (await getJson(modelPath(model), { signal })).bundle, [model]);
  const names = useLoaded(async (signal) => (await getJson(`${modelPath(model)}/priors`, { signal })).priors.map((p) => p.name), [model]);
  if (about.error) return html`<${Failed} error=${about.error} again=${about.again} />`;
  if (error && (!value || error.status)) return html`<${Failed} error=${error} again=${again} />`;
  if (!value || read !== path || about.value?.name !== model) return html`<${Loading} what="the estimate of traffic" />`;
  const all = [...new Set(["default", name, ...(names.value ?? [])])];
  return html`<div class="line apart"><h1>Shift of ${model}</h1>
      ${all.length > 1 && html`<label class="line tight">against the prior <select value=${name} onChange=${(e) => go({ name: e.target.value })}>${all.map((n) => html`<option value=${n}>${n}</option>`)}</select></label>`}</div>
    ${error && html`<p class="note" role="alert"><${Marked} text=${error.message} /> The page shows the last known values.</p>`}
    ${value.estimate ? html`<${Board} key=${path} path=${path} found=${value} bundle=${about.value} again=${again} />`
      : html`<div class="card"><${Empty} title="No traffic has been followed yet">
          ${about.value.class_counts || about.value.estimation ? html`<p>The service estimates the class mix of the rows that it scores. The first estimate appears here within a minute of the first predictions (<code>--shift-seconds</code>). Answers on Try are not counted.</p><p><a href=${`#/traffic?model=${encodeURIComponent(model)}`}>Traffic</a> shows what has arrived so far, and how to send a request.</p>`
            : html`<p>The service cannot estimate the class mix of this model's traffic, because the model has no class counts. Import it again with <code>--class-counts</code>, or run <code>priordial train calibrate models/${model}/${about.value.version} --data …</code> on labelled rows.</p>`}
        </${Empty}></div>`}`;
}

function Board({ path, found, bundle, again }) {
  const [chosen, setChosen] = useState(null);
  const apart = (i) => Math.abs(found.estimate[i] - found.target[i]);
  const first = useMemo(() => found.target.reduce((best, _, i) => (apart(i) > apart(best) ? i : best), 0), [bundle]);
  return html`<${Verdict} found=${found} />
    <div class="two"><${Adopting} path=${path} found=${found} again=${again} /><${Automatic} path=${path} found=${found} again=${again} /></div>
    <${OverTime} found=${found} which=${chosen ?? first} choose=${setChosen} />
    <${Classes} found=${found} bundle=${bundle} chosen=${chosen ?? first} choose=${setChosen} />
    <p class="quiet">Based on ${whole(found.rows)} rows of ${found.workers} ${found.workers === 1 ? "worker" : "workers"}, weighted toward the newest (effective sample size ${whole(found.effective_rows)}). Each interval is for its class alone, not for all classes jointly.${" "}<${CopyAs} what="the estimate" call=${() => ({ method: "GET", path: `${path}/shift` })} /></p>`;
}

function Verdict({ found }) {
  const judged = found.judged;
  if (!judged) return html`<section class="card" aria-label="Verdict"><h2>No verdict yet</h2><p class="quiet">The newest rows are judged as soon as there are enough of them.</p></section>`;
  const [title, words] = SAYS[judged.verdict] ?? [judged.verdict, ""];
  const sound = judged.verdict === "usable";
  return html`<section class="card shift-verdict" aria-label="Verdict" aria-live="polite"><h2><span class=${sound ? "changed" : "alerted"}>${title}</span></h2>
    <p><${Marked} text=${sound || !judged.reason ? words : sentence(judged.reason)} /></p>
    <p class="quiet">Judged ${when(judged.at)} on ${whole(judged.rows)} rows.${judged.evidence.p !== null && judged.evidence.p !== undefined ? ` Fit to the known classes: p = ${small(judged.evidence.p)}, misfit ${small(judged.evidence.phi2)} for each row.` : ""}</p></section>`;
}

const sentence = (text) => `${text[0].toUpperCase()}${text.slice(1)}${text.endsWith(".") ? "" : "."}`;
const small = (p) => (p === 0 ? "0" : p < 0.001 ? p.toExponential(0) : p.toPrecision(2));

/** The effect of adopting now; computed on request, because it takes thousands of rows. */
function Adopting({ path, found, again }) {
  const [state, setState] = useState({});
  const ask = async () => {
    setState({ busy: true });
    try {
      const estimate = await getJson(`${path}/estimate`);
      const preview = (await sendJson("POST", `${path}/preview`, { prior: estimate.candidate })).body;
      setState({ estimate, preview });
    } catch (error) {
      setState({ error });
    }
  };
  const adopt = async (force) => {
    setState((before) => ({ ...before, busy: true, refused: undefined }));
    try {
      const { body } = await sendJson("POST", `${path}/estimate/adopt${force ? "?force=1" : ""}`, undefined, { headers: { "If-Match": `"${found.revision}"` } });
      setState({ done: `Stored as revision ${body.revision}.` });
      again();
    } catch (error) {
      setState((before) => ({ ...before, busy: false, ...(error.status === 409 ? { refused: error } : { error }) }));
    }
  };
  const { estimate, preview } = state;
  return html`<section class="card" aria-label="Adopting"><h2>What adopting the estimate would change</h2>
    ${state.error && html`<${Failed} error=${state.error} again=${ask} />`}
    ${state.done && html`<p class="done" role="status">${state.done}</p>`}
    ${!estimate && html`<p class="quiet">The candidate target is the estimate from the rows that the service keeps, moved slightly toward the target in force.</p>
      <p class="line"><button onClick=${ask} disabled=${state.busy}>${state.busy ? "Computing …" : "Compute what it would change"}</button></p>`}
    ${estimate && html`<dl class="facts">
        <div><dt>Answers with another label</dt><dd>${percent(preview.decisions_changed)}</dd></div>
        ${preview.expected_error && html`<div><dt>Expected error</dt><dd>${percent(preview.expected_error.before)} → <b>${percent(preview.expected_error.after)}</b></dd></div>`}
        <div><dt>Error saved</dt><dd>${points(estimate.evidence.gain.mean)}, at least ${points(estimate.evidence.gain.low)} (95 %)</dd></div>
        <div><dt>Verdict on these rows</dt><dd>${SAYS[estimate.verdict]?.[0] ?? estimate.verdict}</dd></div></dl>
      ${state.refused && html`<p class="note" role="alert"><${Marked} text=${state.refused.message} /></p>`}
      <p class="line"><button class="main" disabled=${state.busy} onClick=${() => adopt(false)}>Adopt as the target</button>
        ${state.refused && html`<button class="danger" disabled=${state.busy} onClick=${() => adopt(true)}>Adopt it anyway</button>`}
        <button disabled=${state.busy} onClick=${ask}>Compute again</button></p>`}</section>`;
}

/** A reason from the service, with the codes of verdicts replaced by words. */
const inWords = (reason) => reason.replace(/\b[a-z]+(_[a-z]+)+\b/g, (code) => (code in SAYS ? SAYS[code][0].toLowerCase() : code));

const points = (share) => `${(100 * share).toFixed(1)} points`;

/** Automatic adoption: its decision, its steps, and the button that rolls one back. */
function Automatic({ path, found, again }) {
  const history = useLoaded(async (signal) => (await getJson(`${path}/revisions?limit=20`, { signal })).revisions, [path, found.revision]);
  const [trouble, setTrouble] = useState("");
  const automatic = found.automatic;
  const newest = history.value?.[0];
  const back = async () => {
    try {
      await sendJson("POST", `${path}/rollback`, { revision: newest.revision - 1 }, { headers: { "If-Match": `"${newest.revision}"` } });
      setTrouble("");
      again();
    } catch (error) {
      setTrouble(error.message);
    }
  };
  const steps = (history.value ?? []).filter((r) => r.by === "auto-adopt").slice(0, 3);
  const adopted = newest && !newest.deleted && (newest.by === "auto-adopt" || newest.note.startsWith("adopted estimate"));
  return html`<section class="card" aria-label="Automatic adoption"><h2>Automatic adoption</h2>
    ${!automatic ? html`<p class="quiet">Nothing has been decided for this prior yet.</p>` : html`
      <p>Mode: <b>${MODES[automatic.mode] ?? automatic.mode}</b>${automatic.freeze ? html`, <b class="alerted">frozen</b>` : ""}.</p>
      <p>${automatic.action === "adopt" ? `${automatic.mode === "on" ? "It moved" : "It would move"} the target by ${automatic.step_nats.toFixed(2)} nats${automatic.shortened ? ", the largest step allowed" : ""}.` : `${automatic.action === "wait" ? "It waits" : "It holds"}: ${inWords(automatic.reason)}.`}</p>`}
    ${steps.length > 0 && html`<table class="plain changes"><caption class="sr">The newest automatic steps</caption><thead><tr><th scope="col">When</th><th scope="col">Revision</th><th scope="col">Why</th></tr></thead><tbody>
      ${steps.map((r) => html`<tr><td>${when(r.updated_at)}</td><td class="number">${r.revision}</td><td>${r.note}</td></tr>`)}</tbody></table>`}
    ${adopted && (newest.revision > 1 || found.name === "default") && html`<p class="line"><button class="danger" onClick=${back}>Roll back to ${newest.revision > 1 ? `revision ${newest.revision - 1}` : "the model's own rule"}</button>
      <span class="quiet">${newest.by === "auto-adopt" ? "This also freezes automatic adoption." : "The estimate was adopted by hand."}</span></p>`}
    ${trouble && html`<p class="wrong" role="alert">${trouble}</p>`}</section>`;
}

function OverTime({ found, which, choose }) {
  const label = found.class_names[which];
  const data = useMemo(() => {
    const points = found.points;
    const column = (key) => points.map((p) => 100 * p[key][which]);
    return [points.map((p) => Date.parse(p.at) / 1000), column("low"), column("high"), column("estimate"), points.map(() => 100 * found.target[which])];
  }, [found, which]);
  const most = Math.max(1, largest(data.slice(1).flat()));
  return html`<section class="card" aria-label="Over time"><div class="line apart"><h2>${label} over time</h2>
      <label class="line tight">class <select value=${which} onChange=${(e) => choose(Number(e.target.value))}>${found.class_names.slice(0, 1000).map((n, i) => html`<option value=${i}>${n}</option>`)}</select></label></div>
    ${data[0].length < 2 ? html`<p class="quiet">Collecting …</p>`
    : html`<${Chart} say=${`Estimated share of ${label} in traffic over time, now ${data[3].at(-1).toFixed(1)} %, with its 95 % interval from ${data[1].at(-1).toFixed(1)} to ${data[2].at(-1).toFixed(1)} %; the target is ${data[4].at(-1).toFixed(1)} %`} data=${data} height=${220} shape=${String(which)}
        x=${{ time: true }} y=${{ values: (v) => `${v} %`, range: [0, Math.min(100, most * 1.12)], size: 60 }} bands=${[{ series: [2, 1], fill: "accent-soft" }]}
        series=${[{ label: "low", stroke: "accent-soft", width: 0, hidden: true }, { label: "95 % interval", stroke: "accent-soft", width: 0, swatch: "accent-soft" }, { label: "estimate", stroke: "accent" }, { label: "target in force", stroke: "ink", dash: [5, 4] }]} />`}</section>`;
}

function Classes({ found, bundle, chosen, choose }) {
  const [order, setOrder] = useState("apart");
  const [page, setPage] = useState(0);
  const { estimate, low, high, target } = found;
  const by = { apart: (a, b) => Math.abs(estimate[b] - target[b]) - Math.abs(estimate[a] - target[a]), estimate: (a, b) => estimate[b] - estimate[a], class: (a, b) => a - b }[order];
  const rows = target.map((_, i) => i).sort((a, b) => by(a, b) || a - b);
  const pages = Math.max(1, Math.ceil(rows.length / PAGE));
  const here = Math.min(page, pages - 1);
  const widest = Math.max(1e-9, largest(high), largest(target));
  const at = (v) => `${(99.5 * v) / widest}%`;
  return html`<section class="card" aria-label="Classes"><div class="line apart"><h2>Classes</h2>
      <label class="line tight">order <select value=${order} onChange=${(e) => setOrder(e.target.value)}><option value="apart">furthest from the target</option><option value="estimate">most frequent</option><option value="class">in the model's order</option></select></label></div>
    <table class="before-after"><caption class="sr">Estimated share of each class in traffic with its interval, and the target</caption>
      <thead><tr><th scope="col">Class</th><th scope="col"><span class="sr">Bars</span></th><th scope="col">Target</th><th scope="col">Estimate</th><th scope="col" class="wide">95 % interval</th></tr></thead>
      <tbody>${rows.slice(here * PAGE, (here + 1) * PAGE).map((i) => html`<tr key=${i}>
        <th scope="row"><button class="link name" aria-pressed=${i === chosen} onClick=${() => choose(i)}>${found.class_names[i]}</button> <${Group} name=${groupOf(bundle.class_counts?.[i])} /></th>
        <td class="bars"><i class="is" style=${{ width: at(estimate[i]) }}></i><i class="span" style=${{ left: at(low[i]), width: at(high[i] - low[i]) }}></i><i class="aim" style=${{ left: at(target[i]) }}></i></td>
        <td class="number quiet">${fine(target[i])}</td><td class="number">${fine(estimate[i])}</td><td class="number quiet wide">${fine(low[i])} – ${fine(high[i])}</td></tr>`)}</tbody></table>
    <p class="quiet"><span class="legend"><i class="key bg-accent"></i>estimate</span> <span class="legend"><i class="key span"></i>its 95 % interval</span> <span class="legend"><i class="key aim"></i>target in force</span></p>
    ${pages > 1 && html`<${Pager} page=${here} pages=${pages} go=${setPage} />`}</section>`;
}
