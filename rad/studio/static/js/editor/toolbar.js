/** The toolbar: buttons of the editor, and below them the options of the chosen tool. */

import { element, iconButton } from "./dom.js";
import { createOptions } from "./options.js";

const TOOL_BUTTONS = [
  ["brush", "Brush", "B"],
  ["eraser", "Eraser", "E"],
  ["rectangle", "Rectangle", "R"],
  ["lasso", "Lasso", "L"],
  ["flood", "Select by colour", "F"],
  ["hand", "Hand", "H"],
];

/**
 * @typedef {object} Actions
 * @property {() => void} open
 * @property {() => void} undo
 * @property {() => void} redo
 * @property {() => void} invert
 * @property {() => void} clear
 * @property {() => void} uploadMask
 * @property {() => void} downloadMask
 * @property {(factor: number) => void} zoom
 * @property {() => void} fit
 * @property {() => void} help
 * @property {(extend: number[]) => void} extend
 */

export class Toolbar {
  /**
   * @param {import("./settings.js").Settings} settings
   * @param {Actions} actions
   */
  constructor(settings, actions) {
    this.settings = settings;
    this.options = createOptions(settings, actions.extend);
    this.tools = Object.fromEntries(
      TOOL_BUTTONS.map(([name, label, key]) => [
        name,
        iconButton(/** @type {any} */ (name), label, key, () => settings.set({ tool: name })),
      ]),
    );
    this.buttons = {
      undo: iconButton("undo", "Undo", "Ctrl+Z", actions.undo),
      redo: iconButton("redo", "Redo", "Ctrl+Shift+Z", actions.redo),
      invert: iconButton("invert", "Invert the mask", "I", actions.invert),
      clear: iconButton("clear", "Clear the mask", "Delete", actions.clear),
      upload: iconButton("upload", "Open a mask file", "", actions.uploadMask),
      download: iconButton("download", "Download the mask", "", actions.downloadMask),
      out: iconButton("minus", "Zoom out", "-", () => actions.zoom(0.8)),
      in: iconButton("plus", "Zoom in", "+", () => actions.zoom(1.25)),
    };
    this.zoom = element("button", { type: "button", class: "editor-button editor-zoom", title: "Show the whole image (0)" });
    this.zoom.addEventListener("click", actions.fit);
    const open = iconButton("open", "Open an image", "Ctrl+O", actions.open);
    open.classList.add("editor-wide");
    open.append(element("span", { class: "editor-word" }, "Open"));
    const { undo, redo, invert, clear, upload, download, out, in: larger } = this.buttons;
    for (const button of [out, larger]) button.classList.add("editor-roomy");
    this.root = element(
      "div",
      { class: "editor-toolbar" },
      element(
        "div",
        { class: "editor-row", role: "toolbar", "aria-label": "Image and mask" },
        open,
        group("Tools", ...Object.values(this.tools)),
        group("History", undo, redo),
        group("Mask", invert, clear, upload, download),
        group("View", out, this.zoom, larger, iconButton("help", "Keys and gestures", "?", actions.help)),
      ),
      this.options.root,
    );
    settings.addEventListener("change", () => this.#refresh());
    this.#refresh();
  }

  /**
   * @param {{open: boolean, canUndo: boolean, canRedo: boolean, empty: boolean, zoom: number, extend: number[]}} state
   */
  update(state) {
    const { undo, redo, invert, clear, upload, download, out, in: larger } = this.buttons;
    undo.disabled = !state.canUndo;
    redo.disabled = !state.canRedo;
    clear.disabled = download.disabled = !state.open || state.empty;
    invert.disabled = upload.disabled = out.disabled = larger.disabled = this.zoom.disabled = !state.open;
    const percent = state.zoom * 100;
    this.zoom.textContent = state.open ? `${percent < 10 ? percent.toFixed(1) : Math.round(percent)} %` : "–";
    this.zoom.setAttribute("aria-label", `Show the whole image; the zoom is ${this.zoom.textContent}`);
    this.options.update(state);
  }

  #refresh() {
    for (const [name, button] of Object.entries(this.tools)) {
      button.setAttribute("aria-pressed", String(name === this.settings.tool));
    }
  }
}

function group(label, ...children) {
  return element("div", { class: "editor-group", role: "group", "aria-label": label }, ...children);
}
