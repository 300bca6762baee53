/** Light, dark, or as the system: kept in this browser. */

import { button } from "./dom.js";

const THEMES = ["system", "light", "dark"];

/** A button that changes the theme. @returns {HTMLElement} */
export function themeButton() {
  let theme = read();
  const element = button("", () => apply(THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length]), { icon: "theme", look: "icon quiet" });

  function apply(name) {
    theme = name;
    if (name === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = name;
    element.setAttribute("aria-label", `Theme: ${name}`);
    element.title = `Theme: ${name}`;
    try {
      localStorage.setItem("rad-theme", name);
    } catch {
      // Without storage the theme lasts for this visit.
    }
  }
  apply(theme);
  return element;
}

function read() {
  try {
    const stored = localStorage.getItem("rad-theme") ?? "";
    return THEMES.includes(stored) ? stored : "system";
  } catch {
    return "system";
  }
}
