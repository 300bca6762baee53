/**
 * Noise processes x_t = a x0 + s e, equal to rad/diffusion/processes.py in double precision.
 *
 * RAD (arXiv 2412.09191), phase 1, which is all that sampling visits: abar_t = (1 - nu m)^G_t for a hole map m, with
 * G_t = log A_t / log(1 - nu), where 1 - nu is the last value of the DDPM schedule A_t.
 */

/** The t below 0: no noise anywhere. */
export const CLEAN = -1;

/**
 * The distinct values of the holes of a batch.
 * @typedef {object} Regions
 * @property {number} count B, images
 * @property {number} levels K, values for each image; rows with fewer values are padded with 1
 * @property {Float64Array} values (B * K), increasing, from 0 (known) to 1 (fill)
 * @property {Uint32Array} index (B * H * W), the value of each pixel
 */

/**
 * Noise levels of a batch: K for each image, and an index map from pixels to levels, or null for one level in an image.
 * @typedef {object} NoiseLevel
 * @property {number} levels K
 * @property {Float64Array} alpha (B * K)
 * @property {Float64Array} sigma (B * K)
 * @property {Float64Array} timesteps (B * K), the network's input
 * @property {Uint32Array|null} index (B * H * W)
 */

/**
 * @param {Float32Array} hole (B * H * W) in [0,1]
 * @param {number} count B
 * @returns {Regions}
 */
export function regionsOf(hole, count) {
  const pixels = hole.length / count;
  const distinct = Array.from({ length: count }, (_, row) =>
    [...new Set([0, 1, ...hole.subarray(row * pixels, (row + 1) * pixels)])].sort((one, other) => one - other),
  );
  const levels = Math.max(...distinct.map((values) => values.length));
  const values = new Float64Array(count * levels).fill(1);
  const index = new Uint32Array(hole.length);
  distinct.forEach((row, number) => {
    values.set(row, number * levels);
    const places = new Map(row.map((value, place) => [value, place]));
    for (let i = number * pixels; i < (number + 1) * pixels; i++) index[i] = places.get(hole[i]);
  });
  return { count, levels, values, index };
}

/**
 * tau with g(tau) = intensity, linear between points of the increasing `grid`.
 * @param {number} intensity
 * @param {Float64Array} grid
 */
export function fractionalTimestep(intensity, grid) {
  let [low, high] = [0, grid.length]; // the number of entries up to `intensity`, by bisection
  while (low < high) {
    const middle = (low + high) >> 1;
    if (grid[middle] <= intensity) low = middle + 1;
    else high = middle;
  }
  const below = Math.min(Math.max(low - 1, 0), grid.length - 2);
  const tau = below + (intensity - grid[below]) / (grid[below + 1] - grid[below]);
  return Math.min(Math.max(tau, 0), grid.length - 1);
}

/** A variance-preserving process for betas, the variance added by each step: a = sqrt(A_t), s = sqrt(1 - A_t). */
class VariancePreserving {
  /** @param {ArrayLike<number>} betas (T), in (0,1) */
  constructor(betas) {
    this.sampledSteps = betas.length;
    this.logA = new Float64Array(betas.length);
    let sum = 0;
    for (let t = 0; t < betas.length; t++) {
      sum += Math.log1p(-betas[t]);
      this.logA[t] = sum;
    }
    /** Noise intensity at integer tau: 0, 1 - A_0, 1 - A_1, ... */
    this.grid = Float64Array.from({ length: betas.length + 1 }, (_, j) => (j ? -Math.expm1(this.logA[j - 1]) : 0));
  }

  /** log A at t in [CLEAN, T - 1]. 1 - A is linear between whole numbers. */
  logAbar(t) {
    if (Number.isInteger(t)) return t === CLEAN ? 0 : this.logA[t];
    const below = Math.floor(t);
    const weight = t - below;
    const [low, high] = [this.grid[below + 1], this.grid[below + 2]];
    const between = weight < 0.5 ? low + weight * (high - low) : high - (high - low) * (1 - weight);
    return Math.log1p(-between);
  }

  /** The t where log(a / s) of the hole equals `logSnr`. */
  timeOf(logSnr) {
    return fractionalTimestep(1 / (1 + Math.exp(2 * logSnr)), this.grid) - 1;
  }

  /** log(a / s) of the hole at t. */
  logSnr(t) {
    const logAbar = this.logAbar(t);
    return Math.log(Math.exp(0.5 * logAbar) / Math.sqrt(-Math.expm1(logAbar)));
  }
}

/** One level for the whole image (DDPM, ADM). */
export class Uniform extends VariancePreserving {
  /** @param {number} t @param {Regions} regions @returns {NoiseLevel} */
  noise(t, regions) {
    const logAbar = this.logAbar(t);
    const all = (value) => new Float64Array(regions.count).fill(value);
    const [alpha, sigma] = [Math.exp(0.5 * logAbar), Math.sqrt(-Math.expm1(logAbar))];
    return { levels: 1, alpha: all(alpha), sigma: all(sigma), timesteps: all(Math.max(t, 0)), index: null };
  }
}

/** RAD's process, per pixel, from a hole map: 0 known, 1 fill, between: partial noise. */
export class RegionAware extends VariancePreserving {
  /**
   * @param {ArrayLike<number>} betas
   * @param {"official"|"adm"|"image"} timeOrigin see rad.diffusion.RegionAware
   */
  constructor(betas, timeOrigin) {
    super(betas);
    this.timeOrigin = timeOrigin;
  }

  /** @param {number} t in [CLEAN, T - 1] @param {Regions} regions @returns {NoiseLevel} */
  noise(t, { count, levels, values, index }) {
    const last = this.logA[this.sampledSteps - 1]; // log(1 - nu)
    const nu = -Math.expm1(last);
    const fraction = this.logAbar(t) / last; // G_t
    const logAbar = values.map((m) => fraction * (m === 1 ? last : Math.log1p(-nu * m)));
    const tau = logAbar.map((value) => fractionalTimestep(-Math.expm1(value), this.grid));
    return {
      levels,
      alpha: logAbar.map((value) => Math.exp(0.5 * value)),
      sigma: logAbar.map((value) => Math.sqrt(-Math.expm1(value))),
      timesteps: this.networkTimesteps(tau, count, levels),
      index,
    };
  }

  networkTimesteps(tau, count, levels) {
    if (this.timeOrigin === "official") return tau;
    const timesteps = tau.map((value) => Math.max(value - 1, 0));
    if (this.timeOrigin === "adm") return timesteps;
    for (let row = 0; row < count; row++) {
      const image = timesteps.subarray(row * levels, (row + 1) * levels);
      image.fill(Math.max(...image));
    }
    return timesteps;
  }
}
