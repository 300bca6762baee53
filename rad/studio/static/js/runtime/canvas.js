/**
 * Images during inpainting, equal to rad/inpainting/canvas: 8-bit inputs of any size, filled windows in float32, and the final
 * composite.
 *
 * @typedef {object} Picture an 8-bit RGB image
 * @property {number} width
 * @property {number} height
 * @property {Uint8Array} data (3, H, W)
 * @typedef {object} Hole
 * @property {number} width
 * @property {number} height
 * @property {Float32Array} data (H, W) in [0,1], 1 = fill
 */

import { areaPool, bicubic, maxPool } from "./resample.js";
import { eachRow, planWindows, roundToEven } from "./windows.js";

const f32 = Math.fround;

export const POLICIES = ["crop", "resize", "error"];

/** The 8-bit values in [-1,1]. */
const SIGNED = Float32Array.from({ length: 256 }, (_, value) => f32(f32(f32(value / 255) * 2) - 1));

/** A value in [-1,1] in 8 bits: clamped, rounded once, ties to even. */
const rounded = (value) => roundToEven(f32(Math.min(Math.max(f32(f32(value / 2) + 0.5), 0), 1) * 255));

/**
 * An image in working size.
 * @typedef {object} Layout
 * @property {number} width
 * @property {number} height
 * @property {Uint8Array|Float32Array} pixels (3, H, W), 8 bits, or in [-1,1] if the image was resized
 * @property {Float32Array} hole (H, W) in [0,1]
 * @property {Int32Array} slots (H, W), the number of each pixel of the hole; -1: known
 * @property {number} count of pixels in the hole
 * @property {import("./windows.js").Window[]} windows to fill
 * @property {boolean} resized
 */

/**
 * How an image meets a model's size.
 * @param {Picture} picture @param {Hole} hole
 * @param {{size: [number, number], policy: string, margin: number|null}} options size: (height, width) of the model
 * @returns {Layout}
 */
export function layOut(picture, hole, { size, policy, margin }) {
  if (!POLICIES.includes(policy)) throw new Error(`size_policy is ${policy}; allowed are ${POLICIES.join(", ")}`);
  const layout = policy === "crop" ? cropped(picture, hole, size, margin) : whole(picture, hole, size, policy);
  const slots = new Int32Array(layout.hole.length).fill(-1);
  let count = 0;
  layout.hole.forEach((value, at) => {
    if (value > 0) slots[at] = count++;
  });
  return { ...layout, slots, count };
}

/** Windows around each hole. A smaller image is padded; the outside is unknown too. */
function cropped(picture, hole, [height, width], margin) {
  const padded = { width: Math.max(hole.width, width), height: Math.max(hole.height, height) };
  const inside = pad({ ...hole, data: new Uint8Array(hole.data.map((value) => (value > 0 ? 1 : 0))) }, 1, padded, 0);
  const windows = planWindows(inside, padded.width, { size: height, margin: margin ?? height >> 3 });
  return { ...padded, pixels: pad(picture, 3, padded, 0), hole: pad(hole, 1, padded, 1), windows, resized: false };
}

/** One window for the whole image, which may be resized. */
function whole(picture, hole, [height, width], policy) {
  const resized = picture.width !== width || picture.height !== height;
  if (policy === "error" && resized) {
    throw new Error(
      `the image is ${picture.width}x${picture.height} and the model takes ${width}x${height}: ` +
        "use size_policy 'crop' (a window around each hole) or 'resize'",
    );
  }
  const small = { width, height };
  const pixels = resized ? areaPool(picture.data, picture, small, (value) => SIGNED[value]) : picture.data;
  const cells = resized ? maxPool(hole.data, hole, small) : hole.data;
  const box = { top: 0, left: 0, bottom: height, right: width };
  const windows = cells.some((value) => value > 0) ? [{ window: box, core: box }] : [];
  return { ...small, pixels, hole: cells, windows, resized };
}

/** Planes of `from` (C,H,W) at the top left of planes of size `to`, whose other values are `value`. */
function pad(from, channels, to, value) {
  if (from.width === to.width && from.height === to.height) return from.data;
  const padded = new from.data.constructor(channels * to.width * to.height).fill(value);
  for (let row = 0; row < channels * from.height; row++) {
    const y = Math.floor(row / from.height) * to.height + (row % from.height);
    padded.set(from.data.subarray(row * from.width, (row + 1) * from.width), y * to.width);
  }
  return padded;
}

/** One sample of an image, filled window by window. Memory: one byte for each pixel, and the filled pixels in float. */
export class Canvas {
  /**
   * @param {string} name @param {number} sample identity of the noise
   * @param {Layout} layout
   */
  constructor(name, sample, layout) {
    Object.assign(this, { name, sample, layout, windows: layout.windows });
    this.unknown = new Uint8Array(layout.hole.map((value) => (value > 0 ? 1 : 0)));
    this.filled = new Float32Array(3 * layout.count);
  }

  /** Identity of a window's noise; the name alone for a window that covers the image. */
  jobName({ window: { top, left, bottom, right } }) {
    const covers = bottom - top === this.layout.height && right - left === this.layout.width;
    return covers ? this.name : `${this.name}@${top},${left}`;
  }

  /** The value in [-1,1] of a pixel: its filling if it has one, otherwise the input. */
  value(channel, at) {
    const { slots, count, pixels, resized, width, height } = this.layout;
    if (slots[at] >= 0 && !this.unknown[at]) return this.filled[channel * count + slots[at]];
    const given = pixels[channel * width * height + at];
    return resized ? given : SIGNED[given];
  }

  /** The model's input: pixels (3,S,S) in [-1,1] with earlier fills, and the remaining hole (S,S). */
  cut({ window }) {
    const area = (window.bottom - window.top) * (window.right - window.left);
    const [pixels, hole] = [new Float32Array(3 * area), new Float32Array(area)];
    let to = 0;
    eachPixel(this.layout.width, window, (at) => {
      hole[to] = this.unknown[at] ? this.layout.hole[at] : 0;
      for (let channel = 0; channel < 3; channel++) pixels[channel * area + to] = this.value(channel, at);
      to++;
    });
    return { pixels, hole };
  }

  /** Keep the core of the model's output (3,S,S) in [-1,1], and forget the window. */
  paste(given, output) {
    const { slots, count } = this.layout;
    this.eachUnknown(given, (at, from, area) => {
      for (let channel = 0; channel < 3; channel++) this.filled[channel * count + slots[at]] = output[channel * area + from];
    });
    eachPixel(this.layout.width, given.core, (at) => (this.unknown[at] = 0));
    this.windows = this.windows.filter((each) => each !== given);
  }

  /** Call `visit(at, from, area)` for the unknown pixels of a window's core: places in the canvas and in an output of `area`. */
  eachUnknown({ window, core }, visit) {
    const { width } = this.layout;
    const side = window.right - window.left;
    const area = side * (window.bottom - window.top);
    eachPixel(width, core, (at) => {
      if (this.unknown[at]) visit(at, (Math.floor(at / width) - window.top) * side + (at % width) - window.left, area);
    });
  }

  /**
   * `picture` where the hole is 0, copied without arithmetic, and the filling elsewhere.
   * @param {Picture} picture @param {Hole} hole
   * @returns {Picture}
   */
  composite(picture, hole) {
    const { width, height } = picture;
    const data = new Uint8Array(picture.data);
    const large = this.layout.resized ? bicubic(this.working(), this.layout, picture) : null;
    for (let at = 0; at < width * height; at++) {
      if (hole.data[at] === 0) continue;
      const from = Math.floor(at / width) * this.layout.width + (at % width); // a padded canvas has longer rows
      for (let channel = 0; channel < 3; channel++) {
        const place = channel * width * height + at;
        data[place] = rounded(large ? large[place] : this.value(channel, from));
      }
    }
    return { width, height, data };
  }

  /** All values in working size, (3,H,W). */
  working() {
    const pixels = this.layout.width * this.layout.height;
    return Float32Array.from({ length: 3 * pixels }, (_, at) => this.value(Math.floor(at / pixels), at % pixels));
  }
}

/** Call `visit(at)` for each pixel of a box. */
function eachPixel(width, box, visit) {
  eachRow(width, box, (start, end) => {
    for (let at = start; at < end; at++) visit(at);
  });
}

/**
 * The image and its hole with new pixels at the borders, which are black and belong to the hole.
 * @param {Picture} picture @param {Hole} hole @param {[number, number, number, number]} extension left, top, right, bottom
 */
export function extended(picture, hole, [left, top, right, bottom]) {
  const size = { width: picture.width + left + right, height: picture.height + top + bottom };
  const larger = { picture: { ...size, data: new Uint8Array(3 * size.width * size.height) }, hole: null };
  larger.hole = { ...size, data: new Float32Array(size.width * size.height).fill(1) };
  for (const [from, to, channels] of [[picture, larger.picture, 3], [hole, larger.hole, 1]]) {
    for (let row = 0; row < channels * from.height; row++) {
      const y = Math.floor(row / from.height) * size.height + (row % from.height) + top;
      to.data.set(from.data.subarray(row * from.width, (row + 1) * from.width), y * size.width + left);
    }
  }
  return larger;
}
