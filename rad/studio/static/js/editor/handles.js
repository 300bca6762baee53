/** Handles at the four borders of the image: drag outwards, or use the arrow keys, to extend it. */

import { element } from "./dom.js";

export const SIDES = ["left", "top", "right", "bottom"];
export const LARGEST_EXTENSION = 4096;
const OUTWARDS = { left: [-1, 0], top: [0, -1], right: [1, 0], bottom: [0, 1] };
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const STEP = 8;
const LARGER = 64;

/**
 * @param {number} value
 * @returns {number} a whole number, 0 to LARGEST_EXTENSION
 */
export function extension(value) {
  return Math.min(LARGEST_EXTENSION, Math.max(0, Math.round(Number(value)) || 0));
}

export class Handles {
  /** @type {HTMLElement[]} */ #handles = [];

  /**
   * @param {import("./stage.js").Stage} stage
   * @param {(extend: number[], final: boolean) => void} change
   */
  constructor(stage, change) {
    this.stage = stage;
    this.change = change;
    this.#handles = SIDES.map((side, index) => this.#create(side, index));
    stage.root.append(...this.#handles);
  }

  /** Moves the handles to the borders of the extended image. */
  place() {
    const { stage } = this;
    const { left, top, right, bottom } = stage.bounds;
    const start = stage.view.toStage(left, top);
    const end = stage.view.toStage(right, bottom);
    const middle = { x: (start.x + end.x) / 2, y: (start.y + end.y) / 2 };
    const places = [[start.x, middle.y], [middle.x, start.y], [end.x, middle.y], [middle.x, end.y]];
    this.#handles.forEach((handle, index) => {
      const [x, y] = places[index];
      const { width, height } = stage.view;
      handle.hidden = !stage.picture || Boolean(stage.result) || x < 0 || y < 0 || x > width || y > height;
      handle.style.left = `${x}px`;
      handle.style.top = `${y}px`;
      handle.setAttribute("aria-valuenow", String(stage.extend[index]));
      handle.setAttribute("aria-valuetext", `${stage.extend[index]} pixels`);
    });
  }

  #create(side, index) {
    const handle = element("button", {
      type: "button",
      role: "slider",
      class: `editor-handle editor-handle-${side}`,
      "aria-label": `Extend the image: ${side}`,
      "aria-valuemin": "0",
      "aria-valuemax": String(LARGEST_EXTENSION),
      "aria-orientation": index % 2 ? "vertical" : "horizontal",
      title: "Drag outwards to extend the image",
    });
    handle.hidden = true;
    handle.addEventListener("pointerdown", (event) => this.#drag(event, handle, index));
    handle.addEventListener("keydown", (event) => this.#key(event, side, index));
    return handle;
  }

  /** The view stands still during a drag; it fits the new size afterwards. */
  #drag(event, handle, index) {
    if (event.button !== 0) return;
    event.preventDefault();
    event.stopPropagation();
    handle.focus({ preventScroll: true });
    handle.setPointerCapture(event.pointerId);
    const before = [...this.stage.extend];
    const [right, down] = OUTWARDS[SIDES[index]];
    const from = this.stage.locate(event);
    const controller = new AbortController();
    const { signal } = controller;
    const end = (extend) => (controller.abort(), this.change(extend, true));
    handle.addEventListener(
      "pointermove",
      (moved) => {
        const to = this.stage.locate(moved);
        const distance = (right * (to.x - from.x) + down * (to.y - from.y)) / this.stage.view.zoom;
        this.change(this.#with(before, index, before[index] + distance), false);
      },
      { signal },
    );
    handle.addEventListener("pointerup", () => end(this.stage.extend), { signal });
    handle.addEventListener("pointercancel", () => end(before), { signal });
    handle.addEventListener("keydown", (key) => key.key === "Escape" && end(before), { signal });
  }

  #key(event, side, index) {
    const arrow = ARROWS[event.key];
    if (!arrow) return;
    event.preventDefault();
    event.stopPropagation();
    const [right, down] = OUTWARDS[side];
    const outwards = arrow[0] * right + arrow[1] * down;
    const step = outwards * (event.shiftKey ? LARGER : STEP);
    this.change(this.#with(this.stage.extend, index, this.stage.extend[index] + step), true);
  }

  #with(extend, index, value) {
    return extend.map((old, side) => (side === index ? extension(value) : old));
  }
}
