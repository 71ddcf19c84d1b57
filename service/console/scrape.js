// Reads Prometheus text as numbers, and computes rates and quantiles from two scrapes.

const LINE = /^([a-zA-Z_:][\w:]*)(?:\{((?:[^"}]|"(?:[^"\\]|\\.)*")*)\})?\s+(\S+)/;
const LABEL = /([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"/g;

/** [{name, labels, value}] of the sample lines of an exposition, without exemplars. */
export function parse(text) {
  const samples = [];
  for (const row of text.split("\n")) {
    const found = row[0] !== "#" && LINE.exec(row);
    if (!found) continue;
    const labels = {};
    for (const [, label, value] of (found[2] ?? "").matchAll(LABEL)) labels[label] = value.replace(/\\(.)/g, (_, c) => (c === "n" ? "\n" : c));
    samples.push({ name: found[1], labels, value: Number(found[3]) });
  }
  return samples;
}

/** The numbers of one scrape that the Traffic page shows for a model. Counters are totals since the start. */
export function reading(samples, model, at) {
  const found = {
    at, requests: 0, failed: 0, refused: 0, answered: 0, changed: 0, rejected: {}, queued: 0,
    classes: { adjusted: {}, unadjusted: {} }, groups: { adjusted: {}, unadjusted: {} }, buckets: {}, latency: { count: 0, sum: 0 },
    revisions: {}, divergences: {}, targets: {},
  };
  const scoring = ["/predict", "/models/{model}/predict", "/models/{model}/adjust", "/v2/models/{model}/infer"];
  for (const { name, labels, value } of samples) {
    if (labels.model !== undefined && labels.model !== model) continue;
    const add = (into, key) => { into[key] = (into[key] ?? 0) + value; };
    switch (name) {
      case "priordial_predictions_total": add(found.classes[labels.decision], labels.class); if (labels.decision === "adjusted") found.answered += value; break;
      case "priordial_group_predictions_total": add(found.groups[labels.decision], labels.group); break;
      case "priordial_decisions_changed_total": found.changed += value; break;
      case "priordial_requests_total":
        if (!scoring.includes(labels.route) && !labels.route.endsWith("/infer")) break;
        found.requests += value;
        if (labels.status >= "500") found.failed += value;
        else if (labels.status >= "400") found.refused += value;
        break;
      case "priordial_rejected_total": add(found.rejected, labels.reason); break;
      case "priordial_queued_rows": found.queued += value; break;
      case "priordial_request_seconds_bucket": if (scoring.includes(labels.route) || labels.route.endsWith("/infer")) add(found.buckets, labels.le); break;
      case "priordial_prior_revision": found.revisions[labels.prior] = value; break;
      case "priordial_target_prior": if (labels.prior === "default") found.targets[labels.class] = value; break;
      case "priordial_prior_divergence": found.divergences[labels.prior] = value; break;
    }
  }
  return found;
}

const MINUTE = 60;
export const SPAN = 15 * MINUTE;

/**
 * Append a reading. Keeps at most `most` readings, plus one per minute (`held`). Numbers by class, of which there may be
 * thousands, are dropped after a minute except in the held readings.
 */
export function keep(readings, next, most) {
  const mark = readings.findLast((r) => r.held);
  const held = !mark || next.at - mark.at >= MINUTE;
  const before = readings
    .filter((r, i) => readings.length - i < most || (r.held && r.at >= next.at - SPAN - MINUTE))
    .map((r) => ({ ...r, targets: {}, classes: r.at >= next.at - MINUTE || (r.held && r.at >= next.at - SPAN - MINUTE) ? r.classes : null }));
  return [...before, { ...next, held }];
}

/** The newest reading with numbers by class that is at least `seconds` older than the last one; else the oldest one with such numbers. */
export function readingBefore(readings, seconds) {
  const last = readings[readings.length - 1];
  const whole = readings.filter((r) => r.classes && r !== last);
  return whole.findLast((r) => r.at <= last.at - seconds) ?? whole[0];
}

/** b − a of counters. If the counter fell, a restart has reset it, and b is counted from 0. */
export const grown = (b, a) => (b >= a ? b - a : b);

/** `grown` for each key of two objects. */
export const grownBy = (b, a) => Object.fromEntries(Object.entries(b).map(([k, v]) => [k, grown(v, a?.[k] ?? 0)]));

/** The q-quantile, in seconds, of cumulative buckets {le: count}, interpolated linearly within a bucket; null if all are empty. */
export function quantile(buckets, q) {
  const edges = Object.entries(buckets).map(([le, n]) => [le === "+Inf" ? Infinity : Number(le), n]).sort((a, b) => a[0] - b[0]);
  const total = edges.length ? edges[edges.length - 1][1] : 0;
  if (!total) return null;
  let [before, below] = [0, 0];
  for (const [edge, n] of edges) {
    if (n >= q * total) return edge === Infinity ? before : before + ((edge - before) * (q * total - below)) / Math.max(n - below, 1e-9);
    [before, below] = [edge, n];
  }
  return before;
}
