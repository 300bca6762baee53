/** A before/after slider for pointer, touch and keyboard. */

import { h } from "./dom.js";

/** Two canvases of the same size, one above the other; the upper one is shown left of the line. */
export class Slider {
  constructor() {
    this.before = h("canvas");
    this.after = h("canvas");
    this.line = h("div.line", { "aria-hidden": "true" }, h("span.knob"));
    this.names = [h("span.tag.left"), h("span.tag.right")];
    this.range = h("input.range", { type: "range", min: 0, max: 100, step: 1, value: 50, "aria-label": "Border between before and after, in percent",
      oninput: () => this.move(this.range.valueAsNumber) });
    this.frame = h("div.compare", {}, this.after, this.before, this.line, ...this.names);
    this.element = h("div.slider", {}, this.frame, this.range);
    this.frame.addEventListener("pointerdown", (event) => {
      this.frame.setPointerCapture(event.pointerId);
      this.follow(event);
      this.range.focus({ preventScroll: true });
    });
    this.frame.addEventListener("pointermove", (event) => this.frame.hasPointerCapture(event.pointerId) && this.follow(event));
    new ResizeObserver(() => this.layout()).observe(this.element);
    this.move(50);
  }

  /** @param {string} before @param {string} after - names shown in the corners */
  label(before, after) {
    this.names[0].textContent = before;
    this.names[1].textContent = after;
    this.layout();
  }

  /** Show only the left image while `on`. */
  peek(on) {
    this.frame.classList.toggle("peek", on);
    this.clip(on ? 100 : this.range.valueAsNumber);
  }

  move(percent) {
    this.range.value = String(percent);
    this.range.setAttribute("aria-valuetext", `${Math.round(percent)} percent`);
    this.clip(percent);
  }

  clip(percent) {
    this.before.style.clipPath = `inset(0 ${100 - percent}% 0 0)`;
    this.line.style.left = `${percent}%`;
  }

  follow(event) {
    const box = this.frame.getBoundingClientRect();
    this.move(Math.min(100, Math.max(0, (100 * (event.clientX - box.left)) / box.width)));
  }

  /** Make the frame as large as the space allows. */
  layout() {
    const { width, height } = this.after;
    this.element.style.setProperty("--ratio", String(width / height));
    const room = this.element.getBoundingClientRect();
    if (!room.width || !room.height) return;
    const scale = Math.min(room.width / width, room.height / height);
    this.frame.style.width = `${Math.floor(width * scale)}px`;
    this.frame.style.height = `${Math.floor(height * scale)}px`;
    this.element.classList.toggle("pixels", scale * devicePixelRatio >= 8);
  }
}
