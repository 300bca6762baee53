/**
 * Windows of the model's size over the holes of larger images, equal to rad/inpainting/canvas/windows.py.
 *
 * @typedef {object} Box in pixels; bottom and right are exclusive
 * @property {number} top
 * @property {number} left
 * @property {number} bottom
 * @property {number} right
 * @typedef {object} Window
 * @property {Box} window the model's input
 * @property {Box} core the part that is kept
 */

/**
 * Bounding boxes of the 8-connected parts of a mask, in the order of their first pixels.
 * @param {Uint8Array} mask (H * W) @param {number} width
 * @returns {Box[]}
 */
export function components(mask, width) {
  const seen = new Uint8Array(mask.length);
  const boxes = [];
  for (let first = 0; first < mask.length; first++) {
    if (mask[first] && !seen[first]) boxes.push(boxOf(mask, width, first, seen));
  }
  return boxes;
}

/** The box of the part that holds the pixel `first`; marks its pixels as seen. */
function boxOf(mask, width, first, seen) {
  const height = mask.length / width;
  const box = { top: height, left: width, bottom: 0, right: 0 };
  const open = [first];
  seen[first] = 1;
  while (open.length) {
    const at = open.pop();
    const [row, column] = [Math.floor(at / width), at % width];
    box.top = Math.min(box.top, row);
    box.left = Math.min(box.left, column);
    box.bottom = Math.max(box.bottom, row + 1);
    box.right = Math.max(box.right, column + 1);
    for (let y = Math.max(row - 1, 0); y <= Math.min(row + 1, height - 1); y++) {
      for (let x = Math.max(column - 1, 0); x <= Math.min(column + 1, width - 1); x++) {
        const near = y * width + x;
        if (mask[near] && !seen[near]) {
          seen[near] = 1;
          open.push(near);
        }
      }
    }
  }
  return box;
}

/**
 * Windows whose cores cover every hole pixel.
 * @param {Uint8Array} hole (H * W), with H, W >= size
 * @param {number} width W
 * @param {{size: number, margin: number}} options margin: between a window's edge and its core; 0 at the image's edge
 * @returns {Window[]}
 */
export function planWindows(hole, width, { size, margin }) {
  const height = hole.length / width;
  if (!Number.isInteger(margin) || margin < 0 || 2 * margin >= size) {
    throw new Error(`margin is ${margin}; allowed are whole numbers from 0 to ${Math.ceil(size / 2) - 1}`);
  }
  const open = Uint8Array.from(hole);
  const windows = [];
  for (const box of components(hole, width)) {
    for (const rows of cuts(box.top, box.bottom, height, size, margin)) {
      for (const columns of cuts(box.left, box.right, width, size, margin)) {
        const core = { top: rows.inner, left: columns.inner, bottom: rows.outer, right: columns.outer };
        if (!countIn(open, width, core)) continue;
        eachRow(width, core, (start, end) => open.fill(0, start, end));
        const window = { top: rows.start, left: columns.start, bottom: rows.start + size, right: columns.start + size };
        windows.push({ window, core });
      }
    }
  }
  return windows;
}

/** Windows along one axis that cover [first, last). */
function cuts(first, last, length, size, margin) {
  const count = Math.max(1, Math.ceil((last - first) / (size - 2 * margin)));
  return Array.from({ length: count }, (_, number) => {
    const middle = first + ((last - first) * (2 * number + 1)) / (2 * count);
    const start = Math.min(Math.max(0, roundToEven(middle - size / 2)), length - size);
    const inner = start === 0 ? 0 : start + margin;
    return { start, inner, outer: length === start + size ? length : start + size - margin };
  });
}

/** Python's round(): ties to even. */
export function roundToEven(value) {
  const below = Math.floor(value);
  const rest = value - below;
  return rest > 0.5 || (rest === 0.5 && below % 2 !== 0) ? below + 1 : below;
}

/** Call `visit(start, end)` for the pixels of each row of a box. */
export function eachRow(width, box, visit) {
  for (let y = box.top; y < box.bottom; y++) visit(y * width + box.left, y * width + box.right);
}

/** Number of pixels of a mask in a box. */
export function countIn(mask, width, box) {
  let count = 0;
  eachRow(width, box, (start, end) => {
    for (let i = start; i < end; i++) count += mask[i] ? 1 : 0;
  });
  return count;
}

/**
 * The windows to fill next. They do not overlap, and have known pixels if any remaining window has; most known first.
 * @param {Uint8Array} unknown (H * W), pixels still to fill @param {number} width @param {Window[]} windows at least one
 * @returns {Window[]}
 */
export function nextWave(unknown, width, windows) {
  const counted = windows.map((window) => ({ window, count: countIn(unknown, width, window.window) }));
  counted.sort((one, other) => one.count - other.count);
  const { top, left, bottom, right } = windows[0].window;
  const full = (bottom - top) * (right - left);
  if (counted[0].count === full) return [counted[0].window];
  const taken = new Uint8Array(unknown.length);
  const wave = [];
  for (const { window, count } of counted) {
    if (count === full || countIn(taken, width, window.window)) continue;
    eachRow(width, window.window, (start, end) => taken.fill(1, start, end));
    wave.push(window);
  }
  return wave;
}
