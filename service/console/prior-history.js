// The history of a prior: author, time and note; compares two revisions; goes back to any of them or to nothing stored.

import { html, useEffect, useMemo, useState } from "./vendor/preact.js";
import { getJson, sendJson } from "./api.js";
import { groupOf } from "./formula.js";
import { fine } from "./prior-view.js";
import { CopyAs } from "./snippets.js";
import { Failed, Group, Loading, useLoaded, when, whole } from "./widgets.js";

const PAGE = 50;
const SHOWN = 30;

/** prior: the one in force when the page read it, revision 0 while nothing is stored; stale: reads it again. */
export function History({ bundle, path, name, prior, done, stale }) {
  const [before, setBefore] = useState([]);
  const at = before[before.length - 1];
  const page = useLoaded((signal) => getJson(`${path}/revisions?limit=${PAGE}${at ? `&before=${at}` : ""}`, { signal }), [path, at, prior.revision]);
  // Somebody else may have changed the prior since the page read it: in force is what the history says.
  useEffect(() => {
    const newest = at ? undefined : page.value?.revisions[0];
    if (newest && (newest.deleted ? 0 : newest.revision) !== prior.revision) stale();
  }, [page.value]);
  const [picked, setPicked] = useState([]);
  const [asked, setAsked] = useState(null);
  const [problem, setProblem] = useState("");
  if (page.error) return html`<${Failed} error=${page.error} again=${page.again} />`;
  if (!page.value) return html`<${Loading} what="the history" />`;
  const pick = (revision) => setPicked(picked.includes(revision) ? picked.filter((r) => r !== revision) : [...picked, revision].slice(-2));
  const pair = [...picked].sort((a, b) => a - b);
  const back = async (revision) => {
    setProblem("");
    try {
      const { body } = await sendJson("POST", `${path}/rollback`, { revision }, { headers: conditionOf(prior) });
      setAsked(null);
      page.again();
      done(body.revision === 0 ? `Nothing is stored as ${name} any more${name === "default" ? ": the model's own rule applies again" : ""}.`
        : body.revision === prior.revision ? `Revision ${revision} equals the one in force: nothing was changed.` : `Revision ${body.revision} is now in force. It equals revision ${revision}.`);
    } catch (error) {
      setProblem(error.message);
    }
  };
  const wayBack = (revision, words) => asked === revision
    ? html`<span class="line tight"><button class="small main" onClick=${() => back(revision)}>Go back to ${words}</button><button class="small" onClick=${() => setAsked(null)}>Cancel</button></span>`
    : html`<button class="small" aria-label=${`Go back to ${revision ? `revision ${revision}` : words} …`} onClick=${() => setAsked(revision)}>Go back …</button>`;
  const lines = page.value.revisions;
  const content = (r) => r.equals ?? r.revision; // equal revisions name the same one
  const inForce = lines.find((r) => r.revision === prior.revision && !r.deleted);
  const asInForce = (r) => Boolean(inForce) && content(r) === content(inForce);
  return html`<p class="quiet">${lines.filter((r) => !r.deleted).length > 1 ? "Pick two revisions to compare them." : lines.length || at ? "" : "No revision is stored yet. What you save under Edit becomes revision 1."}</p>
    <table class="plain history" role="table" aria-label="Revisions"><thead role="rowgroup"><tr role="row"><th role="columnheader" scope="col"><span class="sr">Compare</span></th><th role="columnheader" scope="col">Revision</th><th role="columnheader" scope="col">When</th><th role="columnheader" scope="col" class="wide">By</th><th role="columnheader" scope="col">Why</th><th role="columnheader" scope="col"><span class="sr">Do</span></th></tr></thead>
      <tbody role="rowgroup">${lines.map((r) => html`<tr key=${r.revision} class="first" role="row">
        <td role="cell">${!r.deleted && html`<input type="checkbox" aria-label=${`Compare revision ${r.revision}`} checked=${picked.includes(r.revision)} onChange=${() => pick(r.revision)} />`}</td>
        <th scope="row" role="rowheader">${r.revision}${r.revision === prior.revision ? html` <span class="quiet">in force</span>` : ""}</th>
        <td role="cell" class="when">${when(r.updated_at)}</td><td role="cell" class="wide">${r.by === "anonymous" ? html`<span class="quiet">anonymous</span>` : r.by}</td>
        <td role="cell" class="why">${r.deleted ? html`<i>taken out of use</i>${r.note && html` <span class="quiet">${r.note}</span>`}` : r.note || html`<span class="quiet">–</span>`}${!r.deleted && r.equals ? html` <span class="equal">= revision ${r.equals}</span>` : ""}</td>
        <td role="cell" class=${asked === r.revision ? "number sure" : "number"}>${!r.deleted && r.revision !== prior.revision && (asInForce(r) ? html`<span class="quiet">as in force</span>` : wayBack(r.revision, r.revision))}</td></tr>`)}
      ${!page.value.next && html`<tr class="first" role="row"><td role="cell"></td><th scope="row" role="rowheader">0${prior.revision === 0 ? html` <span class="quiet">in force</span>` : ""}</th>
        <td role="cell" class="when"></td><td role="cell" class="wide"></td><td role="cell" class="why"><i>nothing stored</i> <span class="quiet">${name === "default" ? "the model's own rule: uniform target" : "requests that name it are refused"}</span></td>
        <td role="cell" class=${asked === 0 ? "number sure" : "number"}>${prior.revision !== 0 && wayBack(0, "nothing stored")}</td></tr>`}</tbody></table>
    ${problem && html`<p class="wrong" role="alert">${problem}</p>`}
    ${(at || page.value.next) && html`<p class="line pager"><button class="small" disabled=${!at} onClick=${() => setBefore(before.slice(0, -1))}>Newer</button>
      <button class="small" disabled=${!page.value.next} onClick=${() => setBefore([...before, page.value.next])}>Older</button></p>`}
    ${pair.length === 2 && html`<${Compared} bundle=${bundle} path=${path} name=${name} pair=${pair} />`}
    ${asked === null ? html`<${CopyAs} what="this history" call=${() => ({ method: "GET", path: `${path}/revisions`, query: { limit: PAGE, before: at } })} />`
      : html`<${CopyAs} what="going back" call=${() => ({ method: "POST", path: `${path}/rollback`, json: { revision: asked }, headers: conditionOf(prior) })} />`}`;
}

/** The condition with the revision that a change replaces; an unstored prior other than `default` has none. */
const conditionOf = (prior) => (prior.revision || prior.name === "default" ? { "If-Match": `"${prior.revision}"` } : {});

function Compared({ bundle, path, name, pair }) {
  const found = useLoaded((signal) => Promise.all(pair.map((r) => getJson(`${path}?revision=${r}`, { signal }))), [path, ...pair]);
  return html`<h3>${name}: revision ${pair[0]} → ${pair[1]}</h3>
    ${found.error ? html`<${Failed} error=${found.error} again=${found.again} />` : !found.value || found.loading ? html`<${Loading} what="both revisions" />`
      : html`<${Differences} bundle=${bundle} before=${found.value[0]} after=${found.value[1]} />`}`;
}

/** Members of a prior that are not vectors. */
export const MEMBERS = ["costs", "context", "schedule"];

/** A member as short JSON. */
export function brief(value) {
  const text = value ? JSON.stringify(value) : "none";
  return text.length > 200 ? `${text.slice(0, 199)}…` : text;
}

/** The differences between two views of a prior, the largest ratios first. */
export function Differences({ bundle, before, after }) {
  const names = bundle.class_names;
  const rows = useMemo(() => {
    const found = [];
    for (const [field, words] of [["target", "target"], ["source_prior", "source"]]) {
      const [a, b] = [before?.[field], after?.[field]];
      if (!a || !b) continue;
      names.forEach((name, i) => {
        const [x, y] = [a[name], b[name]];
        if (Math.abs(x - y) > 1e-9 * Math.max(x, y)) found.push({ i, name, words, x, y, size: x > 0 && y > 0 ? Math.abs(Math.log(y / x)) : Infinity });
      });
    }
    return found.sort((p, q) => q.size - p.size);
  }, [before, after]);
  const both = new Set(rows.map((r) => r.words)).size > 1;
  const expected = before && before.expected !== after.expected;
  const others = MEMBERS.map((m) => [m, before?.as_written?.[m], after.as_written?.[m]]).filter(([, a, b]) => JSON.stringify(a) !== JSON.stringify(b));
  if (!rows.length && !expected && !others.length) return html`<p class="quiet">The two revisions are equal.</p>`;
  return html`${expected && html`<p>The target ${after.expected ? "is now" : "is no longer"} the mix that traffic is expected to have.</p>`}
    ${others.map(([m, a, b]) => html`<p>The ${m}: <code>${brief(a)}</code> → <code>${brief(b)}</code></p>`)}
    ${rows.length > 0 && !both && html`<p class="quiet">The ${rows[0].words} prior, the largest changes first.</p>`}
    ${rows.length > 0 && html`<div class="scroll" tabindex="0" role="region" aria-label="Differences"><table class="plain diff"><thead><tr><th scope="col">Class</th>${both && html`<th scope="col">Vector</th>`}<th scope="col" class="number">Revision ${before?.revision ?? 0}</th><th scope="col" class="number">Revision ${after.revision}</th><th scope="col" class="number">Factor</th></tr></thead>
      <tbody>${rows.slice(0, SHOWN).map((r) => html`<tr class="first"><th scope="row"><span class="name">${r.name}</span> <${Group} name=${groupOf(bundle.class_counts?.[r.i])} /></th>${both && html`<td>${r.words}</td>`}
        <td class="number quiet">${r.x === 0 ? "never" : fine(r.x)}</td><td class="number">${r.y === 0 ? "never" : fine(r.y)}</td><td class="number">${r.x > 0 && r.y > 0 ? `× ${r.y / r.x < 1000 ? (r.y / r.x).toPrecision(3) : whole(r.y / r.x)}` : "–"}</td></tr>`)}</tbody></table></div>
      ${rows.length > SHOWN && html`<p class="quiet">The ${SHOWN} largest of ${whole(rows.length)} differences.</p>`}`}`;
}
