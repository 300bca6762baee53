/** The status line: name, size, zoom and hole; and messages for screen readers. */

import { element } from "./dom.js";

const PAUSE = 300;
const SHOWN = 250;

export class Status {
  #facts = element("span", { class: "editor-facts" });
  #work = element("span", { class: "editor-work", role: "status" });
  #spoken = element("span", { class: "editor-spoken", "aria-live": "polite" });
  #timer = 0;

  constructor() {
    const keys = "Arrow keys move the crosshair, Enter or Space paints. Press question mark for all keys.";
    this.root = element(
      "div",
      { class: "editor-status" },
      this.#facts,
      this.#work,
      this.#spoken,
      element("span", { id: "editor-keys", class: "editor-spoken" }, keys),
    );
  }

  /**
   * @param {{image: {name: string, width: number, height: number} | null, zoom: number, share: number,
   *   extend: number[]}} state zoom in device pixels per image pixel
   */
  update({ image, zoom, share, extend }) {
    if (!image) return this.#facts.replaceChildren("No image");
    const parts = [`${image.width} × ${image.height}`, `zoom ${zoom < 0.1 ? (zoom * 100).toFixed(1) : Math.round(zoom * 100)} %`];
    const extended = extend.some(Boolean);
    if (share || !extended) parts.push(holeText(share));
    if (extended) {
      const [left, top, right, bottom] = extend;
      parts.push(`extended to ${image.width + left + right} × ${image.height + top + bottom}`);
    }
    this.#facts.replaceChildren(element("b", {}, image.name), ...parts.map((part) => element("span", {}, part)));
  }

  /**
   * Reads a text aloud; of texts in quick succession, the last.
   * @param {string} text
   */
  announce(text) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => (this.#spoken.textContent = text), PAUSE);
  }

  /**
   * Shows that something takes a while.
   * @param {string} text
   * @returns {() => void} call it at the end
   */
  working(text) {
    const timer = setTimeout(() => (this.#work.textContent = text), SHOWN);
    return () => {
      clearTimeout(timer);
      this.#work.textContent = "";
    };
  }
}

/**
 * @param {number} share of the image in the hole, 0 to 1
 * @returns {string}
 */
export function holeText(share) {
  const value = share * 100;
  if (value === 0) return "no hole yet: paint what should be replaced";
  const text = value < 0.1 ? "less than 0.1" : value < 10 ? value.toFixed(1) : String(Math.round(value));
  return `hole ${text} % of the image`;
}
