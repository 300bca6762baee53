/** Files from the user: chosen, dropped or pasted; and files for the user. */

import { element, icon } from "./dom.js";

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
 * A copy in memory: a file on the disk may change, move or vanish while it is open.
 * @param {Blob & {name?: string}} file
 * @returns {Promise<File>} of the same name and type; rejects if the file is a folder, gone or empty
 */
export async function copyOf(file) {
  const bytes = await file.arrayBuffer().catch(() => {
    throw new Error("it cannot be read; drop or choose an image file");
  });
  if (!bytes.byteLength) throw new Error("the file is empty");
  return new File([bytes], file.name ?? "image", { type: file.type });
}

/**
 * Files and folders of a drop or of a clipboard.
 * @param {DataTransfer | null} data
 * @returns {{files: File[], folders: number}}
 */
function contentOf(data) {
  const items = [...(data?.items ?? [])].filter((item) => item.kind === "file");
  const plain = items.filter((item) => !item.webkitGetAsEntry?.()?.isDirectory);
  const files = plain.map((item) => item.getAsFile()).filter((file) => file !== null);
  return { files, folders: items.length - plain.length };
}

/** Whether a field takes a paste: numbers take text, and sliders and boxes nothing. */
function takesPaste(target, data) {
  if (!(target instanceof Element)) return false;
  if (target.matches("input[type=number]")) return data?.types.includes("text/plain") ?? false;
  return target.closest("input:not([type=range], [type=checkbox], [type=radio]), textarea, [contenteditable]") !== null;
}

/**
 * Files dropped or pasted anywhere on the page, except into fields that take a paste.
 * @param {HTMLElement} root gets the class "editor-drop" while files are over the page
 * @param {(files: File[], folders: number) => void} open is called with the files, and how many folders are left out
 */
export function listenForFiles(root, open) {
  let depth = 0;
  const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
  const show = () => root.classList.toggle("editor-drop", depth > 0);
  document.addEventListener("dragenter", (event) => hasFiles(event) && (event.preventDefault(), depth++, show()));
  document.addEventListener("dragleave", (event) => hasFiles(event) && ((depth = Math.max(0, depth - 1)), show()));
  document.addEventListener("dragover", (event) => hasFiles(event) && event.preventDefault());
  document.addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    depth = 0;
    show();
    const { files, folders } = contentOf(event.dataTransfer);
    open(files, folders);
  });
  document.addEventListener("paste", (event) => {
    if (takesPaste(event.target, event.clipboardData)) return;
    const { files, folders } = contentOf(event.clipboardData);
    if (!files.length) return;
    event.preventDefault();
    open(files, folders);
  });
}

/**
 * What the stage shows without an image.
 * @param {(file: File) => void} open
 * @returns {HTMLElement}
 */
export function createEmpty(open) {
  const label = "Open image";
  const button = element("button", { type: "button", class: "editor-button editor-wide editor-main" }, icon("open"), label);
  button.addEventListener("click", async () => {
    const file = await chooseFile("image/*,.tif,.tiff");
    if (file) open(file);
  });
  return element(
    "div",
    { class: "editor-empty" },
    element("p", { class: "editor-empty-title" }, "Open a photo to start"),
    button,
    element("p", { class: "editor-note" }, "You can also drop a file here, or paste an image."),
  );
}
