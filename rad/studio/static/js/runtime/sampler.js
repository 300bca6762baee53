/** The reverse loop, equal to rad/sampling/sampler.py for RAD and for RePaint. */

import { CLEAN, regionsOf } from "./process.js";
import { denoised, multistep, noised, renoise, reverseStep } from "./solvers.js";

/**
 * Fill the holes of a batch.
 * @param {import("./network.js").Network} network
 * @param {import("./methods.js").Plan} plan
 * @param {object} batch
 * @param {Float32Array} batch.image (B,3,H,W) in [-1,1]
 * @param {Float32Array} batch.hole (B,H,W) in [0,1]
 * @param {number} batch.count B
 * @param {[number, number]} batch.size H, W
 * @param {import("./noise.js").KeyedNoise} batch.noise
 * @param {(x0: Float32Array) => Promise<void>} onCall called with the estimate of the clean images after each network call
 * @returns {Promise<Float32Array>} (B,3,H,W) in [-1,1], before known pixels are restored
 */
export async function sample(network, plan, { image, hole, count, size, noise }, onCall) {
  const shape = { count, channels: image.length / hole.length, pixels: size[0] * size[1] };
  const { channels, pixels } = shape;
  const spread = (values, at) => values[Math.floor(at / (channels * pixels)) * pixels + (at % pixels)];
  const known = image.map((value, at) => (spread(hole, at) === 1 ? 0 : value)); // methods cannot see the hole's content
  const regions = regionsOf(hole, count);
  let drawn = 0;
  const randn = () => noise.randn(drawn++, channels * pixels);
  const keepKnown = (x, level, t) => {
    const at = t === CLEAN ? known : noised(known, level, randn(), shape);
    return x.map((value, i) => lerp(at[i], value, spread(hole, i)));
  };

  const { timesteps, eta, solver, method } = plan;
  let now = plan.process.noise(timesteps[0], regions);
  let x = noised(known, now, randn(), shape);
  let before = null;
  for (let step = 0; step < timesteps.length - 1; step++) {
    const [t, tNext] = [timesteps[step], timesteps[step + 1]];
    const next = plan.process.noise(tNext, regions);
    if (tNext > t) {
      [x, now] = [renoise(x, now, next, randn(), shape), next];
      continue;
    }
    if (method.replaces) x = keepKnown(x, now, t);
    const estimate = await network.estimate(x, now, shape, size);
    const fresh = eta > 0 && tNext >= 0 ? randn() : null;
    const options = { before, eta: fresh ? eta : 0, noise: fresh }; // a step to the clean level is equal for every eta
    if (solver === "dpm++2m") {
      const stepped = multistep(x, estimate.x0, now, next, options, shape);
      [x, before] = [stepped.x, stepped.history];
    } else {
      x = reverseStep(x, estimate, now, next, options, shape);
    }
    if (method.replaces && tNext === CLEAN) x = keepKnown(x, next, tNext);
    now = next;
    await onCall(estimate.x0);
  }
  return x;
}

/** torch.lerp. */
function lerp(from, to, weight) {
  if (weight === 0) return from;
  if (weight === 1) return to;
  return weight < 0.5 ? from + weight * Math.fround(to - from) : to - Math.fround(to - from) * (1 - weight);
}

/**
 * The estimate of the clean image from a network's output.
 * @param {Float32Array} output (B,C,H,W) or, with a learned variance, (B,2C,H,W)
 */
export function estimateOf(x, output, now, shape, { prediction, clip, learned }) {
  const size = shape.channels * shape.pixels;
  const several = output.length / x.length;
  const half = (part) => {
    const values = new Float32Array(x.length);
    for (let row = 0; row < shape.count; row++) {
      const start = (row * several + part) * size;
      values.set(output.subarray(start, start + size), row * size);
    }
    return values;
  };
  const predicted = several === 1 ? output : half(0);
  const fraction = learned && several === 2 ? half(1).map((value) => Math.fround(value + 1) / 2) : null;
  return { x0: denoised(x, predicted, now, prediction, clip, shape), fraction };
}
