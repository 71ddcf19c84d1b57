// Comma-separated values: rows of cells, and weights by class.

/** Rows of cells. The separator is whichever of comma, semicolon and tab is most frequent in the first line; quotes as in RFC 4180. */
export function rowsOf(text) {
  const first = text.slice(0, text.search(/\r?\n|$/));
  const separator = [",", ";", "\t"].map((s) => [first.split(s).length, s]).sort((a, b) => b[0] - a[0])[0][1];
  const rows = [];
  let row = [];
  let cell = "";
  let quoted = false;
  const endCell = () => { row.push(cell.trim()); cell = ""; };
  const endRow = () => {
    endCell();
    if (row.length > 1 || row[0] !== "") rows.push(row);
    row = [];
  };
  for (let i = 0; i < text.length; i++) {
    const c = text[i];
    if (quoted) {
      if (c !== '"') cell += c;
      else if (text[i + 1] === '"') { cell += '"'; i++; }
      else quoted = false;
    } else if (c === '"' && cell.trim() === "") { quoted = true; cell = ""; }
    else if (c === separator) endCell();
    else if (c === "\n") endRow();
    else if (c !== "\r") cell += c;
  }
  endRow();
  return rows;
}

/** A cell as a number; NaN if it is not a number. */
export const numberOf = (cell) => (cell === undefined || cell === "" ? NaN : Number(cell));

/**
 * Weights by class: {values: {class: number}, problems: [text]}. A row is a class and a number, or a number alone,
 * one for each class in the model's order. A header line is skipped.
 */
export function weightsOf(text, names) {
  const rows = rowsOf(text);
  const known = new Set(names);
  const single = rows.length > 0 && rows.every((row) => row.length === 1);
  const header = rows.length > 0 && !known.has(rows[0][0]) && Number.isNaN(numberOf(rows[0][rows[0].length - 1]));
  const body = header ? rows.slice(1) : rows;
  const values = {};
  const problems = [];
  if (single && body.length !== names.length) return { values, problems: [`${body.length} numbers; the model has ${names.length} classes. Give a class and a number on each line, or one number for each class.`] };
  body.forEach((row, n) => {
    const line = n + 1 + (header ? 1 : 0);
    const name = single ? names[n] : row[0];
    const value = numberOf(row[single ? 0 : 1]);
    if (!known.has(name)) problems.push(`line ${line}: '${name}' is not a class of the model`);
    else if (!(value >= 0 && Number.isFinite(value))) problems.push(`line ${line}: '${row[single ? 0 : 1] ?? ""}' is not a number of at least 0`);
    else if (name in values) problems.push(`line ${line}: '${name}' comes twice`);
    else values[name] = value;
  });
  if (!body.length) problems.push("There are no rows. Put a class and a number on each line.");
  return { values, problems };
}
