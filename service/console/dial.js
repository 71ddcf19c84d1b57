// The dial: tau as an angle. The slider below it does the same for keyboards and screen readers.

import { html, useRef } from "./vendor/preact.js";

export const DIAL_MAX = 3;
const SWEEP = 270;
const SNAP = 0.035;

const angle = (tau) => (Math.min(tau, DIAL_MAX) / DIAL_MAX) * SWEEP - SWEEP / 2;
const point = (tau, radius) => {
  const a = ((angle(tau) - 90) * Math.PI) / 180;
  return [50 + radius * Math.cos(a), 50 + radius * Math.sin(a)];
};
const arc = (from, to, radius) => {
  const [x0, y0] = point(from, radius);
  const [x1, y1] = point(to, radius);
  return `M${x0} ${y0}A${radius} ${radius} 0 ${angle(to) - angle(from) > 180 ? 1 : 0} 1 ${x1} ${y1}`;
};

/** stops: [{tau, label}] to which the dial snaps; flips: [{tau}] at which the answer changes. */
export function Dial({ tau, setTau, stops, flips }) {
  const face = useRef();
  const turn = (event) => {
    const box = face.current.getBoundingClientRect();
    const dx = event.clientX - (box.left + box.width / 2);
    const dy = event.clientY - (box.top + box.height / 2);
    let degrees = (Math.atan2(dy, dx) * 180) / Math.PI + 90;
    if (degrees > 180) degrees -= 360;
    const raw = ((Math.max(-SWEEP / 2, Math.min(SWEEP / 2, degrees)) + SWEEP / 2) / SWEEP) * DIAL_MAX;
    const caught = [0, DIAL_MAX, ...stops.map((s) => s.tau)].find((stop) => Math.abs(stop - raw) < SNAP);
    setTau(caught ?? Math.round(raw * 100) / 100);
  };
  const grab = (event) => {
    event.currentTarget.setPointerCapture(event.pointerId);
    turn(event);
  };
  const [nx, ny] = point(tau, 31);
  return html`<div class="dial">
    <svg ref=${face} viewBox="0 0 100 92" aria-hidden="true" onPointerDown=${grab}
      onPointerMove=${(e) => e.currentTarget.hasPointerCapture(e.pointerId) && turn(e)}>
      <path class="track" d=${arc(0, DIAL_MAX, 40)} />
      ${tau > 0.004 && html`<path class="swept" d=${arc(0, Math.min(tau, DIAL_MAX), 40)} />`}
      ${[0, 1, 2, 3].map((t) => {
        const [x, y] = point(t, 29.5);
        return html`<text x=${x} y=${y + 2} class="mark">${t}</text>`;
      })}
      ${stops.map((s) => {
        const [x, y] = point(s.tau, 40);
        return html`<circle class="stop" cx=${x} cy=${y} r="1.7"><title>${s.label}</title></circle>`;
      })}
      ${flips.map((f) => {
        const [x0, y0] = point(f.tau, 43.6);
        const [x1, y1] = point(f.tau, 48);
        return html`<line class="flip" x1=${x0} y1=${y0} x2=${x1} y2=${y1} />`;
      })}
      <circle class="knob" cx=${point(tau, 40)[0]} cy=${point(tau, 40)[1]} r="5" />
      <text x="50" y="54" class="value">${tau.toFixed(2)}</text>
      <text x="50" y="66" class="unit">τ</text>
    </svg>
    <div class="dial-side">
      <label for="tau">τ: how much of the adjustment is applied</label>
      <div class="line tight">
        <input id="tau" type="range" min="0" max=${DIAL_MAX} step="0.01" value=${Math.min(tau, DIAL_MAX)} aria-valuetext=${`tau ${tau.toFixed(2)}`}
          onInput=${(e) => setTau(+e.target.value)} />
        <input type="number" min="0" max="10" step="0.05" value=${tau} aria-label="τ as a number"
          onInput=${(e) => e.target.value !== "" && e.target.validity.valid && setTau(+e.target.value)} />
      </div>
      <p class="stops">${stops.map(
        (s) => html`<button class="small" aria-pressed=${Math.abs(s.tau - tau) < 1e-9} onClick=${() => setTau(s.tau)}>${s.tau} <span class="quiet">${s.label}</span></button>`,
      )}</p>
    </div>
  </div>`;
}
