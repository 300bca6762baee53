/**
 * Reverse and forward steps, equal to rad/diffusion/step.py and solvers.py: coefficients of each level in double precision,
 * images in float32 with one rounding for each operation.
 *
 * @typedef {import("./process.js").NoiseLevel} NoiseLevel
 * @typedef {object} Shape
 * @property {number} count B, images
 * @property {number} channels C
 * @property {number} pixels H * W
 */

const f32 = Math.fround;

/** Default spacing and eta of each solver. */
export const DEFAULTS = { ddpm: ["even", 1], ddim: ["even", 0], "dpm++2m": ["logsnr", 0] };

/** Spacings with slowly changing steps in log(a / s), which second order requires. */
const SMOOTH = ["logsnr", "quad"];

/**
 * Throws an Error for an unknown solver, or an eta or a spacing that the solver does not support.
 * @param {string} solver @param {number} eta @param {string} spacing
 */
export function checkSolver(solver, eta, spacing) {
  if (!(solver in DEFAULTS)) throw new Error(`solver is ${solver}; allowed are ${Object.keys(DEFAULTS).join(", ")}`);
  if (!(eta >= 0 && eta <= 1)) throw new Error(`eta is ${eta}; allowed are 0 (DDIM, no fresh noise) to 1 (DDPM)`);
  if (solver === "ddim" && eta !== 0) {
    throw new Error(`eta is ${eta}; solver 'ddim' allows 0: use eta 0, or solver 'ddpm'`);
  }
  if (solver === "dpm++2m" && eta !== 0 && eta !== 1) {
    throw new Error(`eta is ${eta}; solver 'dpm++2m' allows 0 (ODE) and 1 (SDE): use one of them, or solver 'ddpm'`);
  }
  if (solver === "dpm++2m" && !SMOOTH.includes(spacing)) {
    throw new Error(`spacing is ${spacing}; solver 'dpm++2m' needs 'logsnr' or 'quad': use one, or solver 'ddpm' or 'ddim'`);
  }
}

/**
 * Call `step(at, level)` for every value of a batch: its place in (B,C,H,W), and that of its level in (B * K).
 * @param {Shape} shape @param {NoiseLevel} noise @param {(at: number, level: number) => void} step
 */
function eachValue({ count, channels, pixels }, { levels, index }, step) {
  for (let row = 0; row < count; row++) {
    for (let channel = 0; channel < channels; channel++) {
      const start = (row * channels + channel) * pixels;
      for (let i = 0; i < pixels; i++) step(start + i, row * levels + (index ? index[row * pixels + i] : 0));
    }
  }
}

/** Values of each level: formula(a, s, a', s', level) for the step from `now` to `next`. */
function ofLevels(now, next, formula) {
  return now.alpha.map((a, k) => formula(a, now.sigma[k], next.alpha[k], next.sigma[k], k));
}

const unchanged = (now, next) => now.alpha.map((a, k) => a === next.alpha[k] && now.sigma[k] === next.sigma[k]);

/** Variance b of the forward step, and the posterior's b s'^2 / s^2; 0 for unchanged levels. */
function stepLevels(now, next) {
  const b = ofLevels(now, next, (a, s, aNext, sNext) => {
    const ratio = a / aNext;
    return a === aNext && s === sNext ? 0 : Math.max(s * s - (ratio * sNext) ** 2, 0);
  });
  return { b, posterior: b.map((value, k) => (value * next.sigma[k] ** 2) / (now.sigma[k] ** 2 || 1)) };
}

/**
 * The estimate of the clean image from the network's output at x, both (B,C,H,W).
 * @param {Float32Array} x @param {Float32Array} output @param {NoiseLevel} now
 * @param {"epsilon"|"v_prediction"|"sample"} prediction @param {boolean} clip to [-1,1]
 * @param {Shape} shape
 */
export function denoised(x, output, now, prediction, clip, shape) {
  const [alpha, sigma] = [Float32Array.from(now.alpha), Float32Array.from(now.sigma)];
  const x0 = new Float32Array(x.length);
  eachValue(shape, now, (at, k) => {
    const noise = f32(sigma[k] * output[at]);
    let value = output[at];
    if (prediction === "epsilon") value = f32(x[at] - noise) / alpha[k];
    else if (prediction === "v_prediction") value = f32(alpha[k] * x[at]) - noise;
    x0[at] = clip ? Math.min(Math.max(value, -1), 1) : value;
  });
  return x0;
}

/**
 * DDPM's, DDIM's and every step between (eta), from x at `now` to the less noisy `next`.
 * @param {Float32Array} x
 * @param {{x0: Float32Array, fraction: Float32Array|null}} estimate fraction: of the learned variance, in [0,1]
 * @param {NoiseLevel} now @param {NoiseLevel} next
 * @param {{eta: number, noise: Float32Array|null}} options noise: null for eta 0 or a step to the clean level
 * @param {Shape} shape
 */
export function reverseStep(x, { x0, fraction }, now, next, { eta, noise }, shape) {
  const levels = stepLevels(now, next);
  const deviation = levels.posterior.map((value) => eta * Math.sqrt(value));
  const onE = ofLevels(now, next, (a, s, aNext, sNext, k) => {
    return Math.sqrt(Math.max(sNext * sNext - deviation[k] ** 2, 0)) / (s || 1);
  });
  const onX0 = Float32Array.from(onE, (value, k) => next.alpha[k] - value * now.alpha[k]);
  const [onX, onNoise, same] = [Float32Array.from(onE), Float32Array.from(deviation), unchanged(now, next)];
  const learned = noise && fraction ? learnedDeviation(fraction, levels, next) : null;
  const stepped = new Float32Array(x.length);
  eachValue(shape, now, (at, k) => {
    let value = f32(f32(onX0[k] * x0[at]) + f32(onX[k] * x[at]));
    if (noise && eta > 0) {
      const width = learned ? (deviation[k] > 0 ? f32(eta * learned(at, k)) : 0) : onNoise[k];
      value += f32(width * noise[at]);
    }
    stepped[at] = same[k] ? x[at] : value;
  });
  return stepped;
}

/** The learned standard deviation (arXiv 2102.09672, eq. 15) of a value; the variances are clamped at 1e-20. */
function learnedDeviation(fraction, { b, posterior }, next) {
  const low = b.map((value, k) => Math.log(Math.max(next.sigma[k] > 0 ? posterior[k] : value / 2, 1e-20)));
  const span = Float32Array.from(b, (value, k) => Math.log(Math.max(value, 1e-20)) - low[k]);
  const base = Float32Array.from(low);
  return (at, k) => f32(Math.exp(f32(0.5 * f32(base[k] + f32(fraction[at] * span[k])))));
}

/**
 * A step of DPM-Solver++(2M) (arXiv 2211.01095) from x to the less noisy `next`, with the step lengths of each level.
 * @param {Float32Array} x @param {Float32Array} x0
 * @param {NoiseLevel} now @param {NoiseLevel} next
 * @param {{before: {x0: Float32Array, h: Float64Array}|null, eta: number, noise: Float32Array|null}} options
 *   before: the `history` of the previous step
 * @param {Shape} shape
 * @returns {{x: Float32Array, history: {x0: Float32Array, h: Float64Array}}}
 */
export function multistep(x, x0, now, next, { before, eta, noise }, shape) {
  const { h, ...each } = multistepWeights(now, next, before && before.h, eta);
  const [onX, onX0, onBefore, onNoise] = [each.x, each.x0, each.before, each.noise].map((row) => Float32Array.from(row));
  const same = unchanged(now, next);
  const stepped = new Float32Array(x.length);
  eachValue(shape, now, (at, k) => {
    let value = f32(f32(onX[k] * x[at]) + f32(onX0[k] * x0[at]));
    if (before) value = f32(value + f32(onBefore[k] * before.x0[at]));
    if (noise && eta) value += f32(onNoise[k] * noise[at]);
    stepped[at] = same[k] ? x[at] : value;
  });
  return { x: stepped, history: { x0, h } };
}

/** Coefficients of `multistep`, (B * K): for x, x0, the previous x0 and the noise; and h, the increase of log(a / s). */
export function multistepWeights(now, next, hBefore, eta) {
  const same = unchanged(now, next);
  const shrink = ofLevels(now, next, (a, s, aNext, sNext) => (a * sNext) / (aNext * (s || 1))); // exp(-h)
  const h = shrink.map((value, k) => (same[k] ? 0 : -Math.log(value)));
  const left = shrink.map((value) => (eta ? value * value : value));
  const onX0 = left.map((value, k) => next.alpha[k] * (1 - value));
  const extra = h.map((value, k) => (hBefore && hBefore[k] > 0 && Number.isFinite(value) ? value / (2 * hBefore[k]) : 0));
  return {
    x: shrink.map((value, k) => (next.sigma[k] / (now.sigma[k] || 1)) * (eta ? value : 1)),
    x0: onX0.map((value, k) => value * (1 + extra[k])),
    before: onX0.map((value, k) => -value * extra[k]),
    noise: left.map((value, k) => (eta ? next.sigma[k] * Math.sqrt(Math.max(1 - value, 0)) : 0)),
    h,
  };
}

/** A forward step from `now` to the noisier `next`: (a'/a) x + sqrt(s'^2 - (a'/a)^2 s^2) noise. */
export function renoise(x, now, next, noise, shape) {
  const ratio = ofLevels(now, next, (a, s, aNext) => aNext / a);
  const added = ratio.map((value, k) => Math.sqrt(Math.max(next.sigma[k] ** 2 - (value * now.sigma[k]) ** 2, 0)));
  const [onX, onNoise, same] = [Float32Array.from(ratio), Float32Array.from(added), unchanged(now, next)];
  const moved = new Float32Array(x.length);
  eachValue(shape, now, (at, k) => {
    moved[at] = same[k] ? x[at] : f32(onX[k] * x[at]) + f32(onNoise[k] * noise[at]);
  });
  return moved;
}

/** x = a x0 + s noise. */
export function noised(x0, level, noise, shape) {
  const [alpha, sigma] = [Float32Array.from(level.alpha), Float32Array.from(level.sigma)];
  const x = new Float32Array(x0.length);
  eachValue(shape, level, (at, k) => {
    x[at] = f32(alpha[k] * x0[at]) + f32(sigma[k] * noise[at]);
  });
  return x;
}
