// Table rows as inputs: a form with a field for each column, and CSV.

import { html, useRef, useState } from "./vendor/preact.js";
import { numberOf, rowsOf } from "./csv.js";
import { own } from "./instances.js";

export const MOST_FIELDS = 60;
export const MOST_ROWS = 500;

/** The columns of a model's rows, [{name, text, missing}]; null if a row is not a list of single values. */
export function fieldsOf({ input, inputs, provenance }) {
  if (input.kind === "columns") {
    const single = ({ shape }) => shape.slice(1).every((n) => n === 1);
    return inputs.every(single) ? inputs.map(({ name, kind, missing }) => ({ name, text: kind === "text", missing })) : null;
  }
  const [, width, ...more] = input.shape;
  if (!width || more.length) return null;
  const known = provenance?.data?.columns ?? provenance?.columns;
  const named = Array.isArray(known) && known.length === width && known.every((name) => typeof name === "string");
  return Array.from({ length: width }, (_, i) => ({ name: named ? known[i] : `value ${i + 1}`, text: false, missing: input.missing }));
}

/** A cell as the value of a field; undefined if the cell is not a valid value. */
function valueOf(cell, { text, missing }) {
  if (text) return cell;
  if (missing && /^(na|nan|null)?$/i.test(cell.trim())) return null;
  const value = numberOf(cell.trim());
  return Number.isFinite(value) ? value : undefined;
}

const instanceOf = (fields, values, byName) => {
  if (byName) return Object.fromEntries(fields.map(({ name }, i) => [name, values[i]]));
  return fields.length === 1 && fields[0].text ? values[0] : values;
};

/**
 * The rows of a CSV as inputs: {inputs, problems, left}. A header that names every field may list them in any order.
 * Without a header, a row has a cell for each field, and optionally one more at the end: its class. With a header, the
 * class is in the column label, class or target.
 */
export function tableOf(content, { fields, byName = false, names }) {
  const rows = rowsOf(content);
  const known = new Set(names);
  const head = rows[0] ?? [];
  const labelAt = head.findIndex((cell) => /^(label|class|target)$/i.test(cell));
  const places = fields.map(({ name }) => head.indexOf(name));
  const byHead = rows.length > 0 && places.every((place) => place >= 0);
  const textOnly = fields.every((field) => field.text);
  const header = byHead || labelAt >= 0 || (!textOnly && rows.length > 0 && fields.every((field, i) => field.text || valueOf(head[i] ?? "", { missing: false }) === undefined));
  const at = labelAt >= 0 ? labelAt : !byHead && head.length === fields.length + 1 ? fields.length : -1;
  const problems = [];
  const inputs = [];
  rows.slice(header ? 1 : 0).forEach((row, n) => {
    const line = n + 1 + (header ? 1 : 0);
    const label = at >= 0 ? row[at] : undefined;
    const cells = byHead ? places.map((place) => row[place]) : row.filter((_, i) => i !== at);
    const values = fields.map((field, i) => (cells[i] === undefined ? undefined : valueOf(cells[i], field)));
    const wrong = values.findIndex((value) => value === undefined);
    if (byHead ? row.length !== head.length : cells.length !== fields.length) problems.push(`line ${line}: ${row.length} cells; expected ${byHead ? head.length : `${fields.length}, or ${fields.length + 1} with the class`}`);
    else if (wrong >= 0) problems.push(`line ${line}: '${cells[wrong]}' is not a number`);
    else if (label !== undefined && !known.has(label)) problems.push(`line ${line}: '${label}' is not a class of the model`);
    else if (inputs.length < MOST_ROWS) inputs.push(own(`Row ${n + 1}`, instanceOf(fields, values, byName), { short: values.join(", ").slice(0, 80), ...(label === undefined ? {} : { label }) }));
  });
  return { inputs, problems, left: Math.max(0, rows.length - (header ? 1 : 0) - problems.length - inputs.length) };
}

/** One row, with a labelled field for each column. start: the instance with the initial values. */
export function Row({ fields, byName, start, add }) {
  const [cells, setCells] = useState(() => (start ? Object.fromEntries(fields.map(({ name }, i) => [name, String((byName ? start[name] : start[i]) ?? "")])) : {}));
  const [problem, setProblem] = useState("");
  const score = (event) => {
    event.preventDefault();
    const values = fields.map((field) => valueOf(cells[field.name] ?? "", field));
    const wrong = values.findIndex((value) => value === undefined);
    setProblem(wrong < 0 ? "" : `${fields[wrong].name}: expected a number${cells[fields[wrong].name] ? `, not '${cells[fields[wrong].name]}'` : ""}.`);
    if (wrong < 0) add([own("Your row", instanceOf(fields, values, byName), { short: values.join(", ").slice(0, 80) })]);
  };
  return html`<form class="row-form" aria-label="Your row" onSubmit=${score}>
    <div class="fields">${fields.map((field) => html`<label>${field.name}
      <input type="text" inputmode=${field.text ? "text" : "decimal"} value=${cells[field.name] ?? ""} placeholder=${field.missing ? "missing" : field.text ? "" : "number"} onInput=${(e) => setCells({ ...cells, [field.name]: e.target.value })} /></label>`)}</div>
    ${problem && html`<p class="wrong" role="alert">${problem}</p>`}
    <button>Score the row</button>
  </form>`;
}

/** Many rows at once, pasted, chosen or dropped; if they have classes, the page counts the errors. */
export function Table({ fields, byName, names, add }) {
  const [problems, setProblems] = useState([]);
  const [said, setSaid] = useState("");
  const [over, setOver] = useState(false);
  const text = fields.length === 1 && fields[0].text;
  const take = (content) => {
    const found = tableOf(content, { fields, byName, names });
    setProblems(found.problems);
    setSaid(found.inputs.length ? `Scored ${found.inputs.length} rows${found.left ? `; the other ${found.left} were left out` : ""}.` : "");
    if (found.inputs.length) add(found.inputs);
  };
  const read = async (file) => file && take(await file.text());
  const field = useRef();
  return html`<details class="csv"><summary>Many ${text ? "texts" : "rows"} from a CSV</summary>
    <div class=${`drop ${over ? "over" : ""}`} onDragOver=${(e) => { e.preventDefault(); setOver(true); }} onDragLeave=${() => setOver(false)}
      onDrop=${(e) => { e.preventDefault(); setOver(false); read(e.dataTransfer.files[0]); }}>
      <textarea rows="4" ref=${field} aria-label="Rows as CSV" spellcheck=${false}></textarea>
      <p class="line"><button type="button" onClick=${() => take(field.current.value)}>Score the rows</button>
        <label class="button">Choose a CSV<input class="sr" type="file" accept=".csv,.tsv,.txt,text/csv" onChange=${(e) => { read(e.target.files[0]); e.target.value = ""; }} /></label></p>
      <p class="quiet">${text ? "One text on each line" : byName ? html`A first line that names the columns ${fields.map(({ name }, i) => html`${i ? ", " : ""}<code>${name}</code>`)}` : `${fields.length} numbers on each line`}. Add the true class at the end of each line, or in a column <code>label</code>, and the page counts the errors.</p></div>
    ${problems.length > 0 && html`<div class="note" role="alert"><p>${problems.length} ${problems.length === 1 ? "line was" : "lines were"} left out:</p><ul>${problems.slice(0, 5).map((p) => html`<li>${p}</li>`)}</ul></div>`}
    ${said && html`<p class="quiet" role="status">${said}</p>`}</details>`;
}
