/** Images for display, never larger than needed, and files for the user. */

import { needsServer } from "../editor/picture.js";

const POSTER = 512;

/** What each canvas is to show; a slow image does not replace a later one. @type {WeakMap<HTMLCanvasElement, Blob>} */
const wanted = new WeakMap();

/** The decoded image, or null if the canvas is to show another one meanwhile. */
async function decode(canvas, blob) {
  wanted.set(canvas, blob);
  const bitmap = await createImageBitmap(blob);
  if (wanted.get(canvas) === blob) return bitmap;
  bitmap.close();
  return null;
}

/**
 * Draw an image on a canvas, scaled so that its longest side has at most `longest` pixels.
 * @param {HTMLCanvasElement} canvas
 * @param {Blob} blob
 * @param {number} longest
 */
export async function paint(canvas, blob, longest) {
  const bitmap = await decode(canvas, blob);
  if (!bitmap) return;
  fit(canvas, bitmap.width, bitmap.height, longest).drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
}

/**
 * Draw the image in the size that it has after outpainting, with the new pixels empty.
 * @param {HTMLCanvasElement} canvas
 * @param {Blob} blob
 * @param {number[]} extend - new pixels: left, top, right, bottom
 * @param {number} longest
 */
export async function paintExtended(canvas, blob, extend, longest) {
  const bitmap = await decode(canvas, blob);
  if (!bitmap) return;
  const [left, top, right, bottom] = extend;
  const [width, height] = [bitmap.width + left + right, bitmap.height + top + bottom];
  const context = fit(canvas, width, height, longest);
  const scale = canvas.width / width;
  context.fillStyle = "#80848f";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, left * scale, top * scale, bitmap.width * scale, bitmap.height * scale);
  bitmap.close();
}

/**
 * Draw the image with its hole in grey: what a method gets as input.
 * @param {HTMLCanvasElement} canvas
 * @param {Blob} blob
 * @param {Blob|null} mask - 8-bit grey, white = hole, in the size of the image
 * @param {number[]} extend
 * @param {number} longest
 */
export async function paintInput(canvas, blob, mask, extend, longest) {
  await paintExtended(canvas, blob, extend, longest);
  if (!mask) return;
  const bitmap = await createImageBitmap(mask);
  const full = bitmap.width + extend[0] + extend[2];
  const scale = canvas.width / full;
  const layer = document.createElement("canvas");
  const [width, height] = [bitmap.width * scale, bitmap.height * scale].map((side) => Math.max(1, Math.round(side)));
  [layer.width, layer.height] = [width, height];
  const context = /** @type {CanvasRenderingContext2D} */ (layer.getContext("2d"));
  context.drawImage(bitmap, 0, 0, width, height);
  bitmap.close();
  const pixels = context.getImageData(0, 0, width, height);
  for (let index = 0; index < pixels.data.length; index += 4) {
    pixels.data[index + 3] = pixels.data[index];
    pixels.data.fill(128, index, index + 3);
  }
  context.putImageData(pixels, 0, 0);
  canvas.getContext("2d")?.drawImage(layer, extend[0] * scale, extend[1] * scale);
}

/**
 * The image as a blob that a canvas can show (the file itself, or a PNG from the backend), and small with its hole.
 * @param {any} backend
 * @param {{blob: Blob, name: string}} image
 * @param {Blob|null} mask
 * @param {number[]} extend
 * @returns {Promise<{shown: Blob, poster: HTMLCanvasElement}>}
 */
export async function display(backend, image, mask, extend) {
  const poster = document.createElement("canvas");
  const draw = (blob) => paintInput(poster, blob, mask, extend, POSTER);
  const converted = () => backend.readImage(new File([image.blob], image.name));
  let shown = (await needsServer(image.blob)) ? await converted() : image.blob;
  try {
    await draw(shown);
  } catch {
    shown = await converted();
    await draw(shown);
  }
  return { shown, poster };
}

/** @returns {CanvasRenderingContext2D} */
function fit(canvas, width, height, longest) {
  const scale = Math.min(1, longest / Math.max(width, height));
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  context.imageSmoothingQuality = "high";
  return context;
}

/**
 * Save a file on the user's disk with exactly these bytes.
 * @param {Blob} blob
 * @param {string} name
 */
export function download(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** @param {string} name */
export function stem(name) {
  return name.replace(/\.[^.]*$/, "");
}

/**
 * Name of an image that continues from a result: photo-filled.png, then photo-filled-2.png.
 * @param {string} name
 */
export function filledName(name) {
  const match = /^(.*)-filled(?:-(\d+))?$/.exec(stem(name));
  return match ? `${match[1]}-filled-${Number(match[2] ?? 1) + 1}.png` : `${stem(name)}-filled.png`;
}
