// Edits a number for each class, for targets and label frequencies, by hand or from a CSV.

import { html, useEffect, useMemo, useState } from "./vendor/preact.js";
import { weightsOf } from "./csv.js";
import { groupOf } from "./formula.js";
import { fine, useClasses } from "./prior-view.js";
import { Group, whole } from "./widgets.js";

const PROBLEMS = 5;

/** values: {class: number} or a list in class order; others: the number of classes without a value. what: the name of the numbers.
 * unread: called with what was typed but is not a number, as a list of texts.
 */
export function Weights({ bundle, values: given, others = 0, what, hint, change, unread }) {
  const names = bundle.class_names;
  const values = useMemo(() => Object.fromEntries(names.map((n, i) => [n, (Array.isArray(given) ? given[i] : given[n]) ?? others])), [given, others]);
  const { rows, controls, pager } = useClasses(bundle, { value: (i) => values[names[i]], words: "largest first" });
  const [sum, widest] = useMemo(() => names.reduce(([total, most], n) => [total + values[n], Math.max(most, values[n])], [0, 0]), [values]);
  const [faulty, setFaulty] = useState({}); // what stands in a field and is not in the draft, by class
  const tell = (all) => {
    setFaulty(all);
    unread(what, Object.entries(all).map(([name, text]) => `${what} of ${name}: expected a number of at least 0${text && `, got ${text}`}; the draft still has ${values[name]}`));
  };
  useEffect(() => () => unread(what, []), []);
  const set = (name, text) => {
    const value = Number(text);
    const taken = text !== "" && value >= 0 && Number.isFinite(value);
    const { [name]: _, ...rest } = faulty;
    if (!taken) tell({ ...rest, [name]: text });
    else {
      if (name in faulty) tell(rest);
      change({ ...values, [name]: value });
    }
  };
  return html`${controls}<table class="before-after edit"><caption class="sr">${what} of each class; only ratios matter</caption>
    <thead><tr><th scope="col">Class</th><th scope="col"><span class="sr">Bar</span></th><th scope="col">${what}</th><th scope="col">Share</th></tr></thead>
    <tbody>${rows.map((i) => {
      const share = sum > 0 ? values[names[i]] / sum : 0;
      return html`<tr key=${i}><th scope="row"><span class="name">${names[i]}</span> <${Group} name=${groupOf(bundle.class_counts?.[i])} /></th>
        <td class="bars"><i class="is" style=${{ width: `${widest > 0 ? (100 * values[names[i]]) / widest : 0}%` }}></i></td>
        <td class="number"><input type="number" min="0" step="any" value=${faulty[names[i]] ?? values[names[i]]} aria-label=${`${what} of ${names[i]}`} aria-invalid=${names[i] in faulty} onInput=${(e) => set(names[i], e.target.value)} /></td>
        <td class="number">${names[i] in faulty ? html`<span class="wrong">not used</span>` : share === 0 ? "never" : fine(share)}</td></tr>`;
    })}</tbody></table>${pager}
    <p class="quiet">${hint}</p>
    <${FromCsv} names=${names} what=${what} before=${values} take=${(found) => { tell({}); change(found); }} />`;
}

/** Reads values from a pasted, chosen or dropped CSV. Nothing is filled in if any line has a fault. */
function FromCsv({ names, what, before, take }) {
  const [text, setText] = useState("");
  const [rest, setRest] = useState("0");
  const [over, setOver] = useState(false);
  const [done, setDone] = useState("");
  const found = useMemo(() => (text.trim() ? weightsOf(text, names) : null), [text, names]);
  const read = async (file) => file && change(await file.text());
  const change = (value) => { setText(value); setDone(""); };
  const count = found ? Object.keys(found.values).length : 0;
  const use = () => {
    take(Object.fromEntries(names.map((n) => [n, found.values[n] ?? (rest === "keep" ? before[n] : Number(rest))])));
    setDone(`Filled in ${whole(count)} of ${whole(names.length)} classes. Nothing is saved yet.`);
    setText("");
  };
  return html`<details class="csv"><summary>From a CSV: paste it, choose a file or drop one</summary>
    <div class=${`drop ${over ? "over" : ""}`} onDragOver=${(e) => { e.preventDefault(); setOver(true); }} onDragLeave=${() => setOver(false)}
      onDrop=${(e) => { e.preventDefault(); setOver(false); read(e.dataTransfer.files[0]); }}>
      <textarea rows="4" aria-label=${`${what} as CSV`} placeholder=${`class,${what.toLowerCase()}\n${names[0]},120`} spellcheck=${false} value=${text} onInput=${(e) => change(e.target.value)}></textarea>
      <p class="line"><label class="button">Choose a CSV<input class="sr" type="file" accept=".csv,.tsv,.txt,text/csv" onChange=${(e) => { read(e.target.files[0]); e.target.value = ""; }} /></label>
        <span class="quiet">A class and a number on each line, or one number for each class in the model's order.</span></p></div>
    ${found && found.problems.length > 0 && html`<div class="note" role="alert"><p>${whole(found.problems.length)} ${found.problems.length === 1 ? "line" : "lines"} cannot be used:</p><ul>${found.problems.slice(0, PROBLEMS).map((p) => html`<li>${p}</li>`)}</ul></div>`}
    ${found && !found.problems.length && html`<p class="line"><button type="button" onClick=${use}>Use these ${whole(count)} values</button>
      ${count < names.length && html`<label class="line tight">the other ${whole(names.length - count)} <select value=${rest} onChange=${(e) => setRest(e.target.value)}>
        <option value="0">get 0</option><option value="1">get 1</option><option value="keep">keep their value</option></select></label>`}</p>`}
    ${done && html`<p class="quiet" role="status">${done}</p>`}</details>`;
}
