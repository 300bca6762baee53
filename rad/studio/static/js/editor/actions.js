/** Actions of the buttons and of the keys. */

import { chooseFile, download } from "./files.js";
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
    try {
      await editor.setMask(await editor.openMaskFile(file));
    } catch (error) {
      fail(`Cannot use ${safeName(file.name)} as a mask: ${error.message ?? error}`);
    }
  }

  async function downloadMask() {
    const blob = await editor.maskBlob();
    if (blob) download(blob, `${stemOf(editor.image?.name ?? "image")}-mask.png`);
  }

  /** A dropped or pasted file: an image, or a mask by its name if there is an image. */
  async function drop(file) {
    if (editor.image && MASK_NAME.test(file.name)) await useMask(file);
    else await editor.open(file, file.name);
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
