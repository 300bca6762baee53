/** Images for display: decoded upright, in levels of half the size each, with opaque pixels. */

const SMALLEST_SIDE = 1024;
const STRIP = 512;
/** Bytes of a file in which its headers lie. */
const HEAD = 1 << 20;
const EXIF_FLAG = 8;

export class Picture {
  /** @type {Uint8ClampedArray | null} */ #pixels = null;

  /** @param {ImageBitmap[]} levels the full size first */
  constructor(levels) {
    this.levels = levels;
    this.width = levels[0].width;
    this.height = levels[0].height;
  }

  /**
   * @param {Blob} blob in a format of the browser
   * @returns {Promise<Picture>} upright by EXIF
   * Rejects if the browser cannot decode the blob.
   */
  static async decode(blob) {
    let bitmap = await createImageBitmap(blob, { imageOrientation: "from-image" });
    if (blob.type !== "image/jpeg") bitmap = opaque(bitmap);
    const levels = [bitmap];
    for (;;) {
      const { width, height } = levels[levels.length - 1];
      if (Math.max(width, height) <= SMALLEST_SIDE) return new Picture(levels);
      levels.push(
        await createImageBitmap(levels[levels.length - 1], {
          resizeWidth: Math.ceil(width / 2),
          resizeHeight: Math.ceil(height / 2),
          resizeQuality: "medium",
        }),
      );
    }
  }

  /** @returns {Uint8ClampedArray} RGBA of the full size; kept until `forgetPixels` */
  pixels() {
    if (!this.#pixels) {
      const context = surface(this.width, this.height);
      context.drawImage(this.levels[0], 0, 0);
      this.#pixels = context.getImageData(0, 0, this.width, this.height).data;
    }
    return this.#pixels;
  }

  forgetPixels() {
    this.#pixels = null;
  }

  /**
   * Draws the picture over a rectangle of a canvas, of which only the part on the canvas is computed.
   * @param {CanvasRenderingContext2D} context
   * @param {number} x of the left edge, in canvas pixels
   * @param {number} y
   * @param {number} width
   * @param {number} height
   */
  draw(context, x, y, width, height) {
    const level = [...this.levels].reverse().find((bitmap) => bitmap.width >= width) ?? this.levels[0];
    const left = Math.max(0, Math.floor((-x / width) * level.width));
    const top = Math.max(0, Math.floor((-y / height) * level.height));
    const right = Math.min(level.width, Math.ceil(((context.canvas.width - x) / width) * level.width));
    const bottom = Math.min(level.height, Math.ceil(((context.canvas.height - y) / height) * level.height));
    if (right <= left || bottom <= top) return;
    const [across, down] = [width / level.width, height / level.height];
    context.imageSmoothingEnabled = across < 2;
    context.imageSmoothingQuality = "medium";
    context.drawImage(
      level,
      left,
      top,
      right - left,
      bottom - top,
      x + left * across,
      y + top * down,
      (right - left) * across,
      (bottom - top) * down,
    );
  }

  close() {
    this.#pixels = null;
    for (const level of this.levels) level.close();
  }
}

/**
 * Whether the server may read other pixels from a file than the browser shows, so that the server's are the ones to show.
 *
 * These are WebP files with EXIF, whose orientation browsers ignore, animated PNG files, whose first frame differs, and icons.
 * The static demo has no server: there the browser decodes for the display and for the model alike.
 * @param {Blob} blob
 * @returns {Promise<boolean>}
 */
export async function needsServer(blob) {
  if (document.querySelector('meta[name="rad-backend"]')?.getAttribute("content") === "browser") return false;
  const head = new Uint8Array(await blob.slice(0, HEAD).arrayBuffer());
  const text = (start, end) => String.fromCharCode(...head.subarray(start, end));
  if (text(0, 4) === "RIFF" && text(8, 16) === "WEBPVP8X") return (head[20] & EXIF_FLAG) > 0;
  if (text(1, 4) === "PNG") return isAnimated(head);
  return ["\0\0\x01\0", "\0\0\x02\0"].includes(text(0, 4));
}

/** Whether a PNG file has an acTL chunk in front of its pixels. @param {Uint8Array} head */
function isAnimated(head) {
  const view = new DataView(head.buffer);
  for (let start = 8; start + 8 <= head.length; start += 12 + view.getUint32(start)) {
    const type = String.fromCharCode(...head.subarray(start + 4, start + 8));
    if (type === "acTL" || type === "IDAT") return type === "acTL";
  }
  return false;
}

/**
 * Decodes a file of any format.
 * @param {Blob} blob
 * @param {(blob: Blob) => Promise<Blob>} convert turns a format unknown to the browser into a PNG
 * @returns {Promise<{picture: Picture, view: Blob | null}>} `view`: the converted file, where one was needed
 */
export async function decodeAny(blob, convert) {
  const picture = (await needsServer(blob)) ? null : await Picture.decode(blob).catch(() => null);
  if (picture) return { picture, view: null };
  const view = await convert(blob);
  return { picture: await Picture.decode(view), view };
}

/** @returns {OffscreenCanvasRenderingContext2D} of a canvas whose pixels will be read */
function surface(width, height) {
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  if (!context) throw new Error("This browser has no memory for an image of this size.");
  return context;
}

/**
 * The image without its alpha channel, as the models see it.
 *
 * A browser forgets the colour of fully transparent pixels, so they appear black here. The file is not changed.
 */
function opaque(bitmap) {
  const context = surface(bitmap.width, bitmap.height);
  context.drawImage(bitmap, 0, 0);
  let changed = false;
  for (let top = 0; top < bitmap.height; top += STRIP) {
    const strip = context.getImageData(0, top, bitmap.width, Math.min(STRIP, bitmap.height - top));
    let transparent = false;
    for (let index = 3; index < strip.data.length; index += 4) {
      if (strip.data[index] === 255) continue;
      strip.data[index] = 255;
      transparent = true;
    }
    if (transparent) context.putImageData(strip, 0, top);
    changed ||= transparent;
  }
  if (!changed) return bitmap;
  bitmap.close();
  return context.canvas.transferToImageBitmap();
}

/**
 * Grey values of a mask file: its red channel, without colour conversion.
 * @param {Blob} blob
 * @returns {Promise<{data: Uint8Array, width: number, height: number}>}
 */
export async function greyOf(blob) {
  const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none" });
  const { width, height } = bitmap;
  const context = surface(width, Math.min(STRIP, height));
  const data = new Uint8Array(width * height);
  for (let top = 0; top < height; top += STRIP) {
    const rows = Math.min(STRIP, height - top);
    context.drawImage(bitmap, 0, -top);
    const strip = context.getImageData(0, 0, width, rows).data;
    for (let index = 0; index < width * rows; index++) data[top * width + index] = strip[index * 4];
  }
  bitmap.close();
  return { data, width, height };
}
