/** Timesteps of a sampler, equal to rad/diffusion/spacings.py. */

import { CLEAN } from "./process.js";

export const SPACINGS = ["even", "trailing", "quad", "logsnr", "official"];

/**
 * `count` timesteps from the noisiest downwards, then CLEAN.
 * @param {import("./process.js").Uniform|import("./process.js").RegionAware} process
 * @param {number} count 1 to process.sampledSteps
 * @param {string} spacing one of SPACINGS
 * @param {boolean} fractional whether timesteps may be fractions; otherwise they are rounded and duplicates are dropped
 * @returns {number[]}
 */
export function samplingTimesteps(process, count, spacing, fractional) {
  const total = process.sampledSteps;
  if (!Number.isInteger(count) || count < 1 || count > total) {
    throw new Error(`steps is ${count}; allowed are 1 to ${total}, the number of noise levels of this model`);
  }
  if (!SPACINGS.includes(spacing)) throw new Error(`spacing is ${spacing}; allowed are ${SPACINGS.join(", ")}`);
  if (spacing === "logsnr" && count > 1) {
    const inner = linspace(process.logSnr(total - 1), process.logSnr(0), count).slice(1, -1);
    const timesteps = [total - 1, ...inner.map((value) => process.timeOf(value)), 0];
    return [...(fractional ? timesteps : whole(timesteps)), CLEAN];
  }
  if (spacing === "trailing") {
    const at = (i) => Math.floor(total - (i * total) / count + 0.5) - 1;
    return [...Array.from({ length: count }, (_, i) => at(i)), CLEAN];
  }
  return spaced(total, count, spacing, fractional);
}

function spaced(total, count, spacing, fractional) {
  const first = spacing === "official" && count > 1 ? total - 10 : total - 1;
  if (count > first + 1) {
    throw new Error(`steps is ${count}; the official spacing allows 1 to ${first + 1}: use spacing 'even'`);
  }
  const power = spacing === "quad" ? 2 : 1;
  const at = (i) => (count > 1 ? first * (1 - i / (count - 1)) ** power : first);
  const timesteps = Array.from({ length: count }, (_, i) => at(i));
  return [...(spacing === "quad" && fractional ? timesteps : whole(timesteps)), CLEAN];
}

/** torch.linspace: the second half counts from the end. */
function linspace(first, last, count) {
  const step = (last - first) / (count - 1);
  return Array.from({ length: count }, (_, i) => (i < count >> 1 ? first + step * i : last - step * (count - 1 - i)));
}

/** Round half up and drop duplicates. */
function whole(timesteps) {
  return [...new Set(timesteps.map((t) => Math.floor(t + 0.5)))];
}

/**
 * RePaint's plan: from every `length`-th level, jump up by `length` levels and descend again, `visits` times in all.
 * @param {number[]} timesteps decreasing, then CLEAN
 * @param {{length: number, visits: number}} jumps
 * @returns {number[]}
 */
export function timeTravel(timesteps, { length, visits }) {
  const levels = timesteps.slice(0, -1).reverse();
  const budget = new Map();
  for (let j = 0; j < levels.length - length; j += length) budget.set(j, visits - 1);
  const path = [];
  for (let at = levels.length - 1; at >= 0; at--) {
    path.push(at);
    if (budget.get(at) > 0) {
      budget.set(at, budget.get(at) - 1);
      for (let j = at + 1; j <= at + length; j++) path.push(j);
      at += length;
    }
  }
  return [...path.map((j) => levels[j]), CLEAN];
}
