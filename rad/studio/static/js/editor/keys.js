/** The editor by keyboard: shortcuts, and a crosshair that paints without a pointer. */

/** @typedef {import("./stage.js").Stage} Stage */
/** @typedef {import("./tools.js").Tool} Tool */

const LETTERS = { b: "brush", e: "eraser", r: "rectangle", l: "lasso", f: "flood", h: "hand" };
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const STEP = 8;
const LARGER = 8;
const ZOOM = 1.25;
const HELD = ["brush", "eraser"];

/**
 * @typedef {object} Actions
 * @property {() => void} undo
 * @property {() => void} redo
 * @property {() => void} invert
 * @property {() => void} clear
 * @property {() => void} open
 * @property {() => void} help
 * @property {() => boolean} begin before a tool starts; false refuses
 * @property {(text: string) => void} announce to screen readers
 */

export class Keys {
  /** @type {Tool | null} */ #pressed = null;

  /**
   * @param {Stage} stage
   * @param {import("./settings.js").Settings} settings
   * @param {Record<string, Tool>} tools
   * @param {import("./pointers.js").Pointers} pointers
   * @param {Actions} actions
   */
  constructor(stage, settings, tools, pointers, actions) {
    this.stage = stage;
    this.settings = settings;
    this.tools = tools;
    this.pointers = pointers;
    this.actions = actions;
    document.addEventListener("keydown", (event) => this.#down(event));
    document.addEventListener("keyup", (event) => this.#up(event));
    window.addEventListener("blur", () => this.#space(false));
    stage.root.addEventListener("focus", () => stage.root.matches(":focus-visible") && this.#showCrosshair());
    stage.root.addEventListener("blur", () => this.#hideCrosshair());
  }

  /** Takes back what the keyboard has begun. */
  cancel() {
    this.#pressed?.cancel();
    this.#pressed = null;
  }

  /** Keys count everywhere except in fields and dialogs, and where another part has handled them; not for a hidden editor. */
  #listens(event) {
    const target = event.target;
    if (!(target instanceof Element) || event.defaultPrevented || event.isComposing) return false;
    const hidden = !this.stage.root.checkVisibility({ visibilityProperty: true });
    if (hidden && event.key !== "?" && !(event.ctrlKey && keyOf(event) === "o")) return false;
    return !target.closest("input:not([type=range]), textarea, select, dialog, [contenteditable]");
  }

  #down(event) {
    if (!this.#listens(event)) return;
    const onStage = event.target === this.stage.root || event.target === document.body;
    const done =
      event.ctrlKey || event.metaKey ? this.#command(event) : (onStage && this.#canvasKey(event)) || this.#letter(event);
    if (done) event.preventDefault();
  }

  #up(event) {
    if (event.key === " ") this.#space(false);
    if ((event.key === " " || event.key === "Enter") && this.#pressed && HELD.includes(this.settings.tool)) {
      this.#pressed.release();
      this.#pressed = null;
    }
  }

  /** @returns {boolean} whether the key did something, here and below */
  #command(event) {
    const key = keyOf(event);
    if (key === "z" && !event.altKey) (event.shiftKey ? this.actions.redo : this.actions.undo)();
    else if (key === "y") this.actions.redo();
    else if (key === "o") this.actions.open();
    else return false;
    return true;
  }

  #letter(event) {
    const { view } = this.stage;
    const zoom = (factor) => (view.zoomAt(factor), this.stage.redraw());
    const key = keyOf(event);
    const tool = LETTERS[key];
    const acts = {
      "[": () => this.settings.step(false),
      "]": () => this.settings.step(true),
      "+": () => zoom(ZOOM),
      "=": () => zoom(ZOOM),
      "-": () => zoom(1 / ZOOM),
      0: () => this.stage.fit(),
      1: () => zoom(1 / view.ratio / view.zoom),
      i: this.actions.invert,
      "?": this.actions.help,
    };
    if (key === "escape") return this.#escape();
    const act = tool && !event.altKey ? () => this.#choose(tool) : acts[key];
    if (!act || (event.target.matches?.("input[type=range]") && event.key.startsWith("Arrow"))) return false;
    act();
    return true;
  }

  /** Takes back the stroke in progress; without one, Escape is left to an open panel, which it closes. */
  #escape() {
    if (!this.#pressed && !this.pointers.busy) return false;
    this.cancel();
    this.pointers.cancel();
    return true;
  }

  #choose(tool) {
    this.cancel();
    this.settings.set({ tool });
  }

  #canvasKey(event) {
    if (!this.stage.picture) return false;
    const { crosshair } = this.stage.guides;
    if (event.key in ARROWS) return this.#arrow(event);
    if (event.key === " " && !crosshair) return this.#space(true);
    if (event.key === " " || event.key === "Enter") return this.#press(event);
    if (event.key === "Delete" || event.key === "Backspace") return this.actions.clear(), true;
    return false;
  }

  #space(held) {
    if (this.pointers.space !== held) {
      this.pointers.space = held;
      this.pointers.refresh();
    }
    return true;
  }

  #arrow(event) {
    if (event.target !== this.stage.root) return false;
    const { guides, view } = this.stage;
    const [right, down] = ARROWS[event.key];
    if (!guides.crosshair) return this.#showCrosshair(), true;
    const step = this.step * (event.shiftKey ? LARGER : 1);
    const { width, height } = this.stage.picture ?? { width: 1, height: 1 };
    guides.crosshair = {
      x: Math.min(width, Math.max(0, guides.crosshair.x + right * step)),
      y: Math.min(height, Math.max(0, guides.crosshair.y + down * step)),
    };
    if (this.settings.tool === "hand") view.pan(-right * step * view.zoom, -down * step * view.zoom), this.stage.redraw();
    else if (view.reveal(guides.crosshair)) this.stage.redraw();
    this.#pressed?.move([guides.crosshair]);
    this.stage.redrawGuides();
    this.actions.announce(`${Math.round(guides.crosshair.x)}, ${Math.round(guides.crosshair.y)}`);
    return true;
  }

  /** Image pixels per arrow key: one, or as many as are well visible at this zoom. */
  get step() {
    return Math.max(1, Math.round(STEP / this.stage.view.zoom));
  }

  /** Enter or Space: paints while held; a rectangle or a lasso starts, and ends at the second press. */
  #press(event) {
    if (event.target !== this.stage.root) return false;
    const { crosshair } = this.stage.guides;
    if (!crosshair) return this.#showCrosshair(), true;
    if (event.repeat || this.pointers.busy) return true;
    const tool = this.tools[this.settings.tool];
    if (!tool) return true;
    if (this.#pressed) {
      this.#pressed.release();
      this.#pressed = null;
      return true;
    }
    if (!this.actions.begin()) return true;
    tool.press(crosshair, { remove: event.altKey, straight: event.shiftKey });
    this.#pressed = tool;
    if (this.settings.tool === "flood") this.#finish();
    return true;
  }

  #finish() {
    this.#pressed?.release();
    this.#pressed = null;
  }

  /** The crosshair appears at the pointer, or else in the middle of the stage. */
  #showCrosshair() {
    const { guides, view, picture } = this.stage;
    if (!picture || guides.crosshair) return;
    const centre = guides.cursor ?? view.toImage(view.width / 2, view.height / 2);
    guides.crosshair = {
      x: Math.min(picture.width, Math.max(0, Math.round(centre.x))),
      y: Math.min(picture.height, Math.max(0, Math.round(centre.y))),
    };
    this.stage.redrawGuides();
  }

  #hideCrosshair() {
    if (this.#pressed) HELD.includes(this.settings.tool) ? this.#finish() : this.cancel();
    this.stage.guides.crosshair = null;
    this.stage.redrawGuides();
  }
}

/**
 * The key in lower case. Where the layout has other letters than Latin ones, such as Cyrillic, the letter at its place.
 * @param {KeyboardEvent} event
 * @returns {string}
 */
export function keyOf(event) {
  const place = /^Key([A-Z])$/.exec(event.code);
  const other = place && /^\P{ASCII}/u.test(event.key) && !event.altKey && !event.getModifierState("AltGraph");
  return (other ? place[1] : event.key).toLowerCase();
}
