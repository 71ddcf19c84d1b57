// Model: its origin, its scores at each tau, and the adjustment that requests get by default.

import { html, useMemo, useState } from "./vendor/preact.js";
import { getJson, modelPath } from "./api.js";
import { Chart } from "./chart.js";
import { groupOf, largest, smallest } from "./formula.js";
import { Vectors } from "./prior-view.js";
import { CopyAs } from "./snippets.js";
import { Failed, Group, Loading, Pager, percent, useLoaded, whole } from "./widgets.js";

const PAGE = 20;
const CURVE_MAX = 2.5;
const TAUS = [["0", "as trained"], ["1", "τ = 1"], ["chosen", "chosen τ"]];

/** The taus of a report without repetition, since the chosen one may equal another. */
function taus(atTau) {
  const chosen = atTau.chosen?.tau;
  const same = TAUS.find(([t]) => t !== "chosen" && chosen !== undefined && atTau[t]?.tau === chosen)?.[0];
  return TAUS.filter(([t]) => atTau[t] && !(same && t === "chosen")).map(([t, words]) => [t, words, t === "chosen" || t === same]);
}

export function Model({ model }) {
  const [version, setVersion] = useState("");
  const query = version ? `?version=${version}` : "";
  const loaded = useLoaded(
    async (signal) => {
      const [about, report, all] = await Promise.all([
        getJson(`${modelPath(model)}${query}`, { signal }),
        getJson(`${modelPath(model)}/report${query}`, { signal }),
        getJson("models", { signal }),
      ]);
      return { about, report, faults: all.faults.filter((f) => f.model === model), asked: `${model}${query}` };
    },
    [model, version],
  );
  if (loaded.error) return html`<${Failed} error=${loaded.error} again=${loaded.again} />`;
  if (!loaded.value || loaded.value.asked !== `${model}${query}`) return html`<${Loading} what="the model" />`;
  const { about, report, faults } = loaded.value;
  const { bundle } = about;
  return html`
    <div class="line apart"><h1>${bundle.name}</h1>
      <label class="line tight">version <select value=${String(bundle.version)} onChange=${(e) => setVersion(e.target.value)}>
        ${about.versions.map((v, i) => html`<option value=${String(v)}>${v}${i === 0 ? " (newest)" : ""}</option>`)}</select></label></div>
    ${bundle.description && html`<p>${bundle.description}</p>`}
    ${faults.map((f) => html`<p class="note" role="alert">Version ${f.version} is not served: ${f.reason}</p>`)}
    <div class="two wide-left">
      <${Curve} report=${report} bundle=${bundle} />
      <${Facts} about=${about} />
    </div>
    <${Scores} report=${report} />
    ${report.at_tau ? html`<div class="two"><${Counts} bundle=${bundle} report=${report} /><${Outcome} report=${report} names=${bundle.class_names} /></div>`
      : html`<${ByDefault} bundle=${bundle} newest=${bundle.version === about.versions[0]} />${bundle.class_counts && html`<${Counts} bundle=${bundle} report=${report} />`}`}
    <${Provenance} bundle=${bundle} />
    <${CopyAs} what="this page's data" call=${() => ({ method: "GET", path: `${modelPath(model)}/report`, query: { version: bundle.version } })} />`;
}

function Curve({ report, bundle }) {
  const all = report.tau?.validation_curve ?? [];
  const shown = all.filter(([t]) => t <= CURVE_MAX).length;
  const curve = all.slice(0, shown);
  const banded = all.length > 0 && report.tau.bands?.length === all.length;
  const data = useMemo(() => {
    const columns = [curve.map(([t]) => t)]; // the band first, so that the curve is drawn on top of it
    if (banded) for (const side of [0, 1]) columns.push(report.tau.bands.slice(0, shown).map((band) => 100 * band[side]));
    return [...columns, curve.map(([, e]) => 100 * e)];
  }, [report]);
  if (!curve.length)
    return html`<section class="card" aria-label="Validation"><h2>Balanced error over τ</h2>
      <p class="quiet">This version was published without a validation curve, as imported models are. Run <code>priordial train calibrate models/${bundle.name}/${bundle.version} --data …</code> on labelled rows of your own. It publishes the next version, with this curve, scores and samples.</p></section>`;
  const nearest = (tau) => curve.reduce((best, p) => (Math.abs(p[0] - tau) < Math.abs(best[0] - tau) ? p : best))[1];
  const { chosen, interval, n } = report.tau;
  const marks = chosen === null ? [] : [{ x: chosen, stroke: "alert" }];
  const edge = { stroke: "accent-soft", width: 0 };
  const series = [...(banded ? [{ ...edge, label: "95 % interval", swatch: "accent-soft" }, { ...edge, hidden: true }] : []), { label: "balanced error", stroke: "accent", width: 2.5 }];
  const dots = [{ x: bundle.default_tau, y: 100 * nearest(bundle.default_tau), stroke: "accent" }];
  return html`<section class="card" aria-label="Validation"><h2>Balanced error over τ</h2>
    <p>At τ = ${bundle.default_tau}, which requests get by default: <b>${percent(nearest(bundle.default_tau))}</b>; as trained ${percent(nearest(0))}${chosen === null ? "" : html`; best at τ = ${chosen}: ${percent(nearest(chosen))}`}.
      <span class="quiet"> ${whole(n)} validation examples${interval ? `; the best τ lies in ${interval[0]} … ${interval[1]} in 95 % of resamples` : ""}.</span></p>
    <${Chart} say=${`Balanced error on validation over tau, lowest at ${chosen}`} data=${data} series=${series} bands=${banded ? [{ series: [2, 1], fill: "accent-soft" }] : []} mark=${bundle.default_tau} marks=${marks} dots=${dots} height=${230}
      x=${{ label: "τ (solid line: default, dashed: chosen)" }} y=${{ label: "balanced error", values: (v) => `${v} %` }} shape=${`${bundle.name}${bundle.version}`} /></section>`;
}

function Facts({ about }) {
  const { bundle } = about;
  const { input } = bundle;
  const counts = bundle.class_counts;
  const shape = `[${input.shape.map((n) => n ?? "any").join(", ")}] ${input.dtype}`;
  const facts = [
    ["Classes", whole(bundle.class_names.length)],
    ["Training examples", counts ? `${whole(counts.reduce((a, b) => a + b, 0))}, imbalance ratio ${whole(largest(counts) / smallest(counts))}` : "unknown"],
    ["Input", `${input.kind}${input.kind === "image" ? `, ${input.size.join(" × ")} pixels, ${{ L: "grey", RGB: "RGB" }[input.color] ?? input.color}` : ""}`],
    ["Tensor", shape],
    ["Output", html`${bundle.output.kind}, named <code>${bundle.output.name}</code>`],
    ["Default τ", bundle.default_tau],
    ["τ trained into the loss", bundle.loss_tau],
    ["Temperature", Number(bundle.temperature.toFixed(4))],
    ["Runs on", about.provider],
    ["Loaded versions", about.versions.join(", ")],
  ];
  return html`<section class="card" aria-label="Facts"><h2>Facts</h2><dl class="facts">${facts.map(([name, value]) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`)}</dl></section>`;
}

const COLUMNS = [["balanced_error", "Balanced error"], ["error", "Error"], ["many", "Many"], ["medium", "Medium"], ["few", "Few"], ["ece", "ECE"]];

function Scores({ report }) {
  const splits = [["test", "Test"], ["validation", "Validation"]].filter(([key]) => report[key]?.at_tau);
  if (!splits.length) return null;
  const narrow = (column) => (column === "error" || column === "ece" ? "number wide" : "number"); // a phone shows the main columns only
  const interval = (s) => (s.balanced_error_interval ? ` (${s.balanced_error_interval.map((v) => (100 * v).toFixed(1)).join(" … ")})` : "");
  return html`<section class="card" aria-label="Scores"><h2>Scores</h2><div class="scroll" tabindex="0" role="region" aria-label="Table of scores"><table class="plain scores" role="table">
    <thead role="rowgroup"><tr role="row"><th role="columnheader" scope="col" class="split">Split</th><th role="columnheader" scope="col">τ</th>${COLUMNS.map(([c, name]) => html`<th role="columnheader" scope="col" class=${narrow(c)}>${name}</th>`)}<th role="columnheader" scope="col" class="number wide">NLL</th></tr></thead>
    <tbody role="rowgroup">${splits.flatMap(([key, name]) => taus(report[key].at_tau).map(([t, , chosen]) => {
      const s = report[key].at_tau[t];
      return html`<tr role="row" class=${t === "0" ? "first" : ""}><th role="rowheader" scope="row" class="split">${t === "0" ? html`${name} <span class="quiet">n = ${whole(report[key].n)}</span>` : html`<span class="sr">${name}</span>`}</th>
        <td role="cell">${s.tau} <span class="quiet">${[t === "0" && "as trained", chosen && "chosen"].filter(Boolean).join(", ")}</span></td>
        ${COLUMNS.map(([c]) => html`<td role="cell" class=${narrow(c)}>${s[c] === null || s[c] === undefined ? "–" : percent(s[c])}${c === "balanced_error" ? html`<span class="quiet wide">${interval(s)}</span>` : ""}</td>`)}
        <td role="cell" class="number wide">${s.nll === undefined ? "–" : s.nll.toFixed(3)}</td></tr>`;
    }))}</tbody></table></div>
    <p class="quiet">With a uniform target. Many, medium and few: the mean error of classes with more than 100, 20 to 100, and fewer than 20 training examples.<span class="wide"> Balanced error with its 95 % interval in brackets.</span></p></section>`;
}

function Counts({ bundle, report }) {
  const [search, setSearch] = useState("");
  const [page, setPage] = useState(0);
  const counts = bundle.class_counts;
  const errors = report.test?.per_class ?? report.validation?.per_class;
  const names = bundle.class_names;
  const order = useMemo(() => names.map((_, i) => i).sort((a, b) => (counts ? counts[b] - counts[a] : 0) || a - b), [bundle]);
  const rows = order.filter((i) => names[i].toLowerCase().includes(search.trim().toLowerCase()));
  const pages = Math.max(1, Math.ceil(rows.length / PAGE));
  const here = Math.min(page, pages - 1);
  const [low, high] = counts ? [Math.log(smallest(counts) / 2), Math.log(largest(counts))] : [0, 1];
  return html`<section class="card" aria-label="Classes"><h2>Classes by training examples</h2>
    ${names.length > PAGE && html`<p><input type="search" placeholder="Find a class" aria-label="Find a class" value=${search} onInput=${(e) => { setSearch(e.target.value); setPage(0); }} /></p>`}
    <table class="before-after"><caption class="sr">Training examples and error of each class</caption>
      <thead><tr><th scope="col">Class</th><th scope="col"><span class="sr">Bars, logarithmic</span></th><th scope="col">Examples</th>${errors && html`<th scope="col">Error</th>`}</tr></thead>
      <tbody>${rows.slice(here * PAGE, (here + 1) * PAGE).map((i) => html`<tr key=${i}><th scope="row"><span class="name">${names[i]}</span> <${Group} name=${groupOf(counts?.[i])} /></th>
        <td class="bars">${counts && html`<i class=${`bg-${groupOf(counts[i])}`} style=${{ width: `${(100 * (Math.log(counts[i]) - low)) / (high - low)}%` }}></i>`}</td>
        <td class="number">${counts ? whole(counts[i]) : "–"}</td>${errors && html`<td class="number quiet">${percent(errors[i])}</td>`}</tr>`)}</tbody></table>
    ${pages > 1 && html`<${Pager} page=${here} pages=${pages} go=${setPage} />`}
    <p class="quiet">Bars are logarithmic.${errors ? ` Errors are at τ = ${bundle.default_tau}, the default, on the ${report.test?.per_class ? `test split, ${whole(report.test.n)}` : `validation split, ${whole(report.validation.n)}`} examples in all.` : ""}</p></section>`;
}

/** Without a report, as after an import: the adjustment of each class for requests that name no prior. */
function ByDefault({ bundle, newest }) {
  const found = useLoaded((signal) => getJson(`${modelPath(bundle.name)}/priors/default`, { signal }), [bundle]);
  if (!newest) return null;
  const edit = `#/priors?model=${encodeURIComponent(bundle.name)}&name=default&tab=edit`;
  return html`<section class="card" aria-label="The adjustment"><h2>The adjustment that requests get by default</h2>
    ${found.error ? html`<${Failed} error=${found.error} again=${found.again} />` : !found.value ? html`<${Loading} what="the prior" />`
      : html`${!found.value.source_prior && html`<p class="note">The model's class counts are unknown, so nothing is adjusted. <a href=${edit}>Give label frequencies</a>, or import the model again with <code>--class-counts</code>.</p>`}
        <p class="quiet">At τ = ${bundle.default_tau}, with the prior default (${found.value.revision ? `revision ${found.value.revision}` : "nothing stored: the model's own rule"}).</p>
        <${Vectors} bundle=${bundle} prior=${found.value} />`}</section>`;
}

function Outcome({ report, names }) {
  const [at, setAt] = useState(report.at_tau?.["1"] ? "1" : "0");
  const found = report.at_tau?.[at];
  const split = report.test ? "test" : "validation";
  const examples = (found?.confusion ?? []).flat().reduce((a, b) => a + b, 0);
  const data = useMemo(() => {
    if (!found?.reliability) return null;
    const { edges, accuracy } = found.reliability;
    const middle = accuracy.map((_, i) => (edges[i] + edges[i + 1]) / 2);
    return [middle.map((m) => 100 * m), accuracy.map((a) => (a === null ? null : 100 * a)), middle.map((m) => 100 * m)];
  }, [found]);
  return html`<section class="card" aria-label="Reliability"><div class="line apart"><h2>Reliability and confusion</h2>
      <fieldset class="chips tight"><legend class="sr">At which τ</legend>${taus(report.at_tau).map(([t, words, chosen]) => html`<label class="chip"><input type="radio" name="outcome" checked=${at === t} onChange=${() => setAt(t)} /><span>${words}${chosen && t !== "chosen" ? ", chosen" : ""}</span></label>`)}</fieldset></div>
    ${examples > 0 && html`<p class="quiet">On the ${split} split: ${whole(examples)} examples, with a uniform target.</p>`}
    ${data && html`<${Chart} say=${`Accuracy against confidence, on the ${split} split`} data=${data} height=${200} x=${{ label: "confidence", values: (v) => `${v} %`, range: [0, 100] }} y=${{ label: "accuracy", values: (v) => `${v} %`, range: [0, 100] }}
      series=${[{ label: "the model", stroke: "accent", points: { show: true, size: 6 }, spanGaps: true }, { label: "perfect", stroke: "was", dash: [5, 5], width: 1 }]} />`}
    ${found?.confusion && html`<${Confusion} cells=${found.confusion} names=${names} />`}</section>`;
}

function Confusion({ cells, names }) {
  const small = names.length <= 12;
  const worst = useMemo(() => {
    const pairs = [];
    cells.forEach((row, i) => {
      const sum = row.reduce((a, b) => a + b, 0);
      row.forEach((n, j) => i !== j && n > 0 && pairs.push([n / sum, i, j, n]));
    });
    return pairs.sort((a, b) => b[0] - a[0]).slice(0, 5);
  }, [cells]);
  return html`<h3>Confusion</h3>
    ${small && html`<div class="scroll" tabindex="0" role="region" aria-label="Confusion matrix"><table class="confusion"><caption class="sr">Rows: the truth. Columns: the answer. Cells: examples.</caption>
      <thead><tr><th scope="col" class="axes">truth ↓<br />answer →</th>${names.map((name) => html`<th scope="col"><span>${name}</span></th>`)}</tr></thead>
      <tbody>${cells.map((row, i) => {
        const sum = Math.max(1, row.reduce((a, b) => a + b, 0));
        return html`<tr><th scope="row">${names[i]}</th>${row.map((n, j) => {
          const tone = i === j ? "accent" : "alert";
          if (n / sum > 0.3) return html`<td class=${`strong bg-${tone}`}>${n}</td>`;
          return html`<td style=${{ background: n ? `color-mix(in srgb, var(--${tone}) ${Math.round(70 * Math.sqrt(n / sum))}%, var(--surface))` : "" }}>${n || ""}</td>`;
        })}</tr>`;
      })}</tbody></table></div>`}
    ${worst.length === 0 ? html`<p class="quiet">Every example was classified correctly.</p>` : html`<p class="quiet">Most often mistaken: ${worst.map(([share, i, j], n) => html`${n ? "; " : ""}${names[i]} for ${names[j]} (${percent(share)}${n ? "" : ` of the ${names[i]} examples`})`)}.</p>`}`;
}

function Provenance({ bundle }) {
  const lines = useMemo(() => flattened(bundle.provenance), [bundle]);
  return html`<details class="card"><summary><h2>Provenance</h2></summary>
    ${lines.length ? html`<dl class="facts">${lines.map(([name, value]) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>` : html`<p class="quiet">Nothing was recorded.</p>`}
    <h3>Files</h3><dl class="facts">${Object.entries(bundle.files).map(([name, digest]) => html`<div><dt>${name}</dt><dd><code class="digest">${digest}</code></dd></div>`)}</dl></details>`;
}

function flattened(value, prefix = "") {
  return Object.entries(value ?? {}).flatMap(([name, v]) => {
    const path = prefix ? `${prefix} · ${name.replaceAll("_", " ")}` : name.replaceAll("_", " ");
    if (v === null || v === "") return [];
    if (typeof v === "object" && !Array.isArray(v)) return flattened(v, path);
    return [[path, Array.isArray(v) ? v.join(", ") : typeof v === "number" ? Number(v.toPrecision(6)) : String(v)]];
  });
}
