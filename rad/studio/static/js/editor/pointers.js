/** Mouse, pen and fingers on the stage: painting, panning, pinching, zooming by wheel. */

/** @typedef {import("./stage.js").Stage} Stage */
/** @typedef {import("./settings.js").Settings} Settings */
/** @typedef {import("./tools.js").Tool} Tool */
/** @typedef {{x: number, y: number}} Point */

const WHEEL = 0.0015;
const PINCH_WHEEL = 0.01;
const LINE = 16;
const ERASER_BUTTON = 5;

export class Pointers {
  /** Whether the space bar is down: then a drag pans. */
  space = false;
  /** @type {{id: number, type: string, tool: Tool | null, last: Point} | null} */ #active = null;
  /** @type {Map<number, Point>} fingers on the stage */ #touches = new Map();
  #pens = new Set();

  /**
   * @param {Stage} stage
   * @param {Settings} settings
   * @param {Record<string, Tool>} tools
   * @param {() => boolean} begin called before a tool starts; false refuses
   */
  constructor(stage, settings, tools, begin) {
    this.stage = stage;
    this.settings = settings;
    this.tools = tools;
    this.begin = begin;
    const { root } = stage;
    root.addEventListener("pointerdown", (event) => this.#down(event));
    root.addEventListener("pointermove", (event) => this.#move(event));
    root.addEventListener("pointerup", (event) => this.#up(event));
    root.addEventListener("pointercancel", (event) => this.#lost(event));
    root.addEventListener("pointerleave", () => this.#hover(null));
    root.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    root.addEventListener("auxclick", (event) => event.preventDefault());
    root.addEventListener("contextmenu", (event) => this.stage.picture && event.preventDefault());
  }

  /** Whether a stroke or a drag is in progress. */
  get busy() {
    return this.#active !== null || this.#touches.size > 1;
  }

  /** Takes back the stroke in progress. */
  cancel() {
    this.#active?.tool?.cancel();
    this.#active = null;
    this.#cursorStyle();
  }

  #down(event) {
    if (!this.stage.picture || event.target.closest("button, a, input, label")) return;
    if (event.pointerType === "touch" && !this.#touched(event)) return;
    if (event.pointerType === "pen") this.#penDown(event);
    if (this.#active) return;
    event.preventDefault();
    this.stage.root.focus({ preventScroll: true });
    this.stage.guides.crosshair = null;
    this.stage.root.setPointerCapture(event.pointerId);
    const tool = this.#toolFor(event);
    if (tool && !this.begin()) return;
    this.#active = { id: event.pointerId, type: event.pointerType, tool, last: this.stage.locate(event) };
    tool?.press(this.#point(event), { remove: event.altKey || event.button === 2, straight: event.shiftKey });
    this.#cursorStyle();
    this.#hover(event);
  }

  /** Counts a finger. @returns {boolean} whether it may start a stroke */
  #touched(event) {
    if (this.#pens.size) return false;
    this.stage.root.setPointerCapture(event.pointerId);
    this.#touches.set(event.pointerId, this.stage.locate(event));
    if (this.#touches.size === 1) return true;
    this.cancel();
    this.#hover(null);
    return false;
  }

  /** A pen takes over from the hand that rests on the screen. */
  #penDown(event) {
    this.#pens.add(event.pointerId);
    if (this.#active?.type === "touch") this.cancel();
    this.#touches.clear();
  }

  /** @returns {Tool | null} null: the drag pans */
  #toolFor(event) {
    if (event.button === 1 || this.space) return null;
    if (event.button === ERASER_BUTTON) return this.tools.eraser;
    return this.tools[this.settings.tool] ?? null;
  }

  #move(event) {
    if (this.#touches.has(event.pointerId) && this.#touches.size > 1) return this.#pinch(event);
    const active = this.#active;
    if (!active || active.id !== event.pointerId) return this.#hover(event);
    const events = event.getCoalescedEvents?.() ?? [];
    if (active.tool) active.tool.move((events.length ? events : [event]).map((each) => this.#point(each)));
    else this.#pan(active, event);
    this.#touches.has(event.pointerId) && this.#touches.set(event.pointerId, this.stage.locate(event));
    this.#hover(event);
  }

  #up(event) {
    this.#pens.delete(event.pointerId);
    this.#touches.delete(event.pointerId);
    if (this.#active?.id !== event.pointerId) return;
    const { tool } = this.#active;
    this.#active = null;
    tool?.release();
    this.#cursorStyle();
    if (event.pointerType === "touch") this.#hover(null);
  }

  #lost(event) {
    this.#pens.delete(event.pointerId);
    this.#touches.delete(event.pointerId);
    if (this.#active?.id === event.pointerId) this.cancel();
  }

  #pan(active, event) {
    const now = this.stage.locate(event);
    this.stage.view.pan(now.x - active.last.x, now.y - active.last.y);
    active.last = now;
    this.stage.redraw();
  }

  /** Two fingers: their centre pans, their distance zooms. */
  #pinch(event) {
    const [before, far] = spread(this.#touches);
    this.#touches.set(event.pointerId, this.stage.locate(event));
    const [after, near] = spread(this.#touches);
    this.stage.view.pan(after.x - before.x, after.y - before.y);
    if (far > 0 && near > 0) this.stage.view.zoomAt(near / far, after.x, after.y);
    this.stage.redraw();
  }

  #wheel(event) {
    if (!this.stage.picture) return;
    event.preventDefault();
    const { x, y } = this.stage.locate(event);
    const unit = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? LINE : 1;
    if (event.shiftKey) this.stage.view.pan(-unit * (event.deltaX || event.deltaY), 0);
    else this.stage.view.zoomAt(Math.exp(-event.deltaY * unit * (event.ctrlKey ? PINCH_WHEEL : WHEEL)), x, y);
    this.stage.redraw();
  }

  /** Moves the ring of the brush; null hides it. */
  #hover(event) {
    const { guides } = this.stage;
    if (event) guides.crosshair = null;
    const over = event?.target instanceof Element && !event.target.closest("button");
    guides.cursor = event && over && this.#paints() ? this.#point(event) : null;
    this.stage.redrawGuides();
  }

  #paints() {
    return ["brush", "eraser"].includes(this.settings.tool) && !this.space;
  }

  /** The shape of the system's cursor. */
  #cursorStyle() {
    const pans = this.#active ? !this.#active.tool : false;
    const hand = this.space || this.settings.tool === "hand";
    this.stage.root.style.cursor = pans ? "grabbing" : hand ? "grab" : this.#paints() ? "none" : "crosshair";
  }

  /** Refreshes the cursor after another tool was chosen or the space bar moved. */
  refresh() {
    if (!this.#paints()) this.stage.guides.cursor = null;
    this.#cursorStyle();
    this.stage.redrawGuides();
  }

  /** @returns {import("./tools.js").Point} */
  #point(event) {
    const { x, y } = this.stage.locate(event);
    const point = this.stage.view.toImage(x, y);
    return event.pointerType === "pen" && event.pressure > 0 ? { ...point, pressure: event.pressure } : point;
  }
}

/**
 * @param {Map<number, Point>} touches two or more
 * @returns {[Point, number]} centre and distance of the first two
 */
function spread(touches) {
  const [one, other] = [...touches.values()];
  return [{ x: (one.x + other.x) / 2, y: (one.y + other.y) / 2 }, Math.hypot(one.x - other.x, one.y - other.y)];
}
