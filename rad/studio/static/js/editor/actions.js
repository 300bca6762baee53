/** Actions of the buttons and of the keys. */

import { chooseFile, copyOf, download } from "./files.js";
import { safeName, stemOf } from "./names.js";

const IMAGES = "image/*,.tif,.tiff";
/** Names of mask files, such as cat-mask.png. */
const MASK_NAME = /(^|[^a-z])mask([^a-z]|$)|\.np[yz]$/i;
const MASKS = "image/*,.tif,.tiff,.npy,.npz";

/**
 * @param {import("./editor.js").Editor} editor
 * @param {() => void} help opens the help
 * @param {(message: string) => void} fail
 */
export function createActions(editor, help, fail) {
  const { painter, stage } = editor;

  /** An action on the mask: not during a stroke; a keyboard stroke is taken back first. */
  const idle = (act) => () => {
    if (editor.pointers.busy || !editor.begin()) return;
    editor.keys.cancel();
    act();
  };

  async function open() {
    const file = await chooseFile(IMAGES);
    if (file) await editor.open(file, file.name);
  }

  async function uploadMask() {
    const file = await chooseFile(MASKS);
    if (file) await useMask(file);
  }

  async function useMask(file) {
    const { image } = editor;
    try {
      const mask = await editor.openMaskFile(await copyOf(file));
      if (editor.image === image) await editor.setMask(mask);
    } catch (error) {
      fail(`Cannot use ${safeName(file.name)} as a mask: ${error.message ?? error}`);
    }
  }

  async function downloadMask() {
    const blob = await editor.maskBlob();
    if (blob) download(blob, `${stemOf(editor.image?.name ?? "image")}-mask.png`);
  }

  /**
   * Dropped or pasted files: an image, and a mask by its name. A mask alone is for the image that is open.
   * @param {File[]} files
   * @param {number} folders that are left out
   */
  async function drop(files, folders) {
    if (!files.length) return folders && fail("A folder cannot be opened: drop an image file");
    const masks = files.filter((file) => MASK_NAME.test(file.name));
    const others = files.filter((file) => !masks.includes(file));
    const image = others.find((file) => file.type.startsWith("image/")) ?? others[0] ?? (editor.image ? null : masks.shift());
    const stem = (file) => file && stemOf(safeName(file.name));
    const mask = masks.find((file) => stem(file) === `${stem(image ?? editor.image)}-mask`) ?? masks[0];
    if (image && !(await editor.open(image, image.name))) return;
    if (mask) await useMask(mask);
    const used = [image, mask].flatMap((file) => (file ? [safeName(file.name)] : []));
    if (files.length + folders === used.length) return;
    const were = used.length > 1 ? "were" : "was";
    fail(`Only ${used.join(" and ")} ${were} used: drop one image, and its mask if it has one`);
  }

  return {
    open,
    drop,
    uploadMask,
    downloadMask,
    help,
    undo: idle(() => painter.undo()),
    redo: idle(() => painter.redo()),
    invert: idle(() => painter.invert()),
    clear: idle(() => painter.clear()),
    fit: () => stage.fit(),
    zoom: (factor) => (stage.view.zoomAt(factor), stage.redraw()),
    extend: (extend) => (editor.extend = extend),
  };
}
