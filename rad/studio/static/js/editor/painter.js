/** Changes of the mask: each is drawn at once and can be undone. */

import { floodSelect } from "./flood.js";
import { History } from "./history.js";
import { Mask } from "./mask.js";
import { clip, fillPolygon, fillRect, paintStroke, polygonBounds, strokeBounds } from "./raster.js";

/** @typedef {import("./raster.js").Rect} Rect */
/** @typedef {import("./raster.js").Dab} Dab */
/** @typedef {{x: number, y: number}} Point */

export class Painter {
  /** @type {Mask | null} */ mask = null;
  /** @type {History | null} */ history = null;

  /**
   * @param {import("./stage.js").Stage} stage
   * @param {import("./settings.js").Settings} settings
   * @param {() => void} changed called after each finished change
   */
  constructor(stage, settings, changed) {
    this.stage = stage;
    this.settings = settings;
    this.changed = changed;
  }

  /** Starts with an empty mask and an empty history. */
  reset(width, height) {
    this.mask = new Mask(width, height);
    this.history = new History(this.mask);
    this.stage.mask = this.mask;
  }

  /**
   * Part of a stroke; `commit` ends the stroke.
   * @param {Dab} from
   * @param {Dab} to
   * @param {boolean} erase
   */
  stroke(from, to, erase) {
    if (!this.mask || !this.history) return;
    const rect = strokeBounds(from, to, this.mask.width, this.mask.height);
    if (!rect.width || !rect.height) return;
    this.history.touch(rect);
    paintStroke(this.mask, from, to, { hardness: this.settings.hardness, erase });
    this.stage.redrawMask(rect);
  }

  commit() {
    if (this.history?.commit()) this.changed();
  }

  /** Takes back the stroke in progress. */
  cancel() {
    this.history?.cancel();
    if (this.mask) this.stage.redrawMask(this.mask.rect);
  }

  /**
   * Corners are rounded to the borders of pixels.
   * @param {Point} from
   * @param {Point} to
   * @param {boolean} erase
   */
  rectangle(from, to, erase) {
    if (!this.mask) return;
    const [left, right] = [Math.min(from.x, to.x), Math.max(from.x, to.x)].map(Math.round);
    const [top, bottom] = [Math.min(from.y, to.y), Math.max(from.y, to.y)].map(Math.round);
    const rect = clip(left, top, right, bottom, this.mask.width, this.mask.height);
    this.#change(rect, (mask) => fillRect(mask, rect, erase ? 0 : 255));
  }

  /**
   * @param {Point[]} points
   * @param {boolean} erase
   */
  polygon(points, erase) {
    if (!this.mask || points.length < 3) return;
    const rect = polygonBounds(points, this.mask.width, this.mask.height);
    this.#change(rect, (mask) => fillPolygon(mask, points, erase ? 0 : 255));
  }

  /**
   * Selects by colour from a point of the image.
   * @param {Point} point
   * @param {boolean} erase
   */
  flood(point, erase) {
    const { picture } = this.stage;
    if (!picture || !this.mask) return;
    const [column, row] = [Math.floor(point.x), Math.floor(point.y)];
    const { width, height } = picture;
    if (column < 0 || row < 0 || column >= width || row >= height) return;
    const found = floodSelect(picture.pixels(), width, height, column, row, this.settings.tolerance);
    this.#change(found.rect, ({ data }) => {
      const value = erase ? 0 : 255;
      const { x, y, width: across, height: down } = found.rect;
      for (let line = y; line < y + down; line++) {
        for (let index = line * width + x; index < line * width + x + across; index++) {
          if (found.selected[index]) data[index] = value;
        }
      }
    });
  }

  clear() {
    if (this.mask) this.#change(this.mask.rect, (mask) => mask.data.fill(0));
  }

  invert() {
    if (!this.history || !this.mask) return;
    this.history.invert();
    this.stage.redrawMask(this.mask.rect);
    this.changed();
  }

  /** @param {Uint8Array} data of the mask's size */
  replace(data) {
    if (this.mask) this.#change(this.mask.rect, (mask) => mask.data.set(data));
  }

  undo() {
    this.#move(this.history?.undo());
  }

  redo() {
    this.#move(this.history?.redo());
  }

  /** @param {boolean | undefined} moved */
  #move(moved) {
    if (!moved || !this.mask) return;
    this.stage.redrawMask(this.mask.rect);
    this.changed();
  }

  /**
   * @param {Rect} rect that can change
   * @param {(mask: Mask) => void} change
   */
  #change(rect, change) {
    if (!this.mask || !this.history || !rect.width || !rect.height) return;
    this.history.touch(rect);
    change(this.mask);
    this.stage.redrawMask(rect);
    this.commit();
  }
}
