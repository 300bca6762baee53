/** Image and mask files to exact 8-bit values. */

import { decodeAlphaPng } from "./transparent.js";

const EXACT = { premultiplyAlpha: "none", colorSpaceConversion: "none" };

/** Most pixels of an image: 50 megapixels. */
export const MOST_PIXELS = 5e7;

/**
 * Values of an image file as the browser decodes it, upright by its EXIF orientation, without colour management. Opaque images
 * are exact, and so are transparent PNG files with 8 bits.
 * @param {Blob} blob
 * @returns {Promise<{width: number, height: number, data: Uint8ClampedArray}>} RGBA
 */
async function decode(blob) {
  const bitmap = await createImageBitmap(blob, { ...EXACT, imageOrientation: "from-image" }).catch(() => {
    throw new Error("the browser cannot decode this image: save it as PNG or JPEG");
  });
  const { width, height } = bitmap;
  if (width * height > MOST_PIXELS) throw new Error(`the image has ${width}x${height} pixels; at most 50 megapixels are allowed`);
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const { data } = context.getImageData(0, 0, width, height);
  const exact = isOpaque(data) ? null : await decodeAlphaPng(blob);
  return exact?.width === width && exact.height === height ? exact : { width, height, data }; // EXIF may have turned it
}

function isOpaque(data) {
  for (let i = 3; i < data.length; i += 4) if (data[i] !== 255) return false;
  return true;
}

/**
 * The RGB values of an image file. Transparency is dropped.
 * @param {Blob} blob
 * @returns {Promise<import("./canvas.js").Picture>}
 */
export async function readPicture(blob) {
  const { width, height, data } = await decode(blob);
  const planes = new Uint8Array(3 * width * height);
  for (let i = 0; i < width * height; i++) {
    for (let channel = 0; channel < 3; channel++) planes[channel * width * height + i] = data[4 * i + channel];
  }
  return { width, height, data: planes };
}

/**
 * The hole of a mask of the editor: grey values, 255 = fill. Without `soft`, two values are black and white, and others are split at a half.
 * @param {Blob} blob @param {boolean} soft keep grey values: such pixels are filled in part
 * @returns {Promise<import("./canvas.js").Hole>}
 */
export async function readHole(blob, soft) {
  const { width, height, data } = await decode(blob);
  const white = channelOf(data, 0);
  const levels = levelsOf(white);
  const split = levels.length === 2 ? levels[1] : 128;
  return { width, height, data: new Float32Array(white).map((value) => (soft ? value / 255 : Number(value >= split))) };
}

const FEW_GREYS = 0.05;

/**
 * The mask in a file, by simple rules: transparency where it varies (opaque = fill), otherwise grey values (white = fill). Two
 * values are black and white. Greys are split at a half where they are few, and kept otherwise.
 * @param {Blob} blob
 * @returns {Promise<{width: number, height: number, values: Uint8Array, notes: string[], warnings: string[]}>}
 */
export async function readMask(blob) {
  const { width, height, data } = await decode(blob);
  const transparent = !isOpaque(data);
  const values = channelOf(data, transparent ? 3 : 0);
  if (!transparent && !isGrey(data)) {
    throw new Error("the mask has colours: this page reads masks in black and white, or with transparency");
  }
  const notes = transparent ? ["its opaque part is filled"] : [];
  const levels = levelsOf(values);
  if (levels.length === 1 && levels[0] !== 0 && levels[0] !== 255) {
    throw new Error(`the mask has one value, ${levels[0]} of 255, neither black nor white`);
  }
  const greys = values.reduce((count, value) => count + (value > 16 && value < 239 ? 1 : 0), 0) / values.length;
  if (levels.length === 2) values.forEach((value, i) => (values[i] = value === levels[1] ? 255 : 0));
  else if (greys <= FEW_GREYS) values.forEach((value, i) => (values[i] = value >= 128 ? 255 : 0));
  else notes.push("its grey values fill in part");
  if (levels.length > 2 && greys <= FEW_GREYS) notes.push("its few grey values are split at a half");
  const share = values.reduce((count, value) => count + (value > 0 ? 1 : 0), 0) / values.length;
  const warnings = share === 0 ? ["it is empty: nothing is filled"] : share === 1 ? ["it is full: the whole image is filled"] : [];
  return { width, height, values, notes, warnings };
}

/** One of the four channels of RGBA. */
function channelOf(data, channel) {
  const values = new Uint8Array(data.length / 4);
  for (let i = 0; i < values.length; i++) values[i] = data[4 * i + channel];
  return values;
}

/** The distinct values, sorted. */
function levelsOf(values) {
  const seen = new Uint8Array(256);
  for (const value of values) seen[value] = 1;
  return [...seen.keys()].filter((value) => seen[value]);
}

function isGrey(data) {
  for (let i = 0; i < data.length; i += 4) if (data[i] !== data[i + 1] || data[i] !== data[i + 2]) return false;
  return true;
}

/** Values of a picture row by row, (H,W,3). @param {import("./canvas.js").Picture} picture */
export function interleaved({ width, height, data }) {
  const pixels = new Uint8Array(data.length);
  for (let i = 0; i < width * height; i++) {
    for (let channel = 0; channel < 3; channel++) pixels[3 * i + channel] = data[channel * width * height + i];
  }
  return pixels;
}

/** Grey values of a hole, 255 = fill; black in the size of `picture` if there is none. */
export function greyOf(hole, picture) {
  if (!hole) return new Uint8Array(picture.width * picture.height);
  return new Uint8Array(hole.data.map((value) => Math.round(255 * value)));
}
