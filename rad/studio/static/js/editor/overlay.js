/** The mask on the screen: a colour over the hole and a dashed line at its edge, computed per device pixel. */

/** @typedef {import("./raster.js").Rect} Rect */

const DARK = 0xff101010;
const LIGHT = 0xffffffff;
const DASH = 5;
const HALF = 128;

export class Overlay {
  #pixels = new Uint8ClampedArray(0);
  #samples = new Uint8Array(0);

  /**
   * Draws the part of the mask that lies in a rectangle of the image.
   * @param {CanvasRenderingContext2D} context of the stage's size in device pixels
   * @param {import("./mask.js").Mask} mask
   * @param {import("./view.js").View} view
   * @param {Rect} rect image pixels
   * @param {{color: string, opacity: number}} style #rrggbb and 0 to 1
   */
  draw(context, mask, view, rect, style) {
    const thick = Math.max(1, Math.round(1.5 * view.ratio));
    const area = deviceArea(context.canvas, view, rect, thick + 1);
    if (area.width <= 0 || area.height <= 0) return;
    this.#sample(mask, view, area, thick);
    const pixels = this.#colour(view, area, thick, tableOf(style));
    context.putImageData(new ImageData(pixels, area.width, area.height), area.x, area.y);
  }

  /** Mask values of the device pixels of an area and `extra` more columns and rows; 0 outside of the image. */
  #sample(mask, view, area, extra) {
    const across = area.width + extra;
    const down = area.height + extra;
    if (this.#samples.length < across * down) this.#samples = new Uint8Array(across * down);
    const samples = this.#samples;
    const columns = positions(area.x, across, view.x, view, mask.width);
    const rows = positions(area.y, down, view.y, view, mask.height);
    for (let y = 0, index = 0; y < down; y++) {
      const base = rows[y] * mask.width;
      if (base < 0) {
        samples.fill(0, index, index + across);
        index += across;
        continue;
      }
      for (let x = 0; x < across; x++, index++) samples[index] = columns[x] < 0 ? 0 : mask.data[base + columns[x]];
    }
  }

  /** @returns {Uint8ClampedArray} RGBA of an area */
  #colour(view, area, thick, table) {
    const { width, height } = area;
    if (this.#pixels.length < width * height * 4) this.#pixels = new Uint8ClampedArray(width * height * 4);
    const bytes = new Uint8ClampedArray(this.#pixels.buffer, 0, width * height * 4);
    const pixels = new Uint32Array(this.#pixels.buffer, 0, width * height);
    const samples = this.#samples;
    const across = width + thick;
    const dash = DASH * view.ratio;
    const phase = area.x + area.y - Math.round((view.x + view.y) * view.ratio) + 4096 * Math.ceil(dash) * 16;
    for (let y = 0, index = 0; y < height; y++) {
      for (let x = 0, at = y * across; x < width; x++, at++, index++) {
        const value = samples[at];
        const inside = value >= HALF;
        const edge = inside !== samples[at + thick] >= HALF || inside !== samples[at + thick * across] >= HALF;
        pixels[index] = edge ? (((phase + x + y) / dash) & 1 ? LIGHT : DARK) : table[value];
      }
    }
    return bytes;
  }
}

/** @returns {Rect} device pixels that show a rectangle of the image, with a border, on the canvas */
function deviceArea(canvas, view, rect, border) {
  const scale = view.zoom * view.ratio;
  const x = Math.max(0, Math.floor(view.x * view.ratio + rect.x * scale) - border);
  const y = Math.max(0, Math.floor(view.y * view.ratio + rect.y * scale) - border);
  const right = Math.min(canvas.width, Math.ceil(view.x * view.ratio + (rect.x + rect.width) * scale) + border);
  const bottom = Math.min(canvas.height, Math.ceil(view.y * view.ratio + (rect.y + rect.height) * scale) + border);
  return { x, y, width: right - x, height: bottom - y };
}

/** @returns {Int32Array} image index of each device pixel centre, -1 outside of the image */
function positions(start, count, offset, view, size) {
  return Int32Array.from({ length: count }, (_, index) => {
    const position = Math.floor(((start + index + 0.5) / view.ratio - offset) / view.zoom);
    return position >= 0 && position < size ? position : -1;
  });
}

/** @returns {Uint32Array} colour of each mask value, as little-endian RGBA */
function tableOf({ color, opacity }) {
  const [red, green, blue] = [1, 3, 5].map((start) => parseInt(color.slice(start, start + 2), 16));
  const plain = (blue << 16) | (green << 8) | red;
  return Uint32Array.from({ length: 256 }, (_, value) => ((Math.round(value * opacity) << 24) | plain) >>> 0);
}
