/** What is shown before there is an image: open one, or try an example. */

import { button, h } from "./dom.js";

const STEPS = [
  ["Open an image", "or an example"],
  ["Brush", "over what should go"],
  ["Press Fill", "and compare"],
];

/** Events: "file" (detail: File); "example" (detail: one of `info.examples`). */
export class Welcome extends EventTarget {
  /**
   * @param {HTMLElement} element
   * @param {any} info - of `backend.info()`
   * @param {(url: string) => Promise<Blob>} load
   */
  constructor(element, info, load) {
    super();
    const input = h("input", { type: "file", accept: "image/*", hidden: true, "aria-label": "Image file",
      onchange: () => input.files[0] && this.send("file", input.files[0]) });
    const steps = STEPS.map(([name, rest]) => h("li", {}, h("strong", {}, name), ` ${rest}`));
    const examples = info.examples.map((example) => this.card(example, load));
    element.replaceChildren(h("div.welcome", {},
      h("h2", {}, "Replace part of a photograph"),
      h("p.lead", {}, `Brush over something, and a diffusion model paints what could be there. ${place(info)}`),
      h("ol.steps", {}, ...steps),
      button("Open image", () => input.click(), { icon: "open", look: "primary big" }), input,
      h("p.note", {}, "You can also drop an image here, or paste one."),
      examples.length ? h("h3", {}, "Or try an example") : null, h("div.examples", {}, ...examples)));
    element.addEventListener("dragover", (event) => event.preventDefault());
    element.addEventListener("drop", (event) => {
      event.preventDefault();
      if (event.dataTransfer?.files[0]) this.send("file", event.dataTransfer.files[0]);
    });
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

  send(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}

function place(info) {
  if (info.static) return "Everything stays in this browser.";
  const local = ["localhost", "127.0.0.1", "[::1]"].includes(location.hostname);
  return local ? "Everything stays on this computer." : "Your image is sent to this server only.";
}
