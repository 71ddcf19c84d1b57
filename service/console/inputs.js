// Forms for the user's own inputs: files, folders, the clipboard, a drawing, texts, rows of a table.

import { largest } from "./formula.js";
import { html, useEffect, useRef, useState } from "./vendor/preact.js";
import { fromFile, own } from "./instances.js";
import { MOST_FIELDS, MOST_ROWS, Row, Table, fieldsOf } from "./rows.js";

/** The ways to enter an own input, by the kind of the model's input. */
export function Sources({ bundle, samples, chosen, add }) {
  const { input, class_names: names } = bundle;
  if (input.kind === "image") return html`<${Images} names=${names} add=${add} />`;
  if (input.kind === "text") return html`<${Words} add=${add} /><${Table} fields=${[{ name: "text", text: true }]} names=${names} add=${add} />`;
  const side = Math.sqrt(input.shape[1] ?? NaN);
  if (input.shape.length === 2 && Number.isInteger(side) && samples.some((s) => s.picture))
    return html`<${Pen} side=${side} most=${largest(samples.flatMap((s) => s.instance))} add=${add} />`;
  const fields = fieldsOf(bundle);
  if (!fields) return html`<${Numbers} shape=${input.shape} add=${add} />`;
  return html`${fields.length <= MOST_FIELDS ? html`<${Row} key=${chosen?.id} fields=${fields} byName=${input.kind === "columns"} start=${chosen?.instance} add=${add} />` : html`<${Numbers} shape=${input.shape} add=${add} />`}
    <${Table} fields=${fields} byName=${input.kind === "columns"} names=${names} add=${add} />`;
}

const TAKEN = ["image/png", "image/jpeg", "image/webp"];

function Images({ names, add }) {
  const [over, setOver] = useState(false);
  const [problem, setProblem] = useState("");
  const take = async (files) => {
    const all = [...files];
    const images = all.filter((f) => TAKEN.includes(f.type));
    const kept = images.slice(0, MOST_ROWS);
    setProblem(images.length < all.length ? "Only PNG, JPEG and WebP images can be scored; the other files were left out." : kept.length < images.length ? `Only the first ${MOST_ROWS} images were taken; the others were left out.` : "");
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
    <span class="quiet">or drop or paste images here. In a folder with one subfolder for each class, the subfolder labels its images.</span>
    ${problem && html`<p class="wrong" role="alert">${problem}</p>`}
  </div>`;
}

function Words({ add }) {
  const [text, setText] = useState("");
  return html`<form onSubmit=${(e) => { e.preventDefault(); if (text) add([own("Your text", text)]); }}>
    <label for="own-text">Your text</label>
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
      add([own("Your numbers", value)]);
    } catch {
      setProblem("Expected a JSON array, such as [0.5, 1.2].");
    }
  };
  return html`<form onSubmit=${score}>
    <label for="own-numbers">Your numbers, as a JSON array of shape [${shape.slice(1).map((n) => n ?? "any").join(", ")}]</label>
    <textarea id="own-numbers" rows="3" value=${text} onInput=${(e) => setText(e.target.value)} placeholder=${example(shape.slice(1))} spellcheck=${false}></textarea>
    ${problem && html`<p class="wrong" role="alert">${problem}</p>`}
    <button disabled=${!text}>Score them</button>
  </form>`;
}

/** An example array of a shape, with the first few numbers of each axis. */
function example(shape) {
  if (!shape.length) return "0.5";
  const [n, ...rest] = shape;
  const shown = Math.min(n ?? 2, rest.length ? 2 : 4);
  return `[${Array(shown).fill(example(rest)).join(", ")}${shown < (n ?? 2) ? ", …" : ""}]`;
}

const PAD = 256;

/** A pen for small grey pictures: the drawing is cut out, centred and averaged into side × side cells of 0 … most. */
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
    if (cells) add([own("Your drawing", cells.map((c) => Math.round(c * most)), { picture: pictureOf(cells, side), id: "drawing" })]);
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

/** [side²] shares of ink, after the drawing is cut out and fitted into the square; null for a blank pad. */
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
