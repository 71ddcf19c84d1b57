// A uPlot chart in the console's colours. It follows the theme and the width of its container, and has a text description.

import { html, useEffect, useRef, useState } from "./vendor/preact.js";
import uPlot from "./vendor/uplot.js";

/** The value of a colour that style.css defines. */
export const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

/** A number that changes with the theme. Use it as a dependency of code that draws on a canvas. */
export function useThemeTurn() {
  const [turn, setTurn] = useState(0);
  useEffect(() => {
    const changed = () => setTurn((n) => n + 1);
    const media = matchMedia("(prefers-color-scheme: dark)");
    const watcher = new MutationObserver(changed);
    media.addEventListener("change", changed);
    watcher.observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
    return () => {
      media.removeEventListener("change", changed);
      watcher.disconnect();
    };
  }, []);
  return turn;
}

const FONT = "12px system-ui, sans-serif";
const WHOLE_SECONDS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600];

function axis(more) {
  const grid = { stroke: colour("line"), width: 1 };
  return { stroke: colour("quiet"), font: FONT, labelFont: FONT, labelSize: 18, grid, ticks: { ...grid, size: 4 }, ...more };
}

/**
 * data: [x, y…] of uPlot. series: [{label, stroke (a colour's name), …}]. mark: an x to draw a line at; marks: [{x, stroke, label}], dashed lines; onPick(x): a click.
 * dots: [{x, y, stroke}], points of interest. x, y: {label, values(axis value) → text, range}. shape: what, when it changes, needs a new chart.
 */
export function Chart({ say, data, series, bands = [], x = {}, y = {}, mark, marks = [], dots = [], onPick, height = 220, shape = "" }) {
  const place = useRef();
  const plot = useRef();
  const latest = useRef({});
  latest.current = { mark, marks, dots, onPick };
  const turn = useThemeTurn();
  useEffect(() => {
    const text = (f) => (f ? (_, ticks) => ticks.map((v) => (v === null ? "" : f(v))) : undefined);
    const made = new uPlot(
      {
        width: place.current.clientWidth || 300,
        height,
        legend: { show: false },
        pxAlign: 0,
        bands: bands.map((b) => ({ ...b, fill: colour(b.fill) })),
        cursor: { points: { show: false }, drag: { x: false, y: false }, x: Boolean(onPick), y: false },
        scales: { x: { time: Boolean(x.time), range: x.range }, y: { range: y.range } },
        axes: [axis({ label: x.label, values: text(x.time ? clock : x.values), space: x.time ? 70 : 50, size: 34, incrs: x.time ? WHOLE_SECONDS : undefined }), axis({ label: y.label, values: text(y.values), size: y.size ?? 52 })],
        series: [{}, ...series.map((s) => ({ width: 2, points: { show: false }, ...s, stroke: colour(s.stroke), fill: s.fill && colour(s.fill) }))],
        hooks: {
          draw: [
            (u) => {
              for (const at of latest.current.marks) line(u, at.x, colour(at.stroke), [4, 4]);
              labels(u, latest.current.marks);
              if (latest.current.mark !== undefined) line(u, latest.current.mark, colour("ink"), []);
              for (const at of latest.current.dots) dot(u, at);
            },
          ],
        },
      },
      data,
      place.current,
    );
    plot.current = made;
    const resized = new ResizeObserver(([entry]) => {
      const width = Math.floor(entry.contentRect.width);
      if (width > 0 && width !== made.width) made.setSize({ width, height });
    });
    resized.observe(place.current);
    const clicked = () => made.cursor.left >= 0 && latest.current.onPick?.(made.posToVal(made.cursor.left, "x"));
    made.over.addEventListener("click", clicked);
    return () => {
      resized.disconnect();
      made.destroy();
    };
  }, [turn, shape, series.length]);
  useEffect(() => plot.current?.setData(data), [data]);
  useEffect(() => plot.current?.redraw(false), [mark, JSON.stringify(marks), JSON.stringify(dots)]);
  return html`<figure class="chart">
    <div ref=${place} role="img" aria-label=${say} class=${onPick ? "pickable" : ""}></div>
    ${series.length > 1 &&
    html`<figcaption aria-hidden="true">${series.filter((s) => !s.hidden).map((s) => html`<span><i class=${`key bg-${s.swatch ?? s.stroke} ${s.dash ? "dashed" : ""} ${s.swatch ? "area" : ""}`}></i>${s.label}</span>`)}</figcaption>`}
  </figure>`;
}

const clock = (seconds) => new Date(1000 * seconds).toLocaleTimeString("en-GB");

function line(u, at, stroke, dash) {
  const left = Math.round(u.valToPos(at, "x", true));
  if (left < u.bbox.left || left > u.bbox.left + u.bbox.width) return;
  const { ctx } = u;
  ctx.save();
  ctx.strokeStyle = stroke;
  ctx.lineWidth = devicePixelRatio * 1.5;
  ctx.setLineDash(dash.map((d) => d * devicePixelRatio));
  ctx.beginPath();
  ctx.moveTo(left, u.bbox.top);
  ctx.lineTo(left, u.bbox.top + u.bbox.height);
  ctx.stroke();
  ctx.restore();
}

/** The labels of marks, at the top of their lines. Where the whole label would cover another one or a newer line, the part
 * before its first comma is drawn; where that would too, nothing.
 */
export function labels(u, marks) {
  const { ctx } = u;
  ctx.save();
  ctx.font = `${11 * devicePixelRatio}px system-ui, sans-serif`;
  ctx.textAlign = "left";
  ctx.textBaseline = "top";
  let taken = u.bbox.left + u.bbox.width;
  for (const { x, label, stroke } of [...marks].sort((a, b) => b.x - a.x)) { // the newest are drawn first
    const at = u.valToPos(x, "x", true);
    if (!label || at < u.bbox.left || at > u.bbox.left + u.bbox.width) continue;
    for (const words of [label, label.split(",")[0]]) {
      const width = ctx.measureText(words).width + 8 * devicePixelRatio;
      const left = at + width <= taken ? at + 4 * devicePixelRatio : at - width;
      if (left < u.bbox.left || (left < at && at > taken)) continue;
      ctx.fillStyle = colour(stroke);
      ctx.fillText(words, left, u.bbox.top + 2 * devicePixelRatio);
      taken = Math.min(taken, left);
      break;
    }
    taken = Math.min(taken, at);
  }
  ctx.restore();
}

function dot(u, { x, y, stroke }) {
  const { ctx } = u;
  ctx.save();
  ctx.fillStyle = colour("surface");
  ctx.strokeStyle = colour(stroke);
  ctx.lineWidth = devicePixelRatio * 3;
  ctx.beginPath();
  ctx.arc(u.valToPos(x, "x", true), u.valToPos(y, "y", true), devicePixelRatio * 5, 0, 2 * Math.PI);
  ctx.fill();
  ctx.stroke();
  ctx.restore();
}

/** uPlot bars with several series side by side. index: this series; of: how many there are. */
export const bars = (index, of) => uPlot.paths.bars({ size: [0.8 / of, 60], align: of === 1 ? 0 : index === 0 ? -1 : 1 });
