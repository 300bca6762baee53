/** Tools: each answers to press, move, release and cancel, whether from a pointer or from the keyboard. */

/** @typedef {{x: number, y: number, pressure?: number}} Point image pixels; pressure 0 to 1, of pens alone */
/** @typedef {import("./painter.js").Painter} Painter */
/** @typedef {import("./settings.js").Settings} Settings */

/**
 * @typedef {object} Tool
 * @property {(point: Point, options: {remove: boolean, straight: boolean}) => void} press
 * @property {(points: Point[]) => void} move
 * @property {() => void} release
 * @property {() => void} cancel
 */

const LEAST_PRESSURE = 0.1;

/** Paints or erases along the path of the pointer. */
class Brush {
  /** @type {import("./raster.js").Dab | null} the end of the last stroke, for straight lines */ #last = null;
  #erase = false;

  /**
   * @param {Painter} painter
   * @param {Settings} settings
   * @param {boolean} erase
   */
  constructor(painter, settings, erase) {
    this.painter = painter;
    this.settings = settings;
    this.erase = erase;
  }

  /** @type {Tool["press"]} */
  press(point, { remove, straight }) {
    const dab = this.#dab(point);
    this.#erase = this.erase || remove;
    this.painter.stroke(straight && this.#last ? this.#last : dab, dab, this.#erase);
    this.#last = dab;
  }

  /** @type {Tool["move"]} */
  move(points) {
    for (const point of points) {
      const dab = this.#dab(point);
      this.painter.stroke(this.#last ?? dab, dab, this.#erase);
      this.#last = dab;
    }
  }

  release() {
    this.painter.commit();
  }

  cancel() {
    this.painter.cancel();
  }

  #dab({ x, y, pressure }) {
    const share = pressure === undefined || !this.settings.pressure ? 1 : Math.max(LEAST_PRESSURE, pressure);
    return { x, y, radius: (this.settings.size / 2) * share };
  }
}

/** Selects a rectangle, or all that a path encloses. */
class Outliner {
  /** @type {Point[]} */ #points = [];
  #remove = false;

  /**
   * @param {Painter} painter
   * @param {"rectangle" | "path"} kind
   */
  constructor(painter, kind) {
    this.painter = painter;
    this.kind = kind;
  }

  /** @type {Tool["press"]} */
  press(point, { remove }) {
    this.#points = [point, point];
    this.#remove = remove || this.painter.settings.remove;
    this.#show();
  }

  /** @type {Tool["move"]} */
  move(points) {
    if (this.kind === "path") this.#points.push(...points);
    else this.#points[1] = points[points.length - 1];
    this.#show();
  }

  release() {
    const points = this.#points;
    this.cancel();
    if (this.kind === "path") this.painter.polygon(points, this.#remove);
    else this.painter.rectangle(points[0], points[1], this.#remove);
  }

  cancel() {
    this.#points = [];
    this.painter.stage.guides.outline = null;
    this.painter.stage.redrawGuides();
  }

  #show() {
    this.painter.stage.guides.outline = { kind: this.kind, points: this.#points };
    this.painter.stage.redrawGuides();
  }
}

/** Selects pixels of a similar colour. */
class Flood {
  /** @type {{point: Point, remove: boolean} | null} */ #pressed = null;

  /** @param {Painter} painter */
  constructor(painter) {
    this.painter = painter;
  }

  /** @type {Tool["press"]} */
  press(point, { remove }) {
    this.#pressed = { point, remove: remove || this.painter.settings.remove };
  }

  move() {}

  release() {
    if (this.#pressed) this.painter.flood(this.#pressed.point, this.#pressed.remove);
    this.#pressed = null;
  }

  cancel() {
    this.#pressed = null;
  }
}

/**
 * @param {Painter} painter
 * @param {Settings} settings
 * @returns {Record<string, Tool>} by name; the hand is none of them, as it moves the view
 */
export function createTools(painter, settings) {
  return {
    brush: new Brush(painter, settings, false),
    eraser: new Brush(painter, settings, true),
    rectangle: new Outliner(painter, "rectangle"),
    lasso: new Outliner(painter, "path"),
    flood: new Flood(painter),
  };
}
