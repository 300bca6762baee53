/** The editor: an image, a mask over it, and the tools to change the mask. */

import { encodePng } from "../png.js";
import { createActions } from "./actions.js";
import { element } from "./dom.js";
import { copyOf, createEmpty, listenForFiles } from "./files.js";
import { Handles, extension } from "./handles.js";
import { createHelp } from "./help.js";
import { Keys } from "./keys.js";
import { safeName } from "./names.js";
import { Painter } from "./painter.js";
import { Picture, decodeAny, greyOf } from "./picture.js";
import { Pointers } from "./pointers.js";
import { Saver } from "./saver.js";
import { Settings } from "./settings.js";
import { Stage } from "./stage.js";
import { Status, holeText } from "./status.js";
import { Toolbar } from "./toolbar.js";
import { createTools } from "./tools.js";

/**
 * Events: "image", "mask", "extend" after a change; "show" when painting ends the display of a result; "error" with
 * a message in `detail`.
 */
export class Editor extends EventTarget {
  /** Turns a mask file into a PNG that the browser reads; set it to accept more formats. */
  openMaskFile = async (/** @type {Blob} */ file) => /** @type {Blob} */ (file);
  /** Turns an image of a format unknown to the browser into a PNG. */
  decodeImage = async (/** @type {Blob} */ _file) => /** @type {Blob} */ (await Promise.reject(new Error("unknown format")));

  /** @type {{blob: Blob, name: string, width: number, height: number} | null} */ image = null;
  /** The image that the current one replaced, with its mask. @type {(import("./saver.js").Saved & {image: {name: string}}) | null} */ previous = null;
  settings = new Settings();
  stage = new Stage(this.settings);
  painter = new Painter(this.stage, this.settings, () => this.#changed("mask"));
  /** Shown while there is no image; the page may add to it. */
  empty = createEmpty((file) => this.open(file, file.name));
  #status = new Status();
  #saver = new Saver(() => this.#edit(), (message) => this.#fail(message));
  #help = createHelp();
  #opening = 0;

  /** @param {HTMLElement} root an empty element, which the editor fills */
  constructor(root) {
    super();
    const begin = () => this.begin();
    const actions = createActions(this, () => this.#help.showModal(), (message) => this.#fail(message));
    const tools = createTools(this.painter, this.settings);
    this.pointers = new Pointers(this.stage, this.settings, tools, begin);
    this.handles = new Handles(this.stage, (extend, final) => this.#extend(extend, final));
    this.toolbar = new Toolbar(this.settings, actions);
    const announce = (text) => this.#status.announce(text);
    this.keys = new Keys(this.stage, this.settings, tools, this.pointers, { ...actions, begin, announce });
    this.stage.root.append(this.empty, element("div", { class: "editor-drop-note", "aria-hidden": "true" }, "Drop to open"));
    root.classList.add("editor");
    root.append(this.toolbar.root, this.stage.root, this.#status.root, this.#help);
    listenForFiles(root, actions.drop);
    this.stage.moved = () => this.#refresh();
    this.settings.addEventListener("change", () => this.#settingsChanged());
    this.toolbar.root.addEventListener("click", (event) => this.#clicked(event));
    this.#settingsChanged();
  }

  get extend() {
    return [...this.stage.extend];
  }

  set extend(values) {
    this.#extend([0, 1, 2, 3].map((side) => extension(values[side])), true);
  }

  /** Whether the mask has values between 0 and 255. */
  get soft() {
    return this.painter.mask?.soft ?? false;
  }

  /**
   * Opens an image; the mask, the history and the extension start anew.
   * @param {Blob} file
   * @param {string} [name]
   * @returns {Promise<boolean>} false if it cannot be read, after the event "error"
   */
  async open(file, name) {
    const safe = safeName(name, file.type);
    const turn = ++this.#opening;
    const done = this.#status.working(`Opening ${safe} …`);
    try {
      const blob = await copyOf(file);
      const { picture, view } = await decodeAny(blob, (each) => this.decodeImage(each));
      if (turn !== this.#opening) return picture.close(), false;
      this.#install(picture, blob, safe);
      this.#saver.keepImage({ blob, view, name: safe });
      this.#changed("image");
      return true;
    } catch (error) {
      this.#fail(`Cannot open ${safe}: ${error.message ?? error}`);
      return false;
    } finally {
      done();
    }
  }

  /** @returns {Promise<Blob | null>} 8-bit grey PNG of the image's size, 255 = fill; null if the mask is empty */
  async maskBlob() {
    const { mask } = this.painter;
    return mask && !mask.empty ? encodePng(mask.data, mask.width, mask.height) : null;
  }

  /**
   * Replaces the mask, as one step that can be undone.
   * @param {Blob} blob PNG of the image's size, white = fill
   * @returns {Promise<boolean>} false if it does not fit, after the event "error"
   */
  async setMask(blob) {
    try {
      const { image } = this;
      if (!image) throw new Error("open an image first.");
      const { data, width, height } = await greyOf(blob);
      if (width !== image.width || height !== image.height) {
        throw new Error(`it has ${width} × ${height} pixels, the image ${image.width} × ${image.height}.`);
      }
      this.painter.replace(data);
      return true;
    } catch (error) {
      this.#fail(`The mask cannot be used: ${error.message ?? error}`);
      return false;
    }
  }

  /**
   * Draws a result in place of the image, in the same view.
   * @param {Blob | null} blob null: the image again
   */
  async show(blob) {
    const turn = (this.showing = (this.showing ?? 0) + 1);
    const result = blob && (await Picture.decode(blob));
    if (turn !== this.showing) return result?.close();
    this.stage.result?.close();
    this.stage.result = result;
    this.stage.redraw();
  }

  /** Brings back the image, the mask and the extension of the last visit. */
  async restore() {
    const saved = await this.#saver.load();
    if (!saved || this.image || this.#opening) return;
    const { image, edit } = saved;
    try {
      const blob = await copyOf(image.blob);
      const { picture } = await decodeAny(image.view ?? blob, (file) => this.decodeImage(file));
      if (this.#opening) return picture.close();
      this.#install(picture, blob, image.name);
      this.#saver.keepImage(image);
      this.#continue(edit);
    } catch (error) {
      this.#fail(`The image of the last visit cannot be opened: ${error.message ?? error}`);
    }
  }

  /** Exchanges the image with the one before it, with its mask and extension; the history starts anew. */
  async reopen() {
    const before = this.previous;
    if (before && (await this.open(before.image.blob, before.image.name))) this.#continue(before.edit);
  }

  /** Takes over the mask and the extension that were saved for the image. */
  #continue(edit) {
    const { mask } = this.painter;
    if (mask && edit.width === mask.width && edit.height === mask.height) mask.unpack(edit.tiles);
    this.stage.extend = [0, 1, 2, 3].map((side) => extension(edit.extend[side]));
    this.stage.fit();
    for (const event of ["image", "mask", "extend"]) this.#changed(event);
  }

  /** Saves the work in this browser now; it is also saved a moment after each change. */
  save() {
    return this.#saver.flush();
  }

  #install(picture, blob, name) {
    const { stage } = this;
    this.pointers.cancel();
    this.keys.cancel();
    stage.picture?.close();
    stage.result?.close();
    this.showing = (this.showing ?? 0) + 1;
    stage.result = null;
    stage.picture = picture;
    const edit = this.#edit();
    if (this.image && edit) this.previous = { image: { ...this.image, view: null }, edit };
    stage.extend = [0, 0, 0, 0];
    this.image = { blob, name, width: picture.width, height: picture.height };
    this.painter.reset(picture.width, picture.height);
    this.empty.hidden = true;
    this.settings.set({ size: Math.max(2, Math.round(Math.min(picture.width, picture.height) / 12)) });
    stage.fit();
  }

  /** Before the mask changes: ends the display of a result. @returns {boolean} false: there is no image */
  begin() {
    if (!this.image) return false;
    if (this.stage.result) {
      this.show(null);
      this.dispatchEvent(new CustomEvent("show", { detail: null }));
    }
    return true;
  }

  #extend(extend, final) {
    if (!this.image) return;
    this.stage.extend = extend;
    if (final && this.stage.view.fitted) this.stage.fit();
    else this.stage.redraw();
    if (final) this.#changed("extend");
  }

  #changed(event) {
    this.#refresh();
    this.#saver.schedule();
    if (event === "mask") this.#status.announce(holeText(this.painter.mask?.share ?? 0));
    this.dispatchEvent(new CustomEvent(event));
  }

  #refresh() {
    const { mask, history } = this.painter;
    this.handles.place();
    const state = {
      image: this.image,
      open: this.image !== null,
      canUndo: history?.canUndo ?? false,
      canRedo: history?.canRedo ?? false,
      empty: mask?.empty ?? true,
      share: mask?.share ?? 0,
      zoom: this.stage.view.zoom * this.stage.view.ratio,
      extend: this.extend,
    };
    this.toolbar.update(state);
    this.#status.update(state);
  }

  /** A click on a button leaves the keys, such as Space, to the image; a button that was pressed by key keeps them. */
  #clicked(event) {
    const button = event.detail > 0 && event.target.closest("button");
    if (button && this.image && !button.closest("[popover]") && !button.hasAttribute("popovertarget")) {
      this.stage.root.focus({ preventScroll: true });
    }
  }

  #settingsChanged() {
    const { settings, stage } = this;
    const painting = settings.tool === "brush" || settings.tool === "eraser";
    Object.assign(stage.guides, { radius: painting ? settings.size / 2 : 0, hardness: settings.hardness });
    if (settings.tool !== "flood") stage.picture?.forgetPixels();
    this.pointers.refresh();
    stage.redraw();
  }

  #edit() {
    const { mask } = this.painter;
    return mask && { width: mask.width, height: mask.height, tiles: mask.pack(), extend: this.extend };
  }

  #fail(message) {
    this.#status.announce(message);
    this.dispatchEvent(new CustomEvent("error", { detail: message }));
  }
}
