/** Elements of the page without HTML text. */

const SVG = "http://www.w3.org/2000/svg";

/** Outlines on a grid of 24 x 24. */
const ICONS = {
  open: "M3 7a2 2 0 0 1 2-2h4l2 2h8a2 2 0 0 1 2 2v8a2 2 0 0 1-2 2H5a2 2 0 0 1-2-2zM12 16v-5M9.500 13.200 12 10.700l2.500 2.500",
  brush: "M20.500 3.500c-3 1-8 5.500-10.500 9l2 2c3.500-2.500 7.500-8 8.500-11zM9.500 13.500c-2.500-.3-4.300 1.200-4.500 3.500-.1 1.500-.8 2.300-2 2.800 3 1.400 7.800.9 8.300-3.500z",
  eraser: "M8 20h12M5.300 12.200l7.700-7.700a2 2 0 0 1 2.800 0l4.200 4.200a2 2 0 0 1 0 2.800L11.500 20H8.500l-3.200-3.200a3.200 3.200 0 0 1 0-4.600zM9.500 8l6.500 6.500",
  rectangle: "M4 8V5a1 1 0 0 1 1-1h3M11 4h2M16 4h3a1 1 0 0 1 1 1v3M20 11v2M20 16v3a1 1 0 0 1-1 1h-3M13 20h-2M8 20H5a1 1 0 0 1-1-1v-3M4 13v-2",
  lasso: "M7.500 15.600C4.900 14.600 3 12.700 3 10.500 3 7 7 4.500 12 4.500s9 2.500 9 6-4 6-9 6c-.9 0-1.700-.1-2.500-.2M7.500 18a2 2 0 1 0 0-4 2 2 0 0 0 0 4zM7.500 18c.2 1.200-.3 2-1.500 2.500",
  flood: "M4 20 14.500 9.500M13 8l3 3M17 3v3M15.500 4.500h3M20.500 8.500v2.500M19.300 9.700h2.400M10 3.500v2M9 4.500h2M19.500 14.500v2.500M18.300 15.700h2.400",
  hand: "M8 12.500V6.300a1.400 1.400 0 0 1 2.800 0V11V4.600a1.400 1.400 0 0 1 2.800 0V11V5.600a1.400 1.400 0 0 1 2.800 0V12V8.600a1.400 1.400 0 0 1 2.800 0V14c0 4-2.400 6.500-6 6.500-3 0-4.500-1.400-6-3.800l-2.600-4.200c-.8-1.400.9-2.600 2-1.400z",
  undo: "M8.500 5 4.500 9l4 4M4.500 9H14a5.500 5.500 0 0 1 0 11H9",
  redo: "M15.500 5l4 4-4 4M19.500 9H10a5.500 5.500 0 0 0 0 11h5",
  invert: "M12 4a8 8 0 1 0 0 16 8 8 0 0 0 0-16zM12 4v16M12 8.500l4-3M12 12.500l7-5M12 16.500l8-5.500M13.500 19.500l6-4.500",
  clear: "M5 7h14M10 7V5h4v2M6.500 7l.8 12a1 1 0 0 0 1 1h7.400a1 1 0 0 0 1-1l.8-12M10.200 10.500v6M13.800 10.500v6",
  upload: "M12 16V5M7.500 9 12 4.500 16.500 9M4.500 15.500V18a1.500 1.500 0 0 0 1.500 1.500h12a1.500 1.500 0 0 0 1.500-1.500v-2.500",
  download: "M12 4.500v11M7.500 11.500 12 16l4.500-4.500M4.500 15.500V18a1.500 1.500 0 0 0 1.500 1.500h12a1.500 1.500 0 0 0 1.500-1.500v-2.500",
  plus: "M12 5.500v13M5.500 12h13",
  minus: "M5.500 12h13",
  extend: "M8 8h8v8H8zM12 5V2.500M12 21.500V19M5 12H2.500M21.500 12H19M4.500 4.500h0M19.500 4.500h0M4.500 19.500h0M19.500 19.500h0",
  colour: "M12 3.500s-6 6.300-6 11a6 6 0 0 0 12 0c0-4.700-6-11-6-11zM9 14.500a3 3 0 0 0 3 3",
  help: "M9 9.200a3 3 0 1 1 4.500 2.600c-1 .6-1.500 1.100-1.500 2.200M12 17.200v.1M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18z",
};

/**
 * @param {string} tag
 * @param {Record<string, string | boolean>} [attributes] true: present without a value; false: absent
 * @param {...(Node | string)} children
 * @returns {any} the element
 */
export function element(tag, attributes = {}, ...children) {
  const created = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== false) created.setAttribute(name, value === true ? "" : value);
  }
  created.append(...children);
  return created;
}

/**
 * @param {keyof typeof ICONS} name
 * @returns {SVGElement}
 */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  svg.setAttribute("class", "editor-icon");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

/**
 * A button with an icon; its name is read aloud and shown as a tip with its key.
 * @param {keyof typeof ICONS} name of the icon
 * @param {string} label
 * @param {string} key for the tip, "" for none
 * @param {() => void} act
 * @returns {HTMLButtonElement}
 */
export function iconButton(name, label, key, act) {
  const title = key ? `${label} (${key})` : label;
  const button = element("button", { type: "button", class: "editor-button", "aria-label": label, title }, icon(name));
  button.addEventListener("click", act);
  return button;
}
