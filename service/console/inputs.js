// Where inputs come from: samples of the model, files, folders, the clipboard, a pen, texts, rows of a table.

import { html, useEffect, useRef, useState } from "./vendor/preact.js";
import { numberOf, rowsOf } from "./csv.js";

const bytesOf = (base64) => Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
let made = 0;

/** A sample of report.json as an input: {id, name, label, picture, instance}. Inputs of one's own have `own` set. */
export const fromSample = (sample, i) => ({
  id: `sample-${i}`,
  name: `Sample ${i + 1}`,
  label: sample.label,
  picture: sample.png && `data:image/png;base64,${sample.png}`,
  instance: sample.instance ?? { b64: sample.png },
  blob: sample.instance === undefined ? new Blob([bytesOf(sample.png)], { type: "image/png" }) : undefined,
  short: sample.instance !== undefined && !sample.png ? String(sample.instance).slice(0, 40) : "",
});

async function fromFile(file) {
  const picture = await new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => failed(reader.error);
    reader.readAsDataURL(file);
  });
  return { id: `own-${++made}`, own: true, name: file.name || "Pasted image", picture, instance: { b64: picture.split(",")[1] }, blob: file, file: file.name || "image.png" };
}

const own = (name, instance, more = {}) => ({ id: `own-${++made}`, own: true, name, instance, short: String(instance).slice(0, 40), ...more });

/** The ways to give an input of one's own, by the kind of the model's input. */
export function Sources({ input, samples, names, add }) {
  if (input.kind === "image") return html`<${Images} names=${names} add=${add} />`;
  if (input.kind === "text") return html`<${Words} add=${add} /><${Table} width=${1} text=${true} names=${names} add=${add} />`;
  const side = Math.sqrt(input.shape[1] ?? NaN);
  if (input.shape.length === 2 && Number.isInteger(side) && samples.some((s) => s.picture))
    return html`<${Pen} side=${side} most=${Math.max(...samples.flatMap((s) => s.instance))} add=${add} />`;
  return html`<${Numbers} shape=${input.shape} add=${add} />
    ${input.shape.length === 2 && input.shape[1] && html`<${Table} width=${input.shape[1]} text=${false} names=${names} add=${add} />`}`;
}

const MOST_ROWS = 500;

/**
 * Rows of a CSV as inputs: {inputs, problems, left}. A row has `width` cells, or one more: its class.
 * The class stands last, or under a header that is label, class or target. A header line is skipped.
 */
export function tableOf(content, { width, text, names }) {
  const rows = rowsOf(content);
  const known = new Set(names);
  const labelled = rows.length > 0 && rows[0].length === width + 1;
  const named = rows.length ? rows[0].findIndex((cell) => /^(label|class|target)$/i.test(cell)) : -1;
  const header = rows.length > 0 && (named >= 0 || (!text && rows[0].slice(0, width).every((cell) => Number.isNaN(numberOf(cell)))));
  const at = labelled ? (named >= 0 ? named : width) : -1;
  const problems = [];
  const inputs = [];
  rows.slice(header ? 1 : 0).forEach((row, n) => {
    const line = n + 1 + (header ? 1 : 0);
    const label = at >= 0 ? row[at] : undefined;
    const cells = row.filter((_, i) => i !== at);
    const values = text ? cells : cells.map(numberOf);
    if (cells.length !== width) problems.push(`line ${line}: ${row.length} cells; expected ${width}, or ${width + 1} with the class`);
    else if (!text && values.some(Number.isNaN)) problems.push(`line ${line}: '${cells[values.findIndex(Number.isNaN)]}' is not a number`);
    else if (label !== undefined && !known.has(label)) problems.push(`line ${line}: '${label}' is not a class of the model`);
    else if (inputs.length < MOST_ROWS) inputs.push(own(`Row ${n + 1}`, text ? values[0] : values, label === undefined ? {} : { label }));
  });
  return { inputs, problems, left: Math.max(0, rows.length - (header ? 1 : 0) - problems.length - inputs.length) };
}

/** Many rows at once, pasted, chosen or dropped; with classes beside them the page shows how good the answers are. */
function Table({ width, text, names, add }) {
  const [problems, setProblems] = useState([]);
  const [said, setSaid] = useState("");
  const [over, setOver] = useState(false);
  const take = (content) => {
    const found = tableOf(content, { width, text, names });
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
      <p class="quiet">${text ? "One text on each line" : `${width} numbers on each line`}; a class at the end lets the page count errors.</p></div>
    ${problems.length > 0 && html`<div class="note" role="alert"><p>${problems.length} ${problems.length === 1 ? "line was" : "lines were"} left out:</p><ul>${problems.slice(0, 5).map((p) => html`<li>${p}</li>`)}</ul></div>`}
    ${said && html`<p class="quiet" role="status">${said}</p>`}</details>`;
}

const TAKEN = ["image/png", "image/jpeg", "image/webp"];

function Images({ names, add }) {
  const [over, setOver] = useState(false);
  const [problem, setProblem] = useState("");
  const take = async (files) => {
    const all = [...files];
    const images = all.filter((f) => TAKEN.includes(f.type));
    const kept = images.slice(0, MOST_ROWS);
    setProblem(images.length < all.length ? "Only PNG, JPEG and WebP images are taken." : kept.length < images.length ? `Only the first ${MOST_ROWS} images are taken.` : "");
    const labelOf = (file) => file.webkitRelativePath.split("/").slice(-2, -1)[0];
    const made = await Promise.all(kept.map(async (file) => ({ ...(await fromFile(file)), ...(names.includes(labelOf(file)) ? { label: labelOf(file) } : {}) })));
    if (made.length) add(made);
  };
  useEffect(() => {
    const pasted = (event) => event.clipboardData?.files.length && take(event.clipboardData.files);
    addEventListener("paste", pasted);
    return () => removeEventListener("paste", pasted);
  });
  return html`<div class=${`drop ${over ? "over" : ""}`} onDragOver=${(e) => { e.preventDefault(); setOver(true); }} onDragLeave=${() => setOver(false)}
      onDrop=${(e) => { e.preventDefault(); setOver(false); take(e.dataTransfer.files); }}>
    <label class="button">Choose images<input class="sr" type="file" accept=${TAKEN.join()} multiple onChange=${(e) => { take(e.target.files); e.target.value = ""; }} /></label>
    <label class="button">Choose a folder<input class="sr" type="file" webkitdirectory=${true} onChange=${(e) => { take(e.target.files); e.target.value = ""; }} /></label>
    <span class="quiet">or drop images here, or paste them. In a folder for each class, images are labelled by it.</span>
    ${problem && html`<p class="wrong" role="alert">${problem}</p>`}
  </div>`;
}

function Words({ add }) {
  const [text, setText] = useState("");
  return html`<form onSubmit=${(e) => { e.preventDefault(); if (text) add([own("Own text", text)]); }}>
    <label for="own-text">Own text</label>
    <textarea id="own-text" rows="4" value=${text} onInput=${(e) => setText(e.target.value)}></textarea>
    <button disabled=${!text}>Score it</button>
  </form>`;
}

function Numbers({ shape, add }) {
  const [text, setText] = useState("");
  const [problem, setProblem] = useState("");
  const score = (event) => {
    event.preventDefault();
    try {
      const value = JSON.parse(text);
      if (!Array.isArray(value)) throw new Error();
      setProblem("");
      add([own("Own numbers", value)]);
    } catch {
      setProblem("That is not a JSON array.");
    }
  };
  return html`<form onSubmit=${score}>
    <label for="own-numbers">Own numbers, a JSON array of shape [${shape.slice(1).map((n) => n ?? "any").join(", ")}]</label>
    <textarea id="own-numbers" rows="3" value=${text} onInput=${(e) => setText(e.target.value)} placeholder=${example(shape.slice(1))} spellcheck=${false}></textarea>
    ${problem && html`<p class="wrong" role="alert">${problem}</p>`}
    <button disabled=${!text}>Score them</button>
  </form>`;
}

/** Numbers of a shape, the first few of each axis. */
function example(shape) {
  if (!shape.length) return "0.5";
  const [n, ...rest] = shape;
  const shown = Math.min(n ?? 2, rest.length ? 2 : 4);
  return `[${Array(shown).fill(example(rest)).join(", ")}${shown < (n ?? 2) ? ", …" : ""}]`;
}

const PAD = 256;

/** A pen for small grey pictures: what is drawn is cut out, centred and averaged into side × side cells of 0 … most. */
function Pen({ side, most, add }) {
  const canvas = useRef();
  const [drawn, setDrawn] = useState(false);
  const last = useRef(null);
  const at = (event) => {
    const box = canvas.current.getBoundingClientRect();
    return [((event.clientX - box.left) * PAD) / box.width, ((event.clientY - box.top) * PAD) / box.height];
  };
  const draw = (event) => {
    if (!last.current) return;
    const pen = canvas.current.getContext("2d");
    const [x, y] = at(event);
    pen.strokeStyle = "#fff";
    pen.lineWidth = PAD / 10;
    pen.lineCap = pen.lineJoin = "round";
    pen.beginPath();
    pen.moveTo(...last.current);
    pen.lineTo(x, y);
    pen.stroke();
    last.current = [x, y];
  };
  const begin = (event) => {
    canvas.current.setPointerCapture(event.pointerId);
    last.current = at(event);
    draw(event);
    setDrawn(true);
  };
  const end = () => {
    if (!last.current) return;
    last.current = null;
    const cells = averaged(canvas.current, side);
    if (cells) add([own("Drawing", cells.map((c) => Math.round(c * most)), { picture: pictureOf(cells, side), id: "drawing" })]);
  };
  const clear = () => {
    canvas.current.getContext("2d").clearRect(0, 0, PAD, PAD);
    setDrawn(false);
  };
  return html`<div class="pen">
    <canvas ref=${canvas} width=${PAD} height=${PAD} role="img" aria-label="A pad to draw on with a mouse, a pen or a finger"
      onPointerDown=${begin} onPointerMove=${draw} onPointerUp=${end} onPointerCancel=${end}></canvas>
    <p class="line"><span class="quiet">Draw here</span><button class="small" disabled=${!drawn} onClick=${clear}>Clear</button></p>
  </div>`;
}

/** [side²] shares of ink, after cutting out what is drawn and fitting it into the square; null for a blank pad. */
function averaged(canvas, side) {
  const { data } = canvas.getContext("2d").getImageData(0, 0, PAD, PAD);
  let [left, top, right, bottom] = [PAD, PAD, -1, -1];
  for (let y = 0; y < PAD; y++)
    for (let x = 0; x < PAD; x++)
      if (data[4 * (y * PAD + x) + 3] > 127) {
        left = Math.min(left, x);
        right = Math.max(right, x);
        top = Math.min(top, y);
        bottom = Math.max(bottom, y);
      }
  if (right < 0) return null;
  const size = Math.max(right - left, bottom - top) + 1;
  const [x0, y0] = [(left + right + 1 - size) / 2, (top + bottom + 1 - size) / 2];
  const cells = new Array(side * side).fill(0);
  const per = 8;
  for (let i = 0; i < side * per; i++)
    for (let j = 0; j < side * per; j++) {
      const x = Math.floor(x0 + ((j + 0.5) * size) / (side * per));
      const y = Math.floor(y0 + ((i + 0.5) * size) / (side * per));
      if (x >= 0 && y >= 0 && x < PAD && y < PAD && data[4 * (y * PAD + x) + 3] > 127) cells[Math.floor(i / per) * side + Math.floor(j / per)]++;
    }
  return cells.map((c) => c / (per * per));
}

function pictureOf(cells, side) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = side;
  const pen = canvas.getContext("2d");
  const image = pen.createImageData(side, side);
  cells.forEach((c, i) => image.data.set([255 * c, 255 * c, 255 * c, 255], 4 * i));
  pen.putImageData(image, 0, 0);
  return canvas.toDataURL();
}
