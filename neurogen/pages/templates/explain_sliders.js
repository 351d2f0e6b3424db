// What top-k and top-p keep of one row of logits at a temperature. Knows no page.

// The logits of a step, the largest first: all that are finite, or the largest alone, which a histogram then follows.
function logitsOf(step) {
  if (step.values === null) return step.logits.map(([, , logit]) => logit);
  const bytes = Uint8Array.from(atob(step.values), (character) => character.charCodeAt(0));
  return new Float32Array(bytes.buffer);
}

// {count, mass, probabilities}: how many tokens are kept, their share of the mass, and the probabilities of the largest.
// settings: temperature, k (0 keeps all), p (1 keeps all); order: "k" and "p" as the sampler applies them.
function keptOf(step, settings, order) {
  const { temperature, k, p } = settings;
  const logits = logitsOf(step);
  if (temperature === 0) return { count: 1, mass: null, probabilities: Array.from(logits, (_, i) => (i === 0 ? 1 : 0)) };
  const top = logits.length ? logits[0] : 0;
  const weight = (logit) => Math.exp((logit - top) / temperature);
  const runs = Array.from(logits, (logit) => [1, weight(logit)]);
  if (step.values === null) runs.push(...step.tail.map(([count, logit]) => [count, weight(logit)]));
  const massOf = (some) => some.reduce((sum, [count, w]) => sum + count * w, 0);
  let left = runs;
  for (const name of order) {
    if (name === "k" && k > 0) left = largest(left, k);
    if (name === "p" && p < 1) left = nucleus(left, p * massOf(left));
  }
  const mass = massOf(left);
  const probabilities = Array.from(logits, (_, i) => (i < left.length && left[i][0] ? left[i][1] / mass : 0));
  return { count: left.reduce((sum, [count]) => sum + count, 0), mass: mass / massOf(runs), probabilities };
}

function largest(runs, k) {
  let left = k;
  return runs.map(([count, w]) => {
    const taken = Math.min(count, left);
    left -= taken;
    return [taken, w];
  });
}

// The shortest prefix whose mass reaches `wanted`, the token that crosses it included.
function nucleus(runs, wanted) {
  let reached = 0;
  return runs.map(([count, w]) => {
    if (reached >= wanted) return [0, w];
    const taken = w > 0 ? Math.min(count, Math.ceil((wanted - reached) / w)) : count;
    reached += taken * w;
    return [taken, w];
  });
}
