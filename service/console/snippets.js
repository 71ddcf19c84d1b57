// Writes the page's requests as curl commands and Python programs.

import { html } from "./vendor/preact.js";
import { key } from "./api.js";
import { Copy } from "./widgets.js";

const origin = () => location.origin + location.pathname.replace(/\/$/, "");

/** A text in quotes for a POSIX shell. */
const quoted = (text) => `'${String(text).replaceAll("'", `'\\''`)}'`;

/** A JSON value as a Python literal. */
export function pythonic(value) {
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (Array.isArray(value)) return `[${value.map(pythonic).join(", ")}]`;
  if (typeof value === "object") return `{${Object.entries(value).map(([k, v]) => `${JSON.stringify(k)}: ${pythonic(v)}`).join(", ")}}`;
  return JSON.stringify(value);
}

/**
 * call: {method, path, query, json | file, type, headers}. file: the name of a file to send as the body, with the content type `type`.
 * A snippet never contains the key: it reads the key from PRIORDIAL_KEY.
 */
export function asCurl({ method, path, query = {}, json, file, type, headers = {} }) {
  const all = Object.entries(query).filter(([, v]) => v !== undefined && v !== null);
  const address = `${origin()}/${path}${all.length ? `?${new URLSearchParams(all)}` : ""}`;
  const parts = ["curl -sS"];
  if (method !== "GET" && !(method === "POST" && (json !== undefined || file))) parts.push(`-X ${method}`);
  parts.push(quoted(address));
  if (key.get()) parts.push(`-H "Authorization: Bearer $PRIORDIAL_KEY"`);
  for (const [name, value] of Object.entries(headers)) parts.push(`-H ${quoted(`${name}: ${value}`)}`);
  if (file) parts.push(`-H ${quoted(`Content-Type: ${type}`)}`, `--data-binary @${quoted(file)}`);
  if (json !== undefined) {
    parts.push(`-H 'Content-Type: application/json'`, `-d ${quoted(JSON.stringify(json))}`);
  }
  return parts.filter(Boolean).join(" \\\n  ");
}

export function asPython({ method, path, query = {}, json, file, type, headers = {} }) {
  const all = Object.fromEntries(Object.entries(query).filter(([, v]) => v !== undefined && v !== null));
  const sent = { ...headers, ...(file ? { "Content-Type": type } : {}) };
  let said = pythonic(sent);
  if (key.get()) said = `{**${said}, "Authorization": f"Bearer {os.environ['PRIORDIAL_KEY']}"}`;
  const lines = ["import httpx", ""];
  if (key.get()) lines.unshift("import os");
  lines.push("answer = httpx.request(", `    ${JSON.stringify(method)},`, `    ${JSON.stringify(`${origin()}/${path}`)},`);
  if (Object.keys(all).length) lines.push(`    params=${pythonic(all)},`);
  if (Object.keys(sent).length || key.get()) lines.push(`    headers=${said},`);
  if (file) lines.push(`    content=open(${JSON.stringify(file)}, "rb").read(),`);
  if (json !== undefined) lines.push(`    json=${pythonic(json)},`);
  lines.push(")", "answer.raise_for_status()", "print(answer.text)");
  return lines.join("\n");
}

export const CopyAs = ({ call, what = "this" }) => html`<span class="copies" role="group" aria-label=${`Copy ${what} as a program`}>
  <${Copy} label="Copy as curl" text=${() => asCurl(call())} />
  <${Copy} label="Copy as Python" text=${() => asPython(call())} />
</span>`;
