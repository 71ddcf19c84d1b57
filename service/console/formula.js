// The adjustment z = f/T + tau·(log rho - log sigma), as in service/contract/adjustment.py; a test compares the two.

const LOG_ZERO = -1e30;
const TINY = 1.1754944e-38;

/** log of a vector of counts or probabilities, normalised; zeros become a finite -1e30. */
export function logNormalised(values) {
  const sum = values.reduce((a, b) => a + b, 0);
  return values.map((v) => (v > 0 ? Math.log(v / sum) : LOG_ZERO));
}

/** log sigma of a model from its training counts: sigma ∝ pi^(1 - loss_tau). Null when the counts are unknown. */
export function logSource(counts, lossTau, classes) {
  if (lossTau === 1) return new Array(classes).fill(-Math.log(classes));
  if (!counts) return null;
  const logPi = logNormalised(counts).map((v) => (1 - lossTau) * v);
  const shift = Math.log(logPi.reduce((a, v) => a + Math.exp(v), 0));
  return logPi.map((v) => v - shift);
}

/** The largest and the least of numbers; a call with a million arguments would overflow the stack. */
export const largest = (values) => values.reduce((a, b) => Math.max(a, b), -Infinity);
export const smallest = (values) => values.reduce((a, b) => Math.min(a, b), Infinity);

/** The source prior measured on validation, less the bias. The service adjusts with it if the model has an estimation block. */
export function measuredSource(block) {
  const logSigma = block.source_prior.map((p, i) => Math.log(p) - block.bias[i]);
  const most = largest(logSigma);
  const shift = most + Math.log(logSigma.reduce((a, v) => a + Math.exp(v - most), 0));
  return logSigma.map((v) => v - shift);
}

/** Logits (up to a constant) from the probabilities that the service gives at tau = 0. */
export const logitsOf = (probabilities) => probabilities.map((p) => Math.log(Math.max(p, TINY)));

/** Probabilities after the adjustment. */
export function adjusted(logits, logSigma, logRho, tau) {
  const z = new Array(logits.length);
  let top = -Infinity;
  for (let i = 0; i < logits.length; i++) {
    z[i] = tau === 0 ? logits[i] : logits[i] + tau * (logRho[i] - logSigma[i]);
    if (z[i] > top) top = z[i];
  }
  let sum = 0;
  for (let i = 0; i < z.length; i++) sum += z[i] = Math.exp(z[i] - top);
  for (let i = 0; i < z.length; i++) z[i] /= sum;
  return z;
}

/** Index of the largest value; ties go to the lower index, as in the service. */
export function argmax(values) {
  let best = 0;
  for (let i = 1; i < values.length; i++) if (values[i] > values[best]) best = i;
  return best;
}

/** Where turning the dial changes the answer: [{tau, from, to}] on 0 … maxTau. This is exact, since the answer is an upper envelope of lines. */
export function flips(logits, logSigma, logRho, maxTau) {
  const found = [];
  let at = argmax(logits);
  let tau = 0;
  for (let guard = 0; guard < 50; guard++) {
    let next = Infinity;
    let to = -1;
    const slope = logRho[at] - logSigma[at];
    for (let i = 0; i < logits.length; i++) {
      const steeper = logRho[i] - logSigma[i] - slope;
      if (steeper <= 0) continue;
      const crossing = Math.max(tau, (logits[at] - logits[i]) / steeper);
      if (crossing < next || (crossing === next && steeper > logRho[to] - logSigma[to] - slope)) {
        next = crossing;
        to = i;
      }
    }
    if (to < 0 || next > maxTau) return found;
    found.push({ tau: next, from: at, to });
    at = to;
    tau = next;
  }
  return found;
}

/** The group of a class by its training examples: many (> 100), medium (20 … 100) or few (< 20); unknown without a count. */
export function groupOf(count) {
  if (count === null || count === undefined) return "unknown";
  return count > 100 ? "many" : count >= 20 ? "medium" : "few";
}

/**
 * The decision with the lowest expected cost, as in service/contract/members/costs.py: {index, cost}; index null: rejected.
 * costs: the member `costs` of a prior. L[y][k] is the cost of deciding k if y is true.
 */
export function decide(probabilities, costs, names) {
  const missed = names.map((name, y) => (Array.isArray(costs.miss) ? costs.miss[y] : costs.miss?.[name]) ?? 1);
  let expected;
  if (costs.matrix) expected = names.map((_, k) => probabilities.reduce((sum, p, y) => sum + p * costs.matrix[y][k], 0));
  else {
    const all = probabilities.reduce((sum, p, y) => sum + p * missed[y], 0);
    expected = probabilities.map((p, k) => all - p * missed[k]);
    const places = costs.pairs?.length ? new Map(names.map((name, i) => [name, i])) : null;
    for (const [truth, decided, cost] of costs.pairs ?? []) {
      const y = places.get(truth);
      expected[places.get(decided)] += probabilities[y] * (cost - missed[y]);
    }
  }
  let best = 0;
  for (let k = 1; k < expected.length; k++) if (expected[k] < expected[best]) best = k;
  const rejected = costs.reject !== null && costs.reject !== undefined && costs.reject < expected[best];
  return rejected ? { index: null, cost: costs.reject } : { index: best, cost: Math.max(0, expected[best]) };
}
