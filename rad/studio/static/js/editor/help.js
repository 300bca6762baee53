/** The help dialog: all keys and gestures. */

import { element } from "./dom.js";

const GROUPS = {
  Tools: [
    ["B", "Brush"],
    ["E", "Eraser"],
    ["R", "Rectangle"],
    ["L", "Lasso: all that the path encloses"],
    ["F", "Select by colour: connected pixels of a similar colour"],
    ["H", "Hand: move the image"],
    ["[, ]", "Smaller or larger brush"],
    ["Alt", "Remove instead of add, while held"],
    ["Shift + click", "Straight line from the last stroke"],
    ["Escape", "Cancel the stroke in progress"],
  ],
  Mask: [
    ["Ctrl Z", "Undo"],
    ["Ctrl Shift Z, Ctrl Y", "Redo"],
    ["I", "Invert"],
    ["Delete", "Clear"],
    ["Ctrl O", "Open an image"],
  ],
  View: [
    ["Wheel", "Zoom at the pointer"],
    ["Two fingers", "Zoom and move"],
    ["Space + drag", "Move; so does the middle button"],
    ["+, -", "Zoom in or out"],
    ["0", "Whole image"],
    ["1", "One image pixel per screen pixel"],
  ],
  "Fill and result": [
    ["Ctrl Enter", "Fill, or start the race"],
    ["O", "The original, while held"],
  ],
  "Without a mouse": [
    ["Tab", "Go to the image; a crosshair appears"],
    ["Arrow keys", "Move the crosshair; with Shift in larger steps"],
    ["Enter, Space", "Paint; hold and move for a line"],
    ["Enter twice", "Start and end of a rectangle or lasso"],
  ],
};

/** @returns {HTMLDialogElement} call showModal() to open it */
export function createHelp() {
  const close = element("button", { type: "button", class: "editor-button editor-wide" }, "Close");
  const groups = Object.entries(GROUPS).map(([title, rows]) =>
    element(
      "section",
      {},
      element("h3", {}, title),
      element(
        "dl",
        {},
        ...rows.map(([keys, text]) =>
          element("div", {}, element("dt", {}, ...keys.split(", ").flatMap(keyCap)), element("dd", {}, text)),
        ),
      ),
    ),
  );
  const dialog = element(
    "dialog",
    { class: "editor-help", "aria-labelledby": "editor-help-title" },
    element("header", {}, element("h2", { id: "editor-help-title" }, "Keys and gestures"), close),
    element("div", { class: "editor-help-groups" }, ...groups),
  );
  close.addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  return dialog;
}

function keyCap(text, index) {
  return index ? [" or ", element("kbd", {}, text)] : [element("kbd", {}, text)];
}
