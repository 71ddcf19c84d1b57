// A prior's vectors: source against target, in a table that can be searched, sorted and filtered by group.

import { html, useMemo, useState } from "./vendor/preact.js";
import { Chart } from "./chart.js";
import { groupOf, largest } from "./formula.js";
import { Group, Pager, percent, whole } from "./widgets.js";

const PAGE = 20;

/**
 * A page of the classes that match a search and a group, in a chosen order, with the controls for it.
 * value(i): the number that "sort by value" sorts by, descending; words: the name of that order.
 */
export function useClasses(bundle, { value, words } = {}) {
  const [search, setSearch] = useState("");
  const [page, setPage] = useState(0);
  const [sort, setSort] = useState("training");
  const [group, setGroup] = useState("");
  const names = bundle.class_names;
  const counts = bundle.class_counts;
  const order = useMemo(() => names.map((_, i) => i).sort((a, b) => (counts ? counts[b] - counts[a] : 0) || a - b), [bundle]);
  const sorted = useMemo(() => {
    if (sort === "name") return [...order].sort((a, b) => names[a].localeCompare(names[b]));
    if (sort === "value") return [...order].sort((a, b) => value(b) - value(a));
    return order; // `value` is not a dependency, so that rows keep their places while values are edited
  }, [order, sort]);
  const wanted = search.trim().toLowerCase();
  const found = useMemo(
    () => (wanted || group ? sorted.filter((i) => names[i].toLowerCase().includes(wanted) && (!group || groupOf(counts[i]) === group)) : sorted),
    [sorted, wanted, group],
  );
  const pages = Math.max(1, Math.ceil(found.length / PAGE));
  const here = Math.min(page, pages - 1);
  const from = (set) => (e) => { set(e.target.value); setPage(0); };
  const controls = html`${names.length > PAGE &&
    html`<p class="line"><input type="search" placeholder="Find a class" aria-label="Find a class" value=${search} onInput=${from(setSearch)} />
      <label class="line tight">order <select value=${sort} onChange=${from(setSort)}><option value="training">${counts ? "most frequent in training" : "in the model's order"}</option>
        ${value && html`<option value="value">${words}</option>`}<option value="name">by name</option></select></label>
      ${counts && html`<label class="line tight">group <select value=${group} onChange=${from(setGroup)}><option value="">all</option>${["many", "medium", "few"].map((g) => html`<option value=${g}>${g}</option>`)}</select></label>`}
      <span class="quiet">${whole(found.length)} of ${whole(names.length)} classes</span></p>`}`;
  const pager = pages > 1 ? html`<${Pager} page=${here} pages=${pages} go=${setPage} />` : null;
  return { order, rows: found.slice(here * PAGE, (here + 1) * PAGE), controls, pager };
}

/** A share with so many digits that only a class that cannot occur is shown as 0. */
export function fine(p) {
  if (!(p > 0)) return percent(p);
  if (p < 1e-9) return `${(100 * p).toExponential(1)}\u00a0%`;
  if (p < 1e-5) return `${(100 * p).toLocaleString("en", { maximumSignificantDigits: 2 })}\u00a0%`;
  return percent(p, p < 0.001 ? 4 : p < 0.01 ? 2 : 1);
}

export function Vectors({ bundle, prior }) {
  const names = bundle.class_names;
  const { order, rows, controls, pager } = useClasses(bundle, { value: (i) => prior.target?.[names[i]] ?? 0, words: "largest target" });
  if (!prior.target) return html`<p class="note">This revision belongs to another class list. It has no vectors for this model and is not applied.</p>`;
  const source = prior.source_prior;
  const widest = largest(names.map((n) => Math.max(prior.target[n], source?.[n] ?? 0)));
  return html`
    ${names.length > PAGE && html`<${Profile} names=${names} order=${order} prior=${prior} />`}
    ${controls}
    <table class="before-after"><caption class="sr">Source and target prior of each class, the most frequent in training first</caption>
      <thead><tr><th scope="col">Class</th><th scope="col"><span class="sr">Bars</span></th><th scope="col">Source</th><th scope="col">Target</th><th scope="col" class="wide">Logit shift</th></tr></thead>
      <tbody>${rows.map((i) => {
        const [s, t] = [source?.[names[i]] ?? null, prior.target[names[i]]];
        return html`<tr key=${i}><th scope="row"><span class="name">${names[i]}</span> <${Group} name=${groupOf(bundle.class_counts?.[i])} /></th>
          <td class="bars"><i class="was" style=${{ width: `${(100 * (s ?? 0)) / widest}%` }}></i><i class="is" style=${{ width: `${(100 * t) / widest}%` }}></i></td>
          <td class="number quiet">${s === null ? "unknown" : fine(s)}</td><td class="number">${t === 0 ? "never" : fine(t)}</td>
          <td class="number quiet wide">${s === null || t === 0 ? "–" : signed(Math.log(t / s))}</td></tr>`;
      })}</tbody></table>
    ${pager}
    <p class="quiet"><i class="key bg-was"></i>source: the class mix that the logits assume; it is divided out. <i class="key bg-accent"></i>target: the class mix that the answers assume; it is multiplied in.<span class="wide"> The shift is added to the logits at τ = 1.</span></p>`;
}

const signed = (x) => `${x >= 0 ? "+" : "−"}${Math.abs(x).toFixed(2)}`;

/** Chart for many classes: both priors over the classes' rank in training, on a logarithmic scale. */
function Profile({ names, order, prior }) {
  const data = useMemo(() => {
    const log = (v) => (v > 0 ? Math.log10(v) : null);
    const columns = [order.map((_, n) => n + 1)];
    if (prior.source_prior) columns.push(order.map((i) => log(prior.source_prior[names[i]])));
    columns.push(order.map((i) => log(prior.target[names[i]])));
    return columns;
  }, [order, prior]);
  const series = [{ label: "target", stroke: "accent" }];
  if (prior.source_prior) series.unshift({ label: "source", stroke: "was" });
  return html`<${Chart} say="Source and target prior over the rank of the class in training, logarithmic" data=${data} series=${series} height=${190} shape=${`${prior.name}${prior.revision}`}
    x=${{ label: "classes, the most frequent first" }} y=${{ label: "share", values: powers, size: 92 }} />`;
}

const powers = (v) => (Number.isInteger(v) ? `${Number((10 ** (v + 2)).toPrecision(1))} %` : "");
