/** Results of this visit. */

import { h } from "./dom.js";
import { paint } from "./images.js";

const KEPT = 40;

/** Events: "open" (detail: {round, lane}). */
export class History extends EventTarget {
  /** @param {HTMLElement} element */
  constructor(element) {
    super();
    this.list = h("ul.history");
    this.element = h("section.results", { "aria-label": "Results of this visit", hidden: true }, h("h2", {}, "Results of this visit"), this.list);
    element.append(this.element);
  }

  /** Add a finished lane; the oldest beyond the limit are forgotten. */
  add(round, lane) {
    const canvas = h("canvas");
    paint(canvas, lane.filled.images[0], 128);
    const open = () => this.dispatchEvent(new CustomEvent("open", { detail: { round, lane } }));
    const text = `${lane.title}, ${round.input.name}`;
    this.list.prepend(h("li", {}, h("button.thumbnail", { type: "button", onclick: open, title: text, "aria-label": `Open ${text}` },
      canvas, h("span", {}, lane.title))));
    while (this.list.children.length > KEPT) this.list.lastChild.remove();
    this.element.hidden = false;
  }
}
