/** Labelled inputs of the settings, and those that a method describes. */

import { h } from "./dom.js";

let count = 0;

/**
 * A label above an input, with a note below.
 * @param {string} text
 * @param {HTMLElement} input
 * @param {string} [note]
 */
export function labelled(text, input, note) {
  input.id ||= `field-${(count += 1)}`;
  if (note) input.setAttribute("aria-describedby", `${input.id}-note`);
  return h("div.field", {}, h("label", { for: input.id }, text), input, note && h("p.note", { id: `${input.id}-note` }, note));
}

/**
 * An input for a number.
 * @param {number|string} value
 * @param {{min?: number|null, max?: number|null, whole?: boolean, label?: string, onchange?: (event: Event) => void}} [options]
 */
export function numberInput(value, { min, max, whole = true, label, onchange } = {}) {
  const props = { type: "number", inputmode: whole ? "numeric" : "decimal", step: whole ? 1 : "any", min, max, value, required: true };
  return h("input.input", { ...props, "aria-label": label, ...(onchange && { oninput: onchange }) });
}

/**
 * A list to choose one value from.
 * @param {[string, string][]} choices - value and text
 * @param {string} value
 * @param {(value: string) => void} [onchange]
 */
export function selectInput(choices, value, onchange) {
  const options = choices.map(([key, text]) => h("option", { value: key, selected: key === value }, text));
  return h("select.input", onchange ? { onchange: (event) => onchange(event.target.value) } : {}, ...options);
}

/**
 * A field for a setting of a method, as GET /v1/methods describes it.
 * @param {{name: string, type: string, default: any, low?: number, high?: number, choices?: string[], help: string}} setting
 * @param {any} value
 * @param {(value: any) => void} onchange
 */
export function settingField(setting, value, onchange) {
  const title = setting.name.replaceAll("_", " ");
  if (setting.type === "bool") {
    const box = h("input", { type: "checkbox", checked: Boolean(value), onchange: () => onchange(box.checked) });
    return h("div.field", {}, h("label.check", {}, box, title), h("p.note", {}, setting.help));
  }
  if (setting.type === "choice") {
    const choices = (setting.choices ?? []).map((each) => /** @type {[string, string]} */ ([String(each), String(each)]));
    return labelled(title, selectInput(choices, String(value), onchange), setting.help);
  }
  if (setting.type === "text") {
    const input = h("input.input", { type: "text", value: value ?? "", oninput: () => onchange(input.value) });
    return labelled(title, input, setting.help);
  }
  const options = { min: setting.low, max: setting.high, whole: setting.type === "int" };
  const input = numberInput(value, { ...options, onchange: () => onchange(input.valueAsNumber) });
  return labelled(title, input, setting.help);
}
