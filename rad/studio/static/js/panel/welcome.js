/** The start page: open an image, try an example, or go back to an image that is open. */

import { button, h } from "./dom.js";

const STEPS = [
  ["Open an image", "or an example"],
  ["Brush", "over what should go"],
  ["Press Fill", "and compare"],
];

/** Events: "file" (detail: File); "example" (detail: one of `info.examples`); "back" and "reopen". */
export class Welcome extends EventTarget {
  /**
   * @param {HTMLElement} element
   * @param {any} info - of `backend.info()`
   * @param {(url: string) => Promise<Blob>} load
   */
  constructor(element, info, load) {
    super();
    const input = h("input", { type: "file", accept: "image/*", hidden: true, "aria-label": "Image file", onchange: chosen });
    const send = (file) => this.send("file", file);
    function chosen() {
      const [file] = input.files;
      input.value = ""; // else the same file cannot be chosen again
      if (file) send(file);
    }
    const steps = STEPS.map(([name, rest]) => h("li", {}, h("strong", {}, name), ` ${rest}`));
    const examples = info.examples.map((example) => this.card(example, load));
    this.images = h("div.row.wrap.images", { hidden: true });
    element.replaceChildren(h("div.welcome", {},
      h("h2", {}, "Replace part of a photograph"),
      h("p.lead", {}, `Brush over something, and a diffusion model paints what could be there. ${place(info)}`),
      h("ol.steps", {}, ...steps),
      button("Open image", () => input.click(), { icon: "open", look: "primary big" }), input,
      h("p.note", {}, "You can also drop an image here, or paste one."), this.images,
      examples.length ? h("h3", {}, "Or try an example") : null, h("div.examples", {}, ...examples)));
  }

  card(example, load) {
    const image = h("img", { alt: "" });
    load(example.image).then((blob) => {
      const url = URL.createObjectURL(blob);
      const free = () => URL.revokeObjectURL(url);
      Object.assign(image, { onload: free, onerror: free, src: url });
    }, () => null);
    return h("button.example", { type: "button", onclick: () => this.send("example", example) }, image, h("span", {}, example.title));
  }

  /**
   * Offer the images that a new one would replace.
   * @param {string} [current] name of the image in the editor
   * @param {string} [previous] name of the one before it
   */
  offer(current, previous) {
    const back = current && button(`Back to ${current}`, () => this.send("back"), { icon: "next" });
    const reopen = previous && button(`Reopen ${previous}`, () => this.send("reopen"), { icon: "again" });
    this.images.replaceChildren(...[back, reopen].filter(Boolean));
    this.images.hidden = !this.images.children.length;
  }

  send(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}

function place(info) {
  if (info.static) return "Everything stays in this browser.";
  const local = ["localhost", "127.0.0.1", "[::1]"].includes(location.hostname);
  return local ? "Everything stays on this computer." : "Your image is sent to this server only.";
}
