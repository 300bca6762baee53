/** Flood selection: the connected pixels whose colour is near that of a start pixel. */

/** @typedef {import("./raster.js").Rect} Rect */

/**
 * Selects by scanlines; neighbours are the four pixels beside, above and below.
 *
 * A pixel belongs if none of red, green and blue differs from the start pixel by more than the tolerance.
 * @param {Uint8ClampedArray | Uint8Array} pixels RGBA, row by row
 * @param {number} width
 * @param {number} height
 * @param {number} column of the start pixel
 * @param {number} row of the start pixel
 * @param {number} tolerance 0 to 255
 * @returns {{selected: Uint8Array, rect: Rect}} 1 where selected, and the bounding box
 */
export function floodSelect(pixels, width, height, column, row, tolerance) {
  const selected = new Uint8Array(width * height);
  const near = nearColour(pixels, (row * width + column) * 4, tolerance);
  let [left, right, top, bottom] = [column, column, row, row];
  const stack = [row * width + column];
  while (stack.length) {
    const seed = /** @type {number} */ (stack.pop());
    if (selected[seed]) continue;
    const y = Math.floor(seed / width);
    const base = y * width;
    let start = seed;
    while (start > base && !selected[start - 1] && near(start - 1)) start--;
    let end = seed + 1;
    while (end < base + width && !selected[end] && near(end)) end++;
    selected.fill(1, start, end);
    left = Math.min(left, start - base);
    right = Math.max(right, end - 1 - base);
    top = Math.min(top, y);
    bottom = Math.max(bottom, y);
    if (y > 0) pushRuns(stack, selected, near, start - width, end - width);
    if (y + 1 < height) pushRuns(stack, selected, near, start + width, end + width);
  }
  return { selected, rect: { x: left, y: top, width: right - left + 1, height: bottom - top + 1 } };
}

/** @returns {(index: number) => boolean} whether a pixel has nearly the colour at byte `start` */
function nearColour(pixels, start, tolerance) {
  const [red, green, blue] = [pixels[start], pixels[start + 1], pixels[start + 2]];
  return (index) => {
    const byte = index * 4;
    return (
      Math.abs(pixels[byte] - red) <= tolerance &&
      Math.abs(pixels[byte + 1] - green) <= tolerance &&
      Math.abs(pixels[byte + 2] - blue) <= tolerance
    );
  };
}

/** Pushes the first pixel of each run in [start, end) that is near and not selected. */
function pushRuns(stack, selected, near, start, end) {
  let inside = false;
  for (let index = start; index < end; index++) {
    const belongs = !selected[index] && near(index);
    if (belongs && !inside) stack.push(index);
    inside = belongs;
  }
}
