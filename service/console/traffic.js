// Traffic: predictions over time, from /metrics and the service's readings of the last minutes. Revisions mark the charts.

import { html, useEffect, useMemo, useState } from "./vendor/preact.js";
import { getJson, getText, modelPath, sendJson } from "./api.js";
import { Chart } from "./chart.js";
import { fromSample } from "./instances.js";
import { grown, grownBy, keep, parse, quantile, reading, readingBefore } from "./scrape.js";
import { fine } from "./prior-view.js";
import { CopyAs } from "./snippets.js";
import { Empty, Failed, Group, Loading, Marked, Pager, percent, useLoaded, when, whole } from "./widgets.js";
import { groupOf } from "./formula.js";

const EVERY_MS = 2000;
const FIRST_MS = 600; // the pause between readings until there is something to draw
const KEPT = 450;
const PAGE = 20;
const MINUTE = 60;
const QUARTER = 15 * MINUTE;
const kept = new Map();

/** The service's readings of the last fifteen minutes, oldest first; empty if it keeps none. A missing key is an error, since the next call may have one. */
async function earlier(model, signal) {
  try {
    const { readings } = await getJson(`metrics/recent?model=${encodeURIComponent(model)}`, { signal });
    return readings.filter((r) => r.at >= Date.now() / 1000 - QUARTER - MINUTE).map((r) => ({ ...reading(parse(r.metrics), model, r.at), held: true }));
  } catch (error) {
    if (error.status && error.status !== 401 && error.status !== 403) return [];
    throw error;
  }
}

/** Readings of a model, newest last, polled while the page is open and visible. */
function useReadings(model) {
  const [state, setState] = useState({ readings: kept.get(model) ?? [] });
  const [turn, setTurn] = useState(0);
  useEffect(() => {
    const controller = new AbortController();
    let timer;
    const look = async () => {
      try {
        if (!document.hidden) {
          if (!kept.has(model)) kept.set(model, await earlier(model, controller.signal));
          const samples = parse(await getText("metrics", { signal: controller.signal }));
          const next = reading(samples, model, Date.now() / 1000);
          const readings = keep(kept.get(model), next, KEPT);
          kept.set(model, readings);
          setState({ readings });
        }
      } catch (error) {
        if (error.name === "AbortError") return;
        setState({ readings: kept.get(model) ?? [], error });
        if (error.status === 401 || error.status === 403) return;
      }
      timer = setTimeout(look, (kept.get(model)?.length ?? 3) < 3 ? FIRST_MS : EVERY_MS);
    };
    look();
    return () => {
      controller.abort();
      clearTimeout(timer);
    };
  }, [model, turn]);
  return { ...state, again: () => setTurn((n) => n + 1) };
}

export function Traffic({ model }) {
  const { readings, error, again } = useReadings(model);
  const about = useLoaded(async (signal) => (await getJson(modelPath(model), { signal })).bundle, [model]);
  if (about.error) return html`<${Failed} error=${about.error} again=${about.again} />`;
  if (error && (!readings.length || error.status)) return html`<${Failed} error=${error} again=${again} />`;
  if (!readings.length || about.value?.name !== model) return html`<${Loading} what="the metrics" />`;
  const last = readings[readings.length - 1];
  return html`<h1>Traffic of ${model}</h1>
    ${error && html`<p class="note" role="alert"><${Marked} text=${error.message} /> The page shows the last known values.</p>`}
    ${last.answered ? html`<${Board} key=${model} model=${model} bundle=${about.value} readings=${readings} />` : html`<${Quiet} model=${model} />`}`;
}

function Quiet({ model }) {
  const report = useLoaded((signal) => getJson(`${modelPath(model)}/report`, { signal }), [model]);
  const samples = (report.value?.samples ?? []).map(fromSample);
  const [state, setState] = useState("");
  const send = async () => {
    setState("sending");
    try {
      await sendJson("POST", `${modelPath(model)}/predict`, { instances: samples.map((s) => s.instance) });
    } catch (error) {
      setState(error.message);
    }
  };
  return html`<div class="card"><${Empty} title="No predictions yet">
    <p>This model has answered nothing since the service started.${samples.length > 0 ? " Score its samples to see the page at work:" : html` Send it a prediction; <a href="docs">the API page</a> has a form for that. Answers on Try are not counted.`}</p>
    ${samples.length > 0 && html`<p class="line"><button class="main" disabled=${state === "sending"} onClick=${send}>Score the model's ${samples.length} samples</button>
      <${CopyAs} what="a prediction" call=${() => ({ method: "POST", path: `${modelPath(model)}/predict`, json: { instances: [samples[0].instance] } })} /></p>`}
    ${state && state !== "sending" && html`<p class="wrong" role="alert">${state}</p>`}
  </${Empty}></div>`;
}

const MARKED = 10; // priors whose revisions are marked
const REVISIONS = 20; // of each, the newest

/** The newest revisions of the priors in use, newest first: [{prior, revision, at, by, note, deleted}]. Read again after a change. */
function useChanges(model, revisions) {
  const names = [...new Set(["default", ...Object.keys(revisions)])].slice(0, MARKED);
  const now = JSON.stringify(names.map((name) => [name, revisions[name]]));
  const found = useLoaded(
    async (signal) => {
      const histories = await Promise.all(names.map((name) =>
        getJson(`${modelPath(model)}/priors/${encodeURIComponent(name)}/revisions?limit=${REVISIONS}`, { signal }).then((page) => page.revisions.map((r) => ({ prior: name, at: Date.parse(r.updated_at) / 1000, ...r })), () => [])));
      return histories.flat().sort((a, b) => b.at - a.at);
    },
    [model, now],
  );
  return found.value ?? [];
}

/** Dashed lines at the times when a revision was stored while the chart was collecting. */
const begun = (readings) => readings[0].at;
export const marksOf = (changes, readings) => changes.filter((c) => c.at >= begun(readings)).map((c) => ({ x: c.at, stroke: c.prior === "default" ? "alert" : "quiet", label: `${c.prior} ${c.deleted ? "out of use" : c.revision}, ${c.by}, ${when(c.updated_at)}` }));

/** The changes as a list with their authors, also for those who cannot see the lines. */
function Changes({ model, changes, since }) {
  const shown = changes.slice(0, 8);
  if (!shown.length) return null;
  return html`<section class="card" aria-label="Changes of priors"><h2>Changes of priors</h2>
    <table class="plain changes" role="table"><thead role="rowgroup"><tr role="row">${["When", "Prior", "By", "Why"].map((head) => html`<th role="columnheader" scope="col">${head}</th>`)}</tr></thead><tbody role="rowgroup">
      ${shown.map((c) => html`<tr role="row" class="first"><td role="cell">${when(c.updated_at)}${c.at >= since && html` <span class="quiet">marked above</span>`}</td>
        <th role="rowheader" scope="row"><a href=${`#/priors?model=${encodeURIComponent(model)}&name=${encodeURIComponent(c.prior)}&tab=history`}>${c.prior}</a> ${c.deleted ? "taken out of use" : `revision ${c.revision}`}${c.equals ? html` <span class="quiet">= ${c.equals}</span>` : ""}</th>
        <td role="cell">${c.by}</td><td role="cell">${c.note || html`<span class="quiet">–</span>`}</td></tr>`)}</tbody></table></section>`;
}

const SPANS = { quarter: "in the last 15 minutes", minute: "in the last minute", start: "since the service started" };

function Board({ model, bundle, readings }) {
  const [span, setSpan] = useState("quarter");
  const last = readings[readings.length - 1];
  const changes = useChanges(model, last.revisions);
  const marks = marksOf(changes, readings);
  const recent = readings.find((r) => r.at >= last.at - 15) ?? readings[0];
  const since = { minute: readingBefore(readings, MINUTE), quarter: readingBefore(readings, QUARTER), start: undefined }[span];
  return html`
    <${Tiles} last=${last} since=${since} words=${SPANS[span]} before=${recent === last ? readings[readings.length - 2] : recent} />
    <div class="two">
      <${Rates} readings=${readings} marks=${marks} /><${Latency} readings=${readings} marks=${marks} />
    </div>
    <${Changes} model=${model} changes=${changes} since=${begun(readings)} />
    <section class="card" aria-label="Classes">
      <div class="line apart"><h2>Classes</h2>
        <label class="line tight">counted <select value=${span} onChange=${(e) => setSpan(e.target.value)}>
          ${Object.entries(SPANS).map(([name, words]) => html`<option value=${name}>${words}</option>`)}</select></label></div>
      ${last.answered === since?.answered ? html`<p class="quiet" role="status">Nothing was answered in this period.</p>`
        : html`<${Groups} last=${last} since=${since} /><${Classes} bundle=${bundle} last=${last} since=${since} />`}
    </section>
    <${Priors} model=${model} last=${last} />
    <p class="quiet">Read from <a href="metrics">/metrics</a> every ${EVERY_MS / 1000} s while this page is visible. Earlier readings, one a minute, come from <a href=${`metrics/recent?model=${encodeURIComponent(model)}`}>/metrics/recent</a>.${" "}<${CopyAs} what="the scrape" call=${() => ({ method: "GET", path: "metrics" })} /></p>`;
}

const perSecond = (n, seconds) => (seconds > 0 ? n / seconds : 0);
const rateText = (n) => (n === 0 ? "0" : n < 10 ? n.toFixed(1) : whole(n));
const ms = (seconds) => (seconds === null ? "–" : `${(1000 * seconds).toFixed(seconds < 0.01 ? 2 : seconds < 0.1 ? 1 : 0)} ms`);

function Tiles({ last, since, words, before }) {
  const seconds = before ? last.at - before.at : 0;
  const delta = (name) => (before ? grown(last[name], before[name]) : 0);
  const now = before && delta("requests");
  const buckets = now ? grownBy(last.buckets, before.buckets) : last.buckets;
  const [changed, answered] = ["changed", "answered"].map((name) => (since ? grown(last[name], since[name]) : last[name]));
  const rejected = Object.values(last.rejected).reduce((a, b) => a + b, 0);
  const tile = (name, value, more) => html`<div class="tile"><dt>${name}</dt><dd><b>${value}</b> <span class="quiet">${more}</span></dd></div>`;
  return html`<dl class="tiles">
    ${tile("Answers a second", rateText(perSecond(delta("answered"), seconds)), `${whole(last.answered)} since start`)}
    ${tile("Changed by the adjustment", percent(answered ? changed / answered : null), `${whole(changed)} of ${whole(answered)} answers ${words}`)}
    ${tile("Median time", ms(quantile(buckets, 0.5)), `99 % within ${ms(quantile(buckets, 0.99))}; all models, ${now ? `last ${whole(seconds)} s` : "since start"}`)}
    ${tile("Requests refused or failed", whole(last.refused + last.failed), `${whole(last.failed)} failed in the service (5xx); all models since start`)}
    ${tile("Rows waiting", whole(last.queued), `${whole(rejected)} not scored since start`)}
  </dl>`;
}

/** [times, …values] of consecutive readings. */
function steps(readings, values) {
  const data = [[], ...values.map(() => [])];
  for (let i = 1; i < readings.length; i++) {
    const [a, b] = [readings[i - 1], readings[i]];
    data[0].push(b.at);
    values.forEach((f, n) => data[n + 1].push(f(b, a, b.at - a.at)));
  }
  if (data[0].length) { // draw the first value from the first reading on
    data[0].unshift(readings[0].at);
    values.forEach((_, n) => data[n + 1].unshift(data[n + 1][0]));
  }
  return data;
}

function Rates({ readings, marks }) {
  const data = useMemo(
    () => steps(readings, [
      (b, a, s) => perSecond(grown(b.answered, a.answered), s),
      (b, a, s) => perSecond(grown(b.changed, a.changed), s),
    ]),
    [readings],
  );
  return html`<section class="card" aria-label="Rates"><h2>Answers a second</h2>
    ${data[0].length < 2 ? html`<p class="quiet">Collecting …</p>`
    : html`<${Chart} say="Answers a second, and those that the adjustment changed, over the last minutes" data=${data} marks=${marks} height=${180} x=${{ time: true }}
        y=${{ values: (v) => (v < 10 ? String(Number(v.toFixed(2))) : whole(v)), range: (_, __, max) => [0, Math.max(1, max * 1.25)] }}
        series=${[{ label: "all", stroke: "accent" }, { label: "changed by the adjustment", stroke: "alert" }]} />`}</section>`;
}

function Latency({ readings, marks }) {
  const data = useMemo(() => {
    const at = (q) => (b, a) => {
      const found = quantile(grownBy(b.buckets, a.buckets), q);
      return found === null ? null : 1000 * found;
    };
    return steps(readings, [at(0.5), at(0.99)]);
  }, [readings]);
  return html`<section class="card" aria-label="Time of a request"><h2>Time of a request, all models</h2>
    ${data[0].length < 2 ? html`<p class="quiet">Collecting …</p>`
    : html`<${Chart} say="Median and 99th percentile of the time of a request in milliseconds, over the last minutes" data=${data} marks=${marks} height=${180} x=${{ time: true }}
        y=${{ values: (v) => `${v} ms`, range: (_, __, max) => [0, Math.max(1, max * 1.25)], size: 60 }}
        series=${[{ label: "median", stroke: "accent", ...DOTTED }, { label: "99th percentile", stroke: "c3", ...DOTTED }]} />`}</section>`;
}

const DOTTED = { spanGaps: true, points: { show: true, size: 4 } }; // a burst may be a single reading, which has no line

const total = (counts) => Object.values(counts).reduce((a, b) => a + b, 0);

function Groups({ last, since }) {
  const now = grownBy(last.groups.adjusted, since?.groups.adjusted);
  const was = grownBy(last.groups.unadjusted, since?.groups.unadjusted);
  const groups = ["many", "medium", "few"].filter((g) => g in now);
  if (groups.length < 2) return null;
  return html`<div class="groups" role="group" aria-label="Answers by group of the predicted class">${[["as trained", was], ["adjusted", now]].map(([name, counts]) => {
    const sum = Math.max(1, total(counts));
    return html`<span class="quiet">${name}</span><div class="stack" role="img" aria-label=${`${name}: ${groups.map((g) => `${g} ${percent(counts[g] / sum)}`).join(", ")}`}>
      ${groups.map((g) => html`<i class=${`bg-${g}`} style=${{ width: `${(100 * counts[g]) / sum}%` }}></i>`)}</div>`;
  })}<span></span><p class="quiet">${groups.map((g) => html`<span class="legend"><i class=${`key bg-${g}`}></i>${g} ${percent(was[g] / Math.max(1, total(was)))} → ${percent(now[g] / Math.max(1, total(now)))}</span>`)}</p></div>`;
}

function Classes({ bundle, last, since }) {
  const [search, setSearch] = useState("");
  const [order, setOrder] = useState("count");
  const [page, setPage] = useState(0);
  const now = grownBy(last.classes.adjusted, since?.classes.adjusted);
  const was = grownBy(last.classes.unadjusted, since?.classes.unadjusted);
  const [sumNow, sumWas] = [Math.max(1, total(now)), Math.max(1, total(was))];
  const counts = useMemo(() => new Map(bundle.class_names.map((name, i) => [name, bundle.class_counts?.[i]])), [bundle]);
  const place = useMemo(() => new Map(bundle.class_names.map((name, i) => [name, i])), [bundle]);
  const change = (name) => now[name] / sumNow - was[name] / sumWas;
  const by = {
    count: (a, b) => now[b] - now[a],
    change: (a, b) => Math.abs(change(b)) - Math.abs(change(a)),
    class: (a, b) => (place.get(a) ?? 1e9) - (place.get(b) ?? 1e9),
  }[order];
  const rows = Object.keys(now).filter((name) => name.toLowerCase().includes(search.trim().toLowerCase())).sort((a, b) => by(a, b) || (place.get(a) ?? 1e9) - (place.get(b) ?? 1e9));
  const pages = Math.max(1, Math.ceil(rows.length / PAGE));
  const here = Math.min(page, pages - 1);
  const aim = last.targets;
  const widest = Math.max(1e-9, ...rows.map((name) => Math.max(now[name] / sumNow, was[name] / sumWas, aim[name] ?? 0)));
  return html`
    <p class="line">
      ${Object.keys(now).length > PAGE && html`<input type="search" placeholder="Find a class" aria-label="Find a class" value=${search} onInput=${(e) => { setSearch(e.target.value); setPage(0); }} />`}
      <label class="line tight">order <select value=${order} onChange=${(e) => setOrder(e.target.value)}>
        <option value="count">most predicted</option><option value="change">most changed</option><option value="class">in the model's order</option></select></label>
    </p>
    <table class="before-after"><caption class="sr">Share of the answers by class, as trained and adjusted</caption>
      <thead><tr><th scope="col">Class</th><th scope="col"><span class="sr">Bars</span></th><th scope="col">As trained</th><th scope="col">Adjusted</th><th scope="col" class="wide">Answers</th></tr></thead>
      <tbody>${rows.slice(here * PAGE, (here + 1) * PAGE).map((name) => html`<tr key=${name}>
        <th scope="row"><span class="name">${name === "__other__" ? "all other classes" : name}</span> <${Group} name=${groupOf(counts.get(name))} /></th>
        <td class="bars"><i class="was" style=${{ width: `${(100 * was[name]) / sumWas / widest}%` }}></i><i class="is" style=${{ width: `${(100 * now[name]) / sumNow / widest}%` }}></i>${aim[name] !== undefined && html`<i class="aim" style=${{ left: `${(99.5 * aim[name]) / widest}%` }}></i>`}</td>
        <td class="number quiet">${fine(was[name] / sumWas)}</td><td class="number">${fine(now[name] / sumNow)}</td><td class="number quiet wide">${whole(now[name])}</td></tr>`)}
      </tbody></table>
    ${rows.length === 0 && html`<p class="quiet">No class name contains this text.</p>`}
    <p class="quiet"><span class="legend"><i class="key bg-was"></i>as trained</span> <span class="legend"><i class="key bg-accent"></i>adjusted</span>${Object.keys(aim).length > 0 && html` <span class="legend"><i class="key aim"></i>target of the prior <i>default</i></span>`}</p>
    ${pages > 1 && html`<${Pager} page=${here} pages=${pages} go=${setPage} />`}`;
}

const MOST = Math.log(2);

function Priors({ model, last }) {
  const names = Object.keys(last.revisions);
  if (!names.length && !Object.keys(last.divergences).length) return null;
  const all = [...new Set([...names, ...Object.keys(last.divergences)])].sort();
  return html`<section class="card" aria-label="Drift"><h2>Priors in use, and drift</h2>
    <p class="quiet">How far the mean of the adjusted probabilities is from the target, if the prior marks its target as expected, or else from the mean of the model's first answers. It is a Jensen–Shannon divergence in nats, from 0 (no drift) to ${MOST.toFixed(2)}.</p>
    <table class="plain drift"><thead><tr><th scope="col">Prior</th><th scope="col" class="number">Revision</th><th scope="col">Divergence</th></tr></thead><tbody>
      ${all.map((name) => html`<tr><th scope="row"><a href=${`#/priors?model=${encodeURIComponent(model)}&name=${encodeURIComponent(name)}`}>${name}</a></th><td class="number">${last.revisions[name] ?? "–"}</td>
        <td>${last.divergences[name] === undefined ? html`<span class="quiet">not measured yet</span>`
          : html`<meter min="0" max=${MOST} low="0.02" high="0.1" optimum="0" value=${last.divergences[name]}></meter> <span class="number">${last.divergences[name].toFixed(4)}</span>`}</td></tr>`)}
    </tbody></table></section>`;
}
