/** Saves the editor's state a moment after its last change, and at once when the page is left. */

import { Storage } from "./storage.js";

/** @typedef {import("./storage.js").Saved} Saved */

const PAUSE = 300;

export class Saver {
  #storage = new Storage();
  #timer = 0;
  /** @type {Saved["image"] | null} that is not saved yet */ #image = null;
  #failed = false;
  /** @type {Promise<void>} */ #written = Promise.resolve();

  /**
   * @param {() => Saved["edit"] | null} edit the state to save; null: none
   * @param {(message: string) => void} fail
   */
  constructor(edit, fail) {
    this.edit = edit;
    this.fail = fail;
    document.addEventListener("visibilitychange", () => document.hidden && this.flush());
    window.addEventListener("pagehide", () => this.flush());
  }

  /** @param {Saved["image"]} image to save with the next edit, at once */
  keepImage(image) {
    this.#image = image;
    this.#timer = setTimeout(() => this.flush(), 0);
  }

  schedule() {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.flush(), this.#image ? 0 : PAUSE);
  }

  /** Saves what is scheduled; resolves when all is written, or was refused. */
  flush() {
    if (this.#timer) {
      clearTimeout(this.#timer);
      this.#timer = 0;
      this.#written = this.#write();
    }
    return this.#written;
  }

  async #write() {
    const edit = this.edit();
    const image = this.#image;
    this.#image = null;
    if (!edit) return;
    try {
      await this.#storage.save(edit, image);
      this.#failed = false;
    } catch (error) {
      this.#image ??= image;
      if (!this.#failed) this.fail(`This browser cannot keep your work (${reason(error)}). You can go on without that.`);
      this.#failed = true;
    }
  }

  /** @returns {Promise<Saved | null>} of the last visit; null also where the browser keeps nothing */
  async load() {
    try {
      return await this.#storage.load();
    } catch (error) {
      if (error?.name === "TimeoutError") this.fail(`The work of your last visit cannot be read (${reason(error)}). You can go on without it.`);
      return null;
    }
  }
}

function reason(error) {
  if (error?.name === "SecurityError") return "it blocks the data of this site";
  return error?.name === "QuotaExceededError" ? "its storage is full" : (error?.message ?? "no storage");
}
