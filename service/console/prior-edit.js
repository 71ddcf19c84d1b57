// The editor of a prior: a draft that survives conflicts, a preview on recent traffic, a warning before a drastic change.

import { html, useMemo, useState } from "./vendor/preact.js";
import { Problem, getJson, sendJson } from "./api.js";
import { groupOf } from "./formula.js";
import { Differences } from "./prior-history.js";
import { fine } from "./prior-view.js";
import { CopyAs } from "./snippets.js";
import { Weights } from "./weights.js";
import { NeedsKey } from "./who.js";
import { Failed, Group, Loading, Marked, percent, when, whole } from "./widgets.js";

const MANY_FLIPS = 0.25; // saving asks for confirmation if at least this share of recent answers would change

const BLANK = { label_frequencies: null, target: "uniform", smoothing: 0, expected: false, note: "" };

/** Members that are edited as JSON, each with its purpose and an example. */
const MORE = [
  { name: "costs", words: "Costs of wrong decisions", example: '{"miss": {"lynx": 10}, "pairs": [["lynx", "cat", 20]], "reject": 0.2}' },
  { name: "context", words: "Use other priors by the context of a request", example: '{"site": {"north": "winter", "south": "summer"}, "else": "default"}' },
  { name: "schedule", words: "Use other priors by date and time", example: '{"time_zone": "Europe/Berlin", "rules": [{"weekdays": ["sat", "sun"], "hours": [9, 18], "prior": "weekend"}], "else": "default"}' },
];

/** The initial draft: the prior as it was written, with `others` expanded to one value per class. */
function draftOf(prior, names) {
  const written = prior?.as_written;
  if (!written) return { ...BLANK };
  const spelt = (vector) => {
    if (vector === null || typeof vector === "string") return vector;
    return Object.fromEntries(names.map((name, i) => [name, (Array.isArray(vector) ? vector[i] : vector[name]) ?? written.others ?? 0]));
  };
  const more = Object.fromEntries(MORE.filter(({ name }) => written[name]).map(({ name }) => [name, written[name]]));
  return { label_frequencies: spelt(written.label_frequencies), target: spelt(written.target), smoothing: written.smoothing, expected: written.expected, note: "", ...more };
}

export function Editor({ bundle, path, name, prior, stored, saved }) {
  const names = bundle.class_names;
  const [draft, setDraft] = useState(() => draftOf(prior, names));
  const [base, setBase] = useState(prior);
  const [conflict, setConflict] = useState(null);
  const [error, setError] = useState(null);
  const [busy, setBusy] = useState(false);
  const [drastic, setDrastic] = useState(null);
  const [unread, setUnread] = useState({}); // why an entry of the form is not in the draft, by field
  const notUsed = (field, why) => {
    setUnread((all) => ({ ...all, [field]: why }));
    setError(null);
  };
  const unused = Object.values(unread).flat();
  const change = (members) => {
    setDraft({ ...draft, ...members });
    setError(null);
    setDrastic(null);
  };
  const put = async (onto, force) => {
    const headers = onto?.revision || (onto && stored) ? { "If-Match": `"${onto.revision}"` } : { "If-None-Match": "*" };
    const { body, status } = await sendJson("PUT", force ? `${path}?force=1` : path, draft, { headers });
    saved(status === 201 || body.revision !== onto?.revision ? `Saved as revision ${body.revision}.` : `Nothing was changed: the draft equals revision ${body.revision}.`);
  };
  /** Save the draft. A drastic change is saved only if the user has `confirmed` it. */
  const save = async (onto, confirmed = false) => {
    if (unused.length) return setError(incomplete(unused));
    setBusy(true);
    setError(null);
    setDrastic(null);
    try {
      const found = confirmed ? null : await drasticness(path, draft);
      if (found) setDrastic({ ...found, onto });
      else await put(onto, confirmed);
    } catch (problem) {
      if (problem instanceof Problem && problem.status === 412) setConflict(await getJson(path).catch(() => ({ gone: true })));
      else if (problem.type === "/problems/too-many-flips") setDrastic({ warnings: [problem.message], onto });
      else setError(problem);
    }
    setBusy(false);
  };
  const mode = typeof draft.target === "string" ? draft.target : "classes";
  const modes = [["uniform", "uniform"], ["training", "as in training"], ["classes", "class by class"]];
  const byClass = (target) => change({ target, expected: draft.expected });
  const started = () => {
    const from = prior?.target ?? null;
    return Object.fromEntries(names.map((n) => [n, from ? Number((names.length * from[n]).toPrecision(6)) : 1]));
  };
  return html`
    ${conflict && html`<${Conflict} ...${{ bundle, name, base, draft, theirs: conflict }}
      onTop=${() => { setBase(conflict); setConflict(null); save(conflict.gone ? null : conflict); }}
      theirsOnly=${() => { setDraft(draftOf(conflict, names)); setBase(conflict); setConflict(null); }} goOn=${() => { setBase(conflict.gone ? null : conflict); setConflict(null); }} />`}
    <fieldset class="chips"><legend>Target: the class mix that the answers assume</legend>
      ${modes.map(([m, words]) => html`<label class="chip"><input type="radio" name="mode" checked=${mode === m} disabled=${m === "training" && !bundle.class_counts && !draft.label_frequencies}
        onChange=${() => byClass(m === "classes" ? started() : m)} /><span>${words}</span></label>`)}
      <${Estimate} path=${path} take=${(candidate) => change({ target: Array.isArray(candidate.target) ? Object.fromEntries(names.map((n, i) => [n, candidate.target[i]])) : candidate.target, expected: candidate.expected, note: candidate.note })} />
    </fieldset>
    ${mode === "classes" && html`<${Weights} bundle=${bundle} values=${draft.target} others=${draft.others ?? 0} what="Weight" unread=${notUsed} change=${byClass}
      hint="Counts or shares: only ratios matter. 0 means that the class cannot occur." />`}
    ${bundle.loss_tau !== 1 && html`<${Frequencies} bundle=${bundle} draft=${draft} change=${change} unread=${notUsed} />`}
    <label class="check"><input type="checkbox" checked=${draft.expected} onChange=${(e) => change({ expected: e.target.checked })} /> I expect traffic to have this mix: measure drift against the target</label>
    <p><label>Why <input type="text" class="long" maxlength="2000" value=${draft.note} onInput=${(e) => change({ note: e.target.value })} placeholder="a note for the history" /></label></p>
    ${MORE.map((m) => html`<${Member} key=${m.name} ...${m} value=${draft[m.name]} unread=${notUsed} change=${(value) => change({ [m.name]: value ?? undefined })} />`)}
    <${AsJson} draft=${draft} unread=${notUsed} setDraft=${(d) => { setDraft(d); setError(null); }} />
    <${Preview} path=${path} draft=${draft} bundle=${bundle} unused=${unused} />
    ${error && (error.status === 401 || error.status === 403 ? html`<${NeedsKey} error=${error} again=${() => setError(null)} />`
      : html`<div class="note" role="alert"><b>${error.title ?? "Not saved"}</b><p><${Marked} text=${error.message} /></p>${error.errors?.length > 0 && html`<ul>${error.errors.map((e) => html`<li><code>${e.field}</code> <${Marked} text=${e.message} /></li>`)}</ul>`}</div>`)}
    ${drastic && html`<div class="conflict" role="alert"><h3>This is a drastic change</h3>
      ${drastic.changed !== undefined && html`<p><b>${percent(drastic.changed)}</b> of ${whole(drastic.rows)} recent answers would have had another label.</p>`}
      ${drastic.warnings.map((w) => html`<p>${w}</p>`)}
      <p class="line"><button class="danger" disabled=${busy} onClick=${() => save(drastic.onto, true)}>Save it anyway</button><button onClick=${() => setDrastic(null)}>Keep editing</button></p></div>`}
    <p class="line">${!conflict && html`<button class="main" disabled=${busy} onClick=${() => save(base)}>Save ${base?.revision ? `on top of revision ${base.revision}` : "the first revision"}</button>`}
      <${CopyAs} what="this change" call=${() => ({ method: "PUT", path, json: draft, headers: base?.revision ? { "If-Match": `"${base.revision}"` } : {} })} /></p>`;
}

/** The error of a draft without something that stands in the form. */
const incomplete = (unused) => Object.assign(new Error(`Correct these first: they are not in the draft. ${unused.join(". ")}.`), { title: "Some entries cannot be used" });

/** Why a draft is drastic: {changed, rows, warnings}; null if it is not, or if the service cannot tell. */
async function drasticness(path, draft) {
  let found;
  try {
    found = (await sendJson("POST", `${path}/preview`, draft)).body;
  } catch {
    return null; // the key lacks observe, no answers are kept, or the draft is wrong: saving reports it
  }
  const many = found.decisions_changed !== null && found.decisions_changed >= MANY_FLIPS;
  const warnings = found.warnings.filter((w) => w.startsWith("the target"));
  return many || warnings.length ? { changed: found.decisions_changed ?? undefined, rows: found.rows, warnings } : null;
}

/** How often each class occurs in training: the model's own counts, or the user's numbers. */
function Frequencies({ bundle, draft, change, unread }) {
  const own = draft.label_frequencies !== null;
  const begin = () => Object.fromEntries(bundle.class_names.map((n, i) => [n, bundle.class_counts?.[i] ?? 1]));
  return html`<details class="frequencies" open=${own || !bundle.class_counts}><summary>Label frequencies: how often each class occurred in training</summary>
    ${!bundle.class_counts && !own && html`<p class="note">This model was published without counts. Its answers cannot be adjusted until you give label frequencies: choose <i>your own numbers</i>.</p>`}
    <fieldset class="chips"><legend class="sr">Label frequencies</legend>
      <label class="chip"><input type="radio" name="frequencies" checked=${!own} onChange=${() => change({ label_frequencies: null })} /><span>${bundle.class_counts ? "the model's own counts" : "unknown"}</span></label>
      <label class="chip"><input type="radio" name="frequencies" checked=${own} onChange=${() => !own && change({ label_frequencies: begin() })} /><span>your own numbers</span></label></fieldset>
    ${own && html`<${Weights} bundle=${bundle} values=${draft.label_frequencies} others=${draft.others ?? 0} what="Frequency" unread=${unread} change=${(label_frequencies) => change({ label_frequencies })}
      hint="Counts of training examples, or shares: only ratios matter. Each must be greater than 0." />`}</details>`;
}

/** The estimated mix of recent traffic as a draft; if its verdict is not usable, only after a second click. */
function Estimate({ path, take }) {
  const [said, setSaid] = useState(null);
  const use = (found) => {
    take(found.candidate);
    setSaid({ words: `Estimated from ${whole(found.rows)} recent answers (effective sample size ${whole(found.effective_rows)}). It is a draft: nothing is saved yet.`, warnings: found.warnings });
  };
  const ask = async () => {
    setSaid({ busy: true });
    try {
      const found = await getJson(`${path}/estimate`);
      if (found.verdict === "usable") use(found);
      else setSaid({ doubt: found });
    } catch (error) {
      setSaid({ bad: error.message });
    }
  };
  return html`<button type="button" class="small" disabled=${said?.busy} onClick=${ask}>Estimate from traffic</button>
    ${said?.words && html`<span class="quiet" role="status">${said.words} ${said.warnings.join(" ")}</span>`}${said?.bad && html`<span class="wrong" role="alert">${said.bad}</span>`}
    ${said?.doubt && html`<div class="note" role="alert"><p>This estimate is not usable (${said.doubt.verdict.replaceAll("_", " ")}): ${said.doubt.reason}</p>
      <p class="line"><button type="button" class="small" onClick=${() => use(said.doubt)}>Use it as a draft anyway</button><button type="button" class="small" onClick=${() => setSaid(null)}>Discard it</button></p></div>`}`;
}

/** An editor for one member of the draft, as JSON. An empty text removes the member. */
function Member({ name, words, example, value, change, unread }) {
  const [text, setText] = useState(null);
  const [problem, setSaid] = useState("");
  const setProblem = (said) => { setSaid(said); unread(name, said ? [`${words}: ${said}`] : []); };
  const edit = (written) => {
    setText(written);
    try {
      const found = written.trim() ? JSON.parse(written) : null;
      if (found !== null && (typeof found !== "object" || Array.isArray(found))) throw new Error("expected an object");
      setProblem("");
      change(found);
    } catch (error) {
      setProblem(`Not used yet: ${error.message}`);
    }
  };
  return html`<details class="json" open=${Boolean(value)}><summary>${words}</summary>
    <p class="quiet">For example <code>${example}</code>. The preview and saving check it.</p>
    <textarea rows="3" aria-label=${`${words} as JSON`} spellcheck=${false} value=${text ?? (value ? JSON.stringify(value, null, 1) : "")} onInput=${(e) => edit(e.target.value)} onBlur=${() => !problem && setText(null)}></textarea>
    ${problem && html`<p class="wrong" role="alert">${problem}</p>`}</details>`;
}

function AsJson({ draft, setDraft, unread }) {
  const [text, setText] = useState(null);
  const [problem, setSaid] = useState("");
  const setProblem = (said) => { setSaid(said); unread("json", said ? [`The whole prior as JSON: ${said}`] : []); };
  const edit = (value) => {
    setText(value);
    try {
      const body = JSON.parse(value);
      if (body === null || typeof body !== "object" || Array.isArray(body)) throw new Error("expected an object");
      setProblem("");
      setDraft({ ...BLANK, ...body });
    } catch (error) {
      setProblem(`Not used yet: ${error.message}`);
    }
  };
  return html`<details class="json"><summary>The whole prior as JSON, with smoothing</summary>
    <textarea rows="8" aria-label="The prior as JSON" spellcheck=${false} value=${text ?? JSON.stringify(draft, null, 1)} onInput=${(e) => edit(e.target.value)} onBlur=${() => !problem && setText(null)}></textarea>
    ${problem && html`<p class="wrong" role="alert">${problem}</p>`}</details>`;
}

/** The draft's effect on recent traffic. */
function Preview({ path, draft, bundle, unused }) {
  const [state, setState] = useState({});
  const ask = async () => {
    if (unused.length) return setState({ error: incomplete(unused) });
    setState({ busy: true });
    try {
      setState({ found: (await sendJson("POST", `${path}/preview`, draft)).body, of: draft });
    } catch (error) {
      setState({ error });
    }
  };
  const { found, error, busy, of } = state;
  return html`<div class="preview" aria-label="Preview" role="group">
    <p class="line"><button disabled=${busy} onClick=${ask}>Preview on recent traffic</button><span class="quiet">This saves nothing.</span></p>
    ${busy && html`<${Loading} what="the preview" />`}
    ${error && html`<${Failed} error=${error} again=${ask} />`}
    ${found && found.rows === 0 && html`<p class="quiet" role="status">The service keeps no recent answers of this model yet. Send it some predictions, then preview again.</p>`}
    ${found && found.rows > 0 && html`<${Previewed} found=${found} bundle=${bundle} stale=${of !== draft} />`}</div>`;
}

function Previewed({ found, bundle, stale }) {
  const counts = useMemo(() => new Map(bundle.class_names.map((n, i) => [n, bundle.class_counts?.[i]])), [bundle]);
  const rows = found.classes.filter((c) => c.after !== c.before).sort((a, b) => Math.abs(b.after - b.before) - Math.abs(a.after - a.before)).slice(0, 10);
  const widest = Math.max(1e-9, ...rows.map((c) => Math.max(c.before, c.after)));
  const pair = (words, p) => p && html`<div class="tile"><dt>${words}</dt><dd><b>${percent(p.after)}</b> <span class="quiet">now ${percent(p.before)}</span></dd></div>`;
  return html`<div role="status">
    ${stale && html`<p class="note">You have changed the draft since this preview.</p>`}
    <dl class="tiles"><div class="tile"><dt>Answers that would change</dt><dd><b>${percent(found.decisions_changed)}</b> <span class="quiet">of ${whole(found.rows)} recent ones, since ${when(found.since)}</span></dd></div>
      ${pair("Expected error", found.expected_error)}${pair("Expected balanced error", found.expected_balanced_error)}
      ${(found.rejected.after > 0 || found.rejected.before > 0) && pair("Rejected", found.rejected)}
      ${found.expected_cost.after !== null && html`<div class="tile"><dt>Expected cost of an answer</dt><dd><b>${found.expected_cost.after.toPrecision(3)}</b> <span class="quiet">${found.expected_cost.before === null ? "" : `now ${found.expected_cost.before.toPrecision(3)}`}</span></dd></div>`}
      <div class="tile"><dt>Divergence from the target</dt><dd><b>${found.divergence.after.toFixed(4)}</b> <span class="quiet">nats, now ${found.divergence.before.toFixed(4)}</span></dd></div></dl>
    ${found.warnings.map((w) => html`<p class="note">${w}</p>`)}
    ${rows.length === 0 && html`<p class="quiet">No class's share of the answers would change.</p>`}
    ${rows.length > 0 && html`<table class="before-after"><caption>Share of the answers, the largest changes first</caption>
      <thead><tr><th scope="col">Class</th><th scope="col"><span class="sr">Bars</span></th><th scope="col">Now</th><th scope="col">With the draft</th></tr></thead>
      <tbody>${rows.map((c) => html`<tr key=${c.index}><th scope="row"><span class="name">${c.label}</span> <${Group} name=${groupOf(counts.get(c.label))} /></th>
        <td class="bars"><i class="was" style=${{ width: `${(100 * c.before) / widest}%` }}></i><i class="is" style=${{ width: `${(100 * c.after) / widest}%` }}></i></td>
        <td class="number quiet">${fine(c.before)}</td><td class="number">${fine(c.after)}</td></tr>`)}</tbody></table>`}</div>`;
}

/** Another user saved first: shows their changes, and offers to save on top, to edit further, or to take theirs. */
function Conflict({ bundle, name, base, draft, theirs, onTop, theirsOnly, goOn }) {
  if (theirs.gone)
    return html`<div class="conflict" role="alert"><h3>${name} was taken out of use while you were editing</h3><p>Your draft below is unchanged.</p>
      <p class="line"><button class="main" onClick=${onTop}>Save mine as a new revision</button><button onClick=${goOn}>Keep editing</button></p></div>`;
  const who = theirs.by && theirs.by !== "anonymous" ? theirs.by : "Somebody else";
  return html`<div class="conflict" role="alert"><h3>${who} saved revision ${theirs.revision} while you were ${base?.revision ? `editing revision ${base.revision}` : "writing the first one"}</h3>
    <p>${when(theirs.updated_at)}${theirs.note ? html`: <q>${theirs.note}</q>.` : "."} Your draft below is unchanged. Their changes:</p>
    <${Differences} bundle=${bundle} before=${base} after=${theirs} />
    <p class="line"><button class="main" onClick=${onTop}>Save mine on top of revision ${theirs.revision}</button>
      <button onClick=${goOn}>Keep editing</button><button onClick=${theirsOnly}>Take theirs and drop my draft</button></p></div>`;
}
