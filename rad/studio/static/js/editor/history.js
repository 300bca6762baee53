/** Undo and redo of a mask: each step keeps the tiles that changed, as they were. */

import { pack } from "./mask.js";

/** @typedef {import("./mask.js").Mask} Mask */
/** @typedef {import("./mask.js").Packed} Packed */
/** @typedef {import("./raster.js").Rect} Rect */
/** @typedef {Map<number, Packed> | "invert"} Step */

export const STEPS = 50;

export class History {
  /** @type {Step[]} */ #done = [];
  /** @type {Step[]} */ #undone = [];
  /** @type {Map<number, Uint8Array>} */ #open = new Map();

  /**
   * @param {Mask} mask
   * @param {number} [limit] steps that can be undone
   */
  constructor(mask, limit = STEPS) {
    this.mask = mask;
    this.limit = limit;
  }

  get canUndo() {
    return this.#done.length > 0;
  }

  get canRedo() {
    return this.#undone.length > 0;
  }

  /**
   * Keeps the tiles of a rectangle; call it before their first change in a step.
   * @param {Rect} rect
   */
  touch(rect) {
    for (const tile of this.mask.tilesIn(rect)) {
      if (!this.#open.has(tile)) this.#open.set(tile, this.mask.read(tile));
    }
  }

  /**
   * Ends a step.
   * @returns {boolean} false if no pixel changed; such a step is not kept
   */
  commit() {
    /** @type {Map<number, Packed>} */
    const step = new Map();
    for (const [tile, before] of this.#open) {
      const after = this.mask.read(tile);
      if (after.every((value, index) => value === before[index])) continue;
      step.set(tile, pack(before));
      this.mask.measure(tile, after);
    }
    this.#open.clear();
    if (step.size) this.#push(step);
    return step.size > 0;
  }

  /** Takes back the step in progress. */
  cancel() {
    for (const [tile, before] of this.#open) this.mask.write(tile, before);
    this.#open.clear();
  }

  /** Inverts the mask as one step. */
  invert() {
    this.mask.invert();
    this.#push("invert");
  }

  /** @returns {boolean} whether there was a step to undo */
  undo() {
    return this.#move(this.#done, this.#undone);
  }

  /** @returns {boolean} whether there was a step to redo */
  redo() {
    return this.#move(this.#undone, this.#done);
  }

  /** @param {Step} step */
  #push(step) {
    this.#done.push(step);
    if (this.#done.length > this.limit) this.#done.shift();
    this.#undone = [];
  }

  #move(from, to) {
    const step = from.pop();
    if (step === undefined) return false;
    to.push(this.#exchange(step));
    return true;
  }

  /** Applies a step and returns the one that reverses it. */
  #exchange(step) {
    if (step === "invert") {
      this.mask.invert();
      return step;
    }
    const reverse = new Map();
    for (const [tile, packed] of step) {
      reverse.set(tile, pack(this.mask.read(tile)));
      this.mask.write(tile, packed);
    }
    return reverse;
  }
}
