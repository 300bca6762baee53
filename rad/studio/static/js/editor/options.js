/** Options of the tools, of the overlay and of the extension. */

import { element, icon } from "./dom.js";
import { LARGEST_EXTENSION, SIDES, extension } from "./handles.js";
import { LARGEST_BRUSH } from "./settings.js";

const COLOURS = { Pink: "#ff2e88", Red: "#ff3b30", Yellow: "#ffcc00", Green: "#20c05c", Blue: "#2f7bff", White: "#ffffff" };
const SELECTIONS = ["rectangle", "lasso", "flood"];
let popovers = 0;

/**
 * A slider with its value as text.
 * @param {string} label
 * @param {{min: number, max: number, toText: (value: number) => string, set: (value: number) => void}} options
 * @returns {{root: HTMLElement, show: (value: number) => void}}
 */
function slider(label, { min, max, toText, set }) {
  const input = element("input", { type: "range", min: String(min), max: String(max), step: "1", "aria-label": label });
  const output = element("output", { class: "editor-value" });
  input.addEventListener("input", () => set(Number(input.value)));
  const root = element("label", { class: "editor-option" }, element("span", {}, label), input, output);
  const show = (value) => {
    input.value = String(value);
    output.textContent = toText(Number(input.value));
    input.setAttribute("aria-valuetext", output.textContent);
  };
  return { root, show };
}

/** Sliders of sizes are logarithmic: 0 to 100 for 1 to LARGEST_BRUSH. */
const toSlider = (size) => Math.round((Math.log(size) / Math.log(LARGEST_BRUSH)) * 100);
const fromSlider = (value) => Math.round(LARGEST_BRUSH ** (value / 100));

/** The size as a slider and as a number. */
function sizeOption(settings) {
  const range = slider("Size", {
    min: 0,
    max: 100,
    toText: () => "",
    set: (value) => {
      const size = fromSlider(value);
      const step = value > toSlider(settings.size) ? 1 : -1; // small sizes share positions of the slider
      settings.set({ size: size === settings.size ? size + step : size });
    },
  });
  const number = element("input", {
    type: "number",
    min: "1",
    max: String(LARGEST_BRUSH),
    "aria-label": "Size in pixels",
    class: "editor-number",
  });
  number.addEventListener("change", () => settings.set({ size: Number(number.value) || settings.size }));
  range.root.querySelector("output")?.remove();
  const show = (size) => {
    range.show(toSlider(size));
    range.root.querySelector("input")?.setAttribute("aria-valuetext", `${size} pixels`);
    number.value = String(size);
  };
  const unit = element("span", { class: "editor-unit", "aria-hidden": "true" }, "px");
  return { root: element("div", { class: "editor-option" }, range.root, number, unit), show };
}

/** Add or remove, for selections. */
function modeOption(settings) {
  const buttons = ["Add", "Remove"].map((label, index) => {
    const button = element("button", { type: "button", class: "editor-segment" }, label);
    button.addEventListener("click", () => settings.set({ remove: index === 1 }));
    return button;
  });
  const root = element("div", { class: "editor-segments", role: "group", "aria-label": "Effect on the hole" }, ...buttons);
  const show = (remove) => buttons.forEach((each, index) => each.setAttribute("aria-pressed", String(remove === (index === 1))));
  return { root, show };
}

/**
 * A button that opens a small panel below itself.
 * @returns {HTMLElement}
 */
function popover(label, name, title, ...children) {
  const id = `editor-popover-${++popovers}`;
  const panel = element(
    "div",
    { id, class: "editor-popover", popover: "auto", role: "group", "aria-label": title },
    element("h3", {}, title),
    ...children,
  );
  const attributes = { type: "button", class: "editor-button editor-wide", popovertarget: id, "aria-label": title, title };
  const button = element("button", attributes, icon(name), element("span", { class: "editor-word" }, label));
  panel.addEventListener("beforetoggle", (event) => button.setAttribute("aria-expanded", String(event.newState === "open")));
  panel.addEventListener("toggle", () => {
    const box = button.getBoundingClientRect();
    panel.style.top = `${Math.min(box.bottom + 6, innerHeight - panel.offsetHeight - 8)}px`;
    panel.style.left = `${Math.max(8, Math.min(box.left, innerWidth - panel.offsetWidth - 8))}px`;
  });
  return element("div", { class: "editor-popover-anchor" }, button, panel);
}

function overlayOption(settings) {
  const swatches = Object.entries(COLOURS).map(([label, color]) => {
    const swatch = element("button", { type: "button", class: "editor-swatch", "aria-label": label, title: label });
    swatch.style.backgroundColor = color;
    swatch.addEventListener("click", () => settings.set({ color }));
    return swatch;
  });
  const opacity = slider("Opacity", {
    min: 10,
    max: 100,
    toText: (value) => `${value} %`,
    set: (value) => settings.set({ opacity: value / 100 }),
  });
  const pressure = element("input", { type: "checkbox" });
  pressure.addEventListener("change", () => settings.set({ pressure: pressure.checked }));
  const root = popover(
    "Overlay",
    "colour",
    "Overlay of the hole",
    element("div", { class: "editor-swatches" }, ...swatches),
    opacity.root,
    element("label", { class: "editor-check" }, pressure, "Pen pressure changes the brush size"),
  );
  const show = () => {
    opacity.show(Math.round(settings.opacity * 100));
    pressure.checked = settings.pressure;
    const colors = Object.values(COLOURS);
    swatches.forEach((swatch, index) => swatch.setAttribute("aria-pressed", String(colors[index] === settings.color)));
  };
  return { root, show };
}

function extendOption(change) {
  let last = [0, 0, 0, 0];
  const fields = SIDES.map((side, index) => {
    const input = element("input", { type: "number", min: "0", max: String(LARGEST_EXTENSION), step: "1", value: "0" });
    input.addEventListener("change", () => change(last.map((old, at) => (at === index ? extension(input.value) : old))));
    return element("label", { class: "editor-field" }, side[0].toUpperCase() + side.slice(1), input);
  });
  const reset = element("button", { type: "button", class: "editor-button editor-wide" }, "No extension");
  reset.addEventListener("click", () => change([0, 0, 0, 0]));
  const root = popover(
    "Extend",
    "extend",
    "Extend the image",
    element("p", { class: "editor-note" }, "New pixels at each border, which will be filled. You can also drag the handles around the image."),
    element("div", { class: "editor-fields" }, ...fields),
    reset,
  );
  const show = (extend) => {
    last = extend;
    fields.forEach((field, index) => (field.querySelector("input").value = String(extend[index])));
    reset.disabled = !extend.some(Boolean);
  };
  return { root, show };
}

/**
 * @param {import("./settings.js").Settings} settings
 * @param {(extend: number[]) => void} extend
 * @returns {{root: HTMLElement, update: (state: {open: boolean, extend: number[]}) => void}}
 */
export function createOptions(settings, extend) {
  const size = sizeOption(settings);
  const edge = slider("Soft edge", {
    min: 0,
    max: 100,
    toText: (value) => `${value} %`,
    set: (value) => settings.set({ hardness: 1 - value / 100 }),
  });
  const tolerance = slider("Tolerance", { min: 0, max: 255, toText: String, set: (value) => settings.set({ tolerance: value }) });
  const mode = modeOption(settings);
  const overlay = overlayOption(settings);
  const borders = extendOption(extend);
  const hint = element("span", { class: "editor-hint" }, "Drag to move the image");
  const spacer = element("span", { class: "editor-spacer" });
  const root = element(
    "div",
    { class: "editor-row editor-options", role: "group", "aria-label": "Options of the tool" },
    ...[size.root, edge.root, mode.root, tolerance.root, hint, spacer, borders.root, overlay.root],
  );
  const refresh = () => {
    const painting = settings.tool === "brush" || settings.tool === "eraser";
    size.root.hidden = edge.root.hidden = !painting;
    mode.root.hidden = !SELECTIONS.includes(settings.tool);
    tolerance.root.hidden = settings.tool !== "flood";
    hint.hidden = settings.tool !== "hand";
    size.show(settings.size);
    edge.show(Math.round((1 - settings.hardness) * 100));
    tolerance.show(settings.tolerance);
    mode.show(settings.remove);
    overlay.show();
  };
  settings.addEventListener("change", refresh);
  refresh();
  const update = (state) => {
    borders.show(state.extend);
    borders.root.querySelector("[popovertarget]")?.toggleAttribute("disabled", !state.open);
  };
  return { root, update };
}
