/** Files from the user: chosen, dropped or pasted; and files for the user. */

import { element } from "./dom.js";

/**
 * Lets the user choose a file.
 * @param {string} accept as the attribute of an input
 * @returns {Promise<File | null>}
 */
export function chooseFile(accept) {
  const input = element("input", { type: "file", accept });
  return new Promise((resolve) => {
    input.addEventListener("change", () => resolve(input.files[0] ?? null));
    input.addEventListener("cancel", () => resolve(null));
    input.click();
  });
}

/**
 * Hands a file to the user.
 * @param {Blob} blob
 * @param {string} name
 */
export function download(blob, name) {
  const url = URL.createObjectURL(blob);
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/**
 * First file of a drop or of a clipboard; images come first.
 * @param {DataTransfer | null} data
 * @returns {File | null}
 */
function firstFile(data) {
  const files = [...(data?.files ?? [])];
  return files.find((file) => file.type.startsWith("image/")) ?? files[0] ?? null;
}

/**
 * Files dropped on an element, and images pasted anywhere on the page except into fields.
 * @param {HTMLElement} root gets the class "editor-drop" while files are over it
 * @param {(file: File) => void} open
 */
export function listenForFiles(root, open) {
  let depth = 0;
  const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
  const show = () => root.classList.toggle("editor-drop", depth > 0);
  root.addEventListener("dragenter", (event) => hasFiles(event) && (event.preventDefault(), depth++, show()));
  root.addEventListener("dragleave", (event) => hasFiles(event) && ((depth = Math.max(0, depth - 1)), show()));
  root.addEventListener("dragover", (event) => hasFiles(event) && event.preventDefault());
  root.addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    depth = 0;
    show();
    const file = firstFile(event.dataTransfer);
    if (file) open(file);
  });
  document.addEventListener("paste", (event) => {
    if (event.target instanceof Element && event.target.closest("input, textarea, [contenteditable]")) return;
    const file = firstFile(event.clipboardData);
    if (!file) return;
    event.preventDefault();
    open(file);
  });
}
