/** Where the image lies on the screen: zoom and offset, in CSS pixels of the stage. */

const MOST = 64;
const KEPT = 48;

export class View {
  /** CSS pixels per image pixel. */
  zoom = 1;
  /** Position of the image's upper left corner. */
  x = 0;
  y = 0;
  /** Size of the stage, and device pixels per CSS pixel. */
  width = 1;
  height = 1;
  ratio = 1;
  /** Whether the image still fits the stage, as no zoom or pan changed it. */
  fitted = true;
  /** Image pixels to show: the image and its extension. */
  bounds = { left: 0, top: 0, right: 1, bottom: 1 };

  /** Zoom at which all of the bounds are visible. */
  get fitZoom() {
    const { left, top, right, bottom } = this.bounds;
    const margin = Math.min(this.width, this.height) < 480 ? 34 : 44;
    const across = Math.max(16, this.width - 2 * margin) / (right - left);
    const down = Math.max(16, this.height - 2 * margin) / (bottom - top);
    return Math.min(across, down, MOST / 2);
  }

  fit() {
    const { left, top, right, bottom } = this.bounds;
    this.zoom = this.fitZoom;
    this.x = (this.width - (left + right) * this.zoom) / 2;
    this.y = (this.height - (top + bottom) * this.zoom) / 2;
    this.fitted = true;
    this.#settle();
  }

  /**
   * Zooms; the image point at (x, y) of the stage stays in place.
   * @param {number} factor
   * @param {number} [x]
   * @param {number} [y]
   */
  zoomAt(factor, x = this.width / 2, y = this.height / 2) {
    const least = Math.min(1, this.fitZoom) / 4;
    const zoom = Math.min(MOST, Math.max(least, this.zoom * factor));
    this.x = x - ((x - this.x) * zoom) / this.zoom;
    this.y = y - ((y - this.y) * zoom) / this.zoom;
    this.zoom = zoom;
    this.fitted = false;
    this.#settle();
  }

  /**
   * @param {number} right CSS pixels
   * @param {number} down
   */
  pan(right, down) {
    this.x += right;
    this.y += down;
    this.fitted = false;
    this.#settle();
  }

  /** Pans as far as needed for an image point to be visible. */
  reveal(point) {
    const { x, y } = this.toStage(point.x, point.y);
    const right = Math.min(0, this.width - KEPT - x) + Math.max(0, KEPT - x);
    const down = Math.min(0, this.height - KEPT - y) + Math.max(0, KEPT - y);
    if (right || down) this.pan(right, down);
    return Boolean(right || down);
  }

  /** @returns {{x: number, y: number}} image position of a stage position */
  toImage(x, y) {
    return { x: (x - this.x) / this.zoom, y: (y - this.y) / this.zoom };
  }

  /** @returns {{x: number, y: number}} stage position of an image position */
  toStage(x, y) {
    return { x: this.x + x * this.zoom, y: this.y + y * this.zoom };
  }

  /** Keeps a part of the image on the stage, and its corner on a device pixel. */
  #settle() {
    const { left, top, right, bottom } = this.bounds;
    const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
    const x = clamp(this.x, KEPT - right * this.zoom, this.width - KEPT - left * this.zoom);
    const y = clamp(this.y, KEPT - bottom * this.zoom, this.height - KEPT - top * this.zoom);
    this.x = Math.round(x * this.ratio) / this.ratio;
    this.y = Math.round(y * this.ratio) / this.ratio;
  }
}
