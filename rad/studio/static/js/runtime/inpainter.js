/** Fills images of any size with an exported model, as rad.inpainting.Inpainter. */

import { Canvas, extended, layOut } from "./canvas.js";
import { planRun } from "./methods.js";
import { KeyedNoise } from "./noise.js";
import { sample } from "./sampler.js";
import { nextWave } from "./windows.js";

/** Most results of an image in one run. */
export const MOST_SAMPLES = 16;

/**
 * A run that is ready to start.
 * @typedef {object} Prepared
 * @property {import("./methods.js").Plan} plan
 * @property {import("./canvas.js").Picture} picture with the new pixels of `extend`
 * @property {import("./canvas.js").Hole} hole
 * @property {import("./canvas.js").Layout} layout
 * @property {Canvas[]} canvases one for each sample
 * @property {object} settings all values, presets included
 * @property {boolean} hasMask false: only the new pixels of `extend` are filled
 * @property {number} planned network calls, counted for each window
 */

/** Settings of a request that this runtime reads, with their defaults. */
const DEFAULTS = {
  seed: 0,
  num_samples: 1,
  size_policy: "crop",
  margin: null,
  batch_size: 8,
  extend: null,
  soft_mask: false,
};

const RANGES = [["num_samples", 1, MOST_SAMPLES], ["batch_size", 1, 64], ["seed", 0, Number.MAX_SAFE_INTEGER]];

/**
 * Check the settings, and plan the windows. Throws an Error before any network call.
 * @param {object} model runtime.json
 * @param {import("./canvas.js").Picture} picture
 * @param {import("./canvas.js").Hole|null} hole null: only the new pixels of `extend` are filled
 * @param {object} settings as the fields of POST /v1/inpaint
 * @param {{name: string, pace: number|null}} context name: of the image's file, the identity of its noise; pace: see `paceOf`,
 *   for `budget_seconds`
 * @returns {Prepared}
 */
export function prepare(model, picture, hole, settings, { name, pace = null }) {
  const given = Object.fromEntries(Object.entries(settings).filter(([, value]) => value != null && value !== ""));
  const options = { ...DEFAULTS, ...given };
  for (const [field, low, high] of RANGES) {
    options[field] = Number(options[field]);
    if (!Number.isInteger(options[field]) || options[field] < low || options[field] > high) {
      throw new Error(`${field} is ${given[field]}; give a whole number from ${low} to ${high}`);
    }
  }
  options.soft_mask = options.soft_mask === true || options.soft_mask === "true";
  if (options.margin !== null) options.margin = Number(options.margin);
  const extension = extensionOf(options.extend);
  if (!hole && !extension) throw new Error("there is no mask: paint over the part to fill, or extend the image");
  const hasMask = !extension || Boolean(hole?.data.some((value) => value > 0));
  hole ??= { width: picture.width, height: picture.height, data: new Float32Array(picture.width * picture.height) };
  if (extension) ({ picture, hole } = extended(picture, hole, extension));
  const layout = layOut(picture, hole, { size: model.size, policy: options.size_policy, margin: options.margin });
  if (options.budget_seconds != null && pace) {
    const windows = Math.max(1, layout.windows.length * options.num_samples);
    options.budget_nfe = Math.floor(Number(options.budget_seconds) / (pace * windows));
  }
  const plan = planRun(model, options);
  const canvases = Array.from({ length: options.num_samples }, (_, number) => new Canvas(name, number, layout));
  const planned = plan.nfe * layout.windows.length * options.num_samples;
  return { plan, picture, hole, layout, canvases, hasMask, settings: { ...options, extend: extension }, planned };
}

/**
 * Seconds of a network call for one window, measured in the middle one of three.
 * @param {import("./network.js").Network} network @param {[number, number]} size of a window
 */
export async function paceOf(network, size) {
  const shape = { count: 1, channels: 3, pixels: size[0] * size[1] };
  const one = () => new Float64Array(1).fill(0.5);
  const now = { levels: 1, alpha: one(), sigma: one(), timesteps: one(), index: null };
  const seconds = [];
  for (let i = 0; i < 3; i++) {
    const began = performance.now();
    await network.estimate(new Float32Array(3 * shape.pixels), now, shape, size);
    seconds.push((performance.now() - began) / 1000);
  }
  return seconds.sort((one, other) => one - other)[1];
}

/** New pixels at the left, top, right and bottom, or null for none. */
function extensionOf(extend) {
  if (extend === null) return null;
  const sides = (typeof extend === "string" ? extend.split(",") : extend).map(Number);
  if (sides.length !== 4 || !sides.every((side) => Number.isInteger(side) && side >= 0 && side <= 2 ** 16)) {
    throw new Error(`extend is ${extend}; give four whole numbers from 0 to 65536: left, top, right, bottom`);
  }
  return sides.some((side) => side > 0) ? sides : null;
}

/**
 * Fill all windows of all samples, wave by wave.
 * @param {import("./network.js").Network} network
 * @param {Prepared} run
 * @param {(done: number, batch: Batch) => Promise<void>} onCall called after each network call with the calls so far, counted
 *   for each window; an Error that it throws ends the run
 * @returns {Promise<import("./canvas.js").Picture[]>} the filled images; known pixels are exact
 *
 * @typedef {object} Batch the windows of a network call: jobs, and the estimate x0 of each
 * @property {{canvas: Canvas, window: import("./windows.js").Window, x0: Float32Array}[]} jobs
 */
export async function fill(network, run, onCall) {
  const { canvases, plan, settings } = run;
  let done = 0;
  while (canvases.some((canvas) => canvas.windows.length)) {
    const jobs = canvases.flatMap((canvas) =>
      canvas.windows.length
        ? nextWave(canvas.unknown, canvas.layout.width, canvas.windows).map((window) => ({ canvas, window }))
        : [],
    );
    for (let start = 0; start < jobs.length; start += settings.batch_size) {
      const batch = jobs.slice(start, start + settings.batch_size);
      const outputs = await fillBatch(network, plan, batch, settings.seed, (x0) => {
        done += batch.length;
        return onCall(done, { jobs: batch.map((job, row) => ({ ...job, x0: rowOf(x0, row, batch.length) })) });
      });
      batch.forEach(({ canvas, window }, row) => canvas.paste(window, rowOf(outputs, row, batch.length)));
    }
  }
  return canvases.map((canvas) => canvas.composite(run.picture, run.hole));
}

async function fillBatch(network, plan, batch, seed, onCall) {
  const cuts = batch.map(({ canvas, window }) => canvas.cut(window));
  const names = batch.map(({ canvas, window }) => canvas.jobName(window));
  const { window } = batch[0].window;
  const input = {
    image: joined(cuts.map(({ pixels }) => pixels)),
    hole: joined(cuts.map(({ hole }) => hole)),
    count: batch.length,
    size: [window.bottom - window.top, window.right - window.left],
    noise: new KeyedNoise(seed, names, batch.map(({ canvas }) => canvas.sample)),
  };
  return sample(network, plan, input, onCall);
}

function rowOf(values, row, count) {
  const size = values.length / count;
  return values.subarray(row * size, (row + 1) * size);
}

function joined(rows) {
  const values = new Float32Array(rows.length * rows[0].length);
  rows.forEach((row, number) => values.set(row, number * row.length));
  return values;
}
