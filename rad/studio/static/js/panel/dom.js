/** Elements from JavaScript: text is always text, never HTML. */

const ICONS = {
  open: "M3 7a2 2 0 0 1 2-2h4l2 3h8a2 2 0 0 1 2 2v7a2 2 0 0 1-2 2H5a2 2 0 0 1-2-2z",
  dice: "M5 3h14a2 2 0 0 1 2 2v14a2 2 0 0 1-2 2H5a2 2 0 0 1-2-2V5a2 2 0 0 1 2-2zM8.2 8.2v.01M12 12v.01M15.8 15.8v.01",
  theme: "M12 3a9 9 0 1 0 0 18zM12 3a9 9 0 0 1 0 18",
  download: "M12 4v11m0 0-4-4m4 4 4-4M5 20h14",
  copy: "M9 9h10v11H9zM15 9V4H5v11h4",
  zoom: "M10.5 4a6.5 6.5 0 1 0 0 13 6.5 6.5 0 0 0 0-13zM15.5 15.5 20 20M10.5 8v5M8 10.5h5",
  next: "M5 12h14m0 0-6-6m6 6-6 6",
  close: "M6 6l12 12M18 6 6 18",
  again: "M20 12a8 8 0 1 1-2.5-5.8M20 3v4h-4",
};

/**
 * Create an element.
 * @param {string} tag - name, with classes after dots: "button.primary"
 * @param {Record<string, any>} [props] - `on...`: listeners; `value`, `checked`, `disabled`, `hidden`: properties; else attributes
 * @param {...(Node|string|null|undefined|false)} children - strings become text
 * @returns {any} the element
 */
export function h(tag, props = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  const element = document.createElement(name);
  if (classes.length) element.className = classes.join(" ");
  for (const [key, value] of Object.entries(props)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (["value", "checked", "disabled", "hidden", "selected", "required", "open"].includes(key)) element[key] = value;
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(key, String(value));
  }
  element.append(...children.filter((child) => child || child === "").map((child) => child));
  return element;
}

/**
 * An icon of 24x24 units, drawn in the colour of the text.
 * @param {keyof typeof ICONS} name
 */
export function icon(name) {
  const namespace = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(namespace, "svg");
  const path = document.createElementNS(namespace, "path");
  const look = { viewBox: "0 0 24 24", fill: "none", stroke: "currentColor", "stroke-width": 1.8, "aria-hidden": "true" };
  for (const [key, value] of Object.entries(look)) svg.setAttribute(key, String(value));
  for (const [key, value] of Object.entries({ d: ICONS[name], "stroke-linecap": "round", "stroke-linejoin": "round" })) {
    path.setAttribute(key, value);
  }
  svg.append(path);
  return svg;
}

/**
 * A button with a text and perhaps an icon.
 * @param {string} text
 * @param {() => void} onclick
 * @param {{icon?: keyof typeof ICONS, look?: string, label?: string, id?: string}} [options] - look: classes; label: for screen readers
 */
export function button(text, onclick, options = {}) {
  const tag = ["button", "button", ...(options.look ? options.look.split(" ") : [])].join(".");
  const props = { type: "button", onclick, id: options.id, "aria-label": options.label, title: text ? null : options.label };
  return h(tag, props, options.icon && icon(options.icon), text);
}

/**
 * Tabs or a choice of few values, moved with the arrow keys.
 * @param {HTMLElement} list - element with role tablist or radiogroup
 * @param {[string, string][]} choices - value and text
 * @param {(value: string) => void} onchange
 * @returns {{select(value: string): void, enable(value: string, on: boolean): void}}
 */
export function segments(list, choices, onchange) {
  const tabs = list.getAttribute("role") === "tablist";
  const state = tabs ? "aria-selected" : "aria-checked";
  const buttons = choices.map(([value, text]) =>
    h("button.tab", { type: "button", role: tabs ? "tab" : "radio", "data-value": value, onclick: () => choose(value) }, text));
  list.replaceChildren(...buttons);

  function select(value) {
    const known = buttons.some((each) => each.dataset.value === value);
    for (const each of buttons) {
      const on = each.dataset.value === value;
      each.setAttribute(state, String(on));
      each.tabIndex = on || (!known && each === buttons[0]) ? 0 : -1;
    }
  }
  function choose(value) {
    select(value);
    onchange(value);
  }
  list.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const open = buttons.filter((each) => !each.disabled);
    const index = open.indexOf(/** @type {any} */ (document.activeElement));
    if (!step || index < 0) return;
    event.preventDefault();
    const target = open[(index + step + open.length) % open.length];
    target.focus();
    choose(target.dataset.value);
  });
  return {
    select,
    enable(value, on) {
      for (const each of buttons) if (each.dataset.value === value) each.disabled = !on;
    },
  };
}
