/** The stage: three canvases above each other (picture, mask, guides), drawn at most once a frame. */

import { element } from "./dom.js";
import { drawExtension, drawGuides } from "./guides.js";
import { Overlay } from "./overlay.js";
import { View } from "./view.js";

/** @typedef {import("./raster.js").Rect} Rect */
/** @typedef {import("./picture.js").Picture} Picture */

export class Stage {
  view = new View();
  /** @type {Picture | null} */ picture = null;
  /** @type {Picture | null} drawn in place of the picture */ result = null;
  /** @type {import("./mask.js").Mask | null} */ mask = null;
  extend = [0, 0, 0, 0];
  guides = {
    cursor: /** @type {{x: number, y: number} | null} */ (null),
    crosshair: /** @type {{x: number, y: number} | null} */ (null),
    outline: /** @type {import("./guides.js").Outline | null} */ (null),
    radius: 0,
    hardness: 1,
  };
  /** Called after the view has changed. */
  moved = () => {};
  #overlay = new Overlay();
  #all = true;
  /** @type {Rect | null} */ #dirty = null;
  #frame = 0;

  /** @param {{color: string, opacity: number}} style of the overlay */
  constructor(style) {
    this.style = style;
    this.canvases = [0, 1, 2].map(() => element("canvas", { "aria-hidden": "true" }));
    this.contexts = this.canvases.map((canvas) => {
      const context = canvas.getContext("2d");
      if (!context) throw new Error("This browser has no 2D canvas.");
      return context;
    });
    this.root = element(
      "div",
      { class: "editor-stage", tabindex: "0", role: "application", "aria-label": "Image", "aria-describedby": "editor-keys" },
      ...this.canvases,
    );
    new ResizeObserver(() => this.#resize()).observe(this.root);
  }

  /** Image pixels with the extension; the view keeps them in reach. */
  get bounds() {
    const [left, top, right, bottom] = this.extend;
    const { width, height } = this.picture ?? { width: 1, height: 1 };
    return { left: -left, top: -top, right: width + right, bottom: height + bottom };
  }

  /** Shows the whole image. */
  fit() {
    this.view.bounds = this.bounds;
    this.view.fit();
    this.redraw();
  }

  /** Redraws everything in the next frame. */
  redraw() {
    this.view.bounds = this.bounds;
    this.#all = true;
    this.#request();
    this.moved();
  }

  /**
   * Redraws the mask in a rectangle of the image.
   * @param {Rect} rect
   */
  redrawMask(rect) {
    const old = this.#dirty ?? rect;
    const x = Math.min(old.x, rect.x);
    const y = Math.min(old.y, rect.y);
    this.#dirty = {
      x,
      y,
      width: Math.max(old.x + old.width, rect.x + rect.width) - x,
      height: Math.max(old.y + old.height, rect.y + rect.height) - y,
    };
    this.#request();
  }

  /** Redraws the lines alone. */
  redrawGuides() {
    this.#request();
  }

  /**
   * @param {{clientX: number, clientY: number}} event
   * @returns {{x: number, y: number}} CSS pixels from the stage's corner
   */
  locate(event) {
    const box = this.root.getBoundingClientRect();
    return { x: event.clientX - box.left - this.root.clientLeft, y: event.clientY - box.top - this.root.clientTop };
  }

  #request() {
    this.#frame ||= requestAnimationFrame(() => this.#draw());
  }

  #resize() {
    const { view } = this;
    const before = { width: view.width, height: view.height };
    view.width = Math.max(1, this.root.clientWidth);
    view.height = Math.max(1, this.root.clientHeight);
    view.ratio = devicePixelRatio;
    for (const canvas of this.canvases) {
      canvas.width = Math.max(1, Math.round(view.width * view.ratio));
      canvas.height = Math.max(1, Math.round(view.height * view.ratio));
    }
    if (view.fitted) this.fit();
    else {
      view.pan((view.width - before.width) / 2, (view.height - before.height) / 2);
      this.redraw();
    }
  }

  #draw() {
    this.#frame = 0;
    if (this.view.ratio !== devicePixelRatio) this.#resize();
    const [picture, mask, guides] = this.contexts;
    if (this.#all) {
      clear(picture);
      clear(mask);
      if (this.picture) this.#drawPicture(picture, this.picture);
    }
    const rect = this.#all ? this.mask?.rect : this.#dirty;
    if (this.mask && rect && !this.result && !(this.#all && this.mask.empty && !this.#dirty)) {
      this.#overlay.draw(mask, this.mask, this.view, rect, this.style);
    }
    this.#all = false;
    this.#dirty = null;
    clear(guides);
    this.root.classList.toggle("editor-keyboard", this.guides.crosshair !== null);
    if (!this.picture) return;
    guides.setTransform(this.view.ratio, 0, 0, this.view.ratio, 0, 0);
    drawGuides(guides, this.view, this.guides);
    guides.setTransform(1, 0, 0, 1, 0, 0);
  }

  #drawPicture(context, picture) {
    const { view, result } = this;
    const scale = view.zoom * view.ratio;
    const [x, y] = [view.x * view.ratio, view.y * view.ratio];
    const [width, height] = [picture.width * scale, picture.height * scale];
    if (result && !this.#isExtended(result, picture)) return result.draw(context, x, y, width, height);
    if (!result) {
      picture.draw(context, x, y, width, height);
      return drawExtension(context, view, picture, this.extend, this.style.color);
    }
    const [left, top, right, bottom] = this.extend.map((value) => value * scale);
    return result.draw(context, x - left, y - top, width + left + right, height + top + bottom);
  }

  /** Whether a result shows the extended image: by its size, or by its shape if it is a preview. */
  #isExtended(result, picture) {
    const { left, top, right, bottom } = this.bounds;
    const [width, height] = [right - left, bottom - top];
    if (result.width === picture.width && result.height === picture.height) return false;
    if (result.width === width && result.height === height) return true;
    const shape = Math.log(result.width / result.height);
    const image = Math.abs(shape - Math.log(picture.width / picture.height));
    return Math.abs(shape - Math.log(width / height)) <= image;
  }
}

/** @param {CanvasRenderingContext2D} context */
function clear(context) {
  context.clearRect(0, 0, context.canvas.width, context.canvas.height);
}
