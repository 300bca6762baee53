/**
 * Shapes into masks: strokes, rectangles, polygons. Pure functions of numbers, in image pixels.
 *
 * The centre of pixel (column, row) is (column + 0.5, row + 0.5). A pixel is judged by its centre alone.
 */

/** @typedef {{x: number, y: number, width: number, height: number}} Rect in whole pixels */
/** @typedef {{x: number, y: number, radius: number}} Dab a position of the brush */
/** @typedef {{data: Uint8Array, width: number, height: number}} Plane 0 = keep, 255 = fill, row by row */

/** Below this radius a dab could fall between four pixel centres and paint nothing. */
export const SMALLEST_RADIUS = 0.7072;

/**
 * Part of a rectangle inside width x height pixels, rounded outwards.
 * @returns {Rect} width or height is 0 if nothing is inside
 */
export function clip(left, top, right, bottom, width, height) {
  const x = Math.max(0, Math.floor(left));
  const y = Math.max(0, Math.floor(top));
  return {
    x,
    y,
    width: Math.max(0, Math.min(width, Math.ceil(right)) - x),
    height: Math.max(0, Math.min(height, Math.ceil(bottom)) - y),
  };
}

/**
 * Pixels that a stroke from one dab to the next can change.
 * @param {Dab} from
 * @param {Dab} to
 * @returns {Rect}
 */
export function strokeBounds(from, to, width, height) {
  const radius = Math.max(from.radius, to.radius, SMALLEST_RADIUS);
  return clip(
    Math.min(from.x, to.x) - radius,
    Math.min(from.y, to.y) - radius,
    Math.max(from.x, to.x) + radius,
    Math.max(from.y, to.y) + radius,
    width,
    height,
  );
}

/**
 * Value of the brush at a distance from its path.
 *
 * 255 up to `hardness * radius`, then a smoothstep to 0 at the radius; a hardness of 1 gives 0 and 255 alone.
 * @param {number} distance pixels
 * @param {number} radius pixels
 * @param {number} hardness 0 to 1
 * @returns {number} 0 to 255, rounded half up
 */
export function coverage(distance, radius, hardness) {
  if (distance > radius) return 0;
  const inner = radius * hardness;
  if (distance <= inner) return 255;
  const rest = (radius - distance) / (radius - inner);
  return Math.floor(255 * rest * rest * (3 - 2 * rest) + 0.5);
}

/**
 * Paints the line between two dabs: each pixel takes the brush's value at its distance from the line.
 *
 * The mask becomes max(mask, value), or min(mask, 255 - value) to erase. Both are idempotent: a result does not
 * depend on how a straight path is divided. The radius varies linearly between the dabs.
 * @param {Plane} plane
 * @param {Dab} from
 * @param {Dab} to
 * @param {{hardness: number, erase: boolean}} brush
 */
export function paintStroke(plane, from, to, brush) {
  const bounds = strokeBounds(from, to, plane.width, plane.height);
  const first = Math.max(from.radius, SMALLEST_RADIUS);
  const change = Math.max(to.radius, SMALLEST_RADIUS) - first;
  const line = { x: from.x, y: from.y, dx: to.x - from.x, dy: to.y - from.y, radius: first, change };
  const paintRow = brush.hardness >= 1 && change === 0 ? paintHardRow : paintSoftRow;
  for (let row = bounds.y; row < bounds.y + bounds.height; row++) {
    const [start, end] = columns(line, row + 0.5, plane.width);
    if (start < end) paintRow(plane, line, row, start, end, brush);
  }
}

/** Columns [start, end) that contain all pixels of a row near the line. */
function columns(line, y, width) {
  const reach = Math.max(line.radius, line.radius + line.change);
  let low = 0;
  let high = 1;
  if (line.dy !== 0) {
    const one = (y - reach - line.y) / line.dy;
    const other = (y + reach - line.y) / line.dy;
    low = Math.min(1, Math.max(0, Math.min(one, other)));
    high = Math.min(1, Math.max(0, Math.max(one, other)));
  }
  const one = line.x + low * line.dx;
  const other = line.x + high * line.dx;
  return [
    Math.max(0, Math.floor(Math.min(one, other) - reach)),
    Math.min(width, Math.ceil(Math.max(one, other) + reach)),
  ];
}

/** Position along the line, 0 to 1, of the point that is nearest to (x, y). */
function nearest(line, x, y) {
  const squared = line.dx * line.dx + line.dy * line.dy;
  if (squared === 0) return 0;
  const along = ((x - line.x) * line.dx + (y - line.y) * line.dy) / squared;
  return along < 0 ? 0 : along > 1 ? 1 : along;
}

/** Squared distance of (x, y) from the line. */
function squaredDistance(line, x, y) {
  const along = nearest(line, x, y);
  const right = x - line.x - along * line.dx;
  const down = y - line.y - along * line.dy;
  return right * right + down * down;
}

/** A hard line is convex: between the first and the last pixel inside, all are inside. */
function paintHardRow(plane, line, row, start, end, brush) {
  const y = row + 0.5;
  const limit = line.radius * line.radius;
  while (start < end && squaredDistance(line, start + 0.5, y) > limit) start++;
  while (end > start && squaredDistance(line, end - 0.5, y) > limit) end--;
  plane.data.fill(brush.erase ? 0 : 255, row * plane.width + start, row * plane.width + end);
}

function paintSoftRow(plane, line, row, start, end, brush) {
  const { data, width } = plane;
  const y = row + 0.5;
  for (let column = start, index = row * width + start; column < end; column++, index++) {
    const x = column + 0.5;
    const radius = line.radius + line.change * nearest(line, x, y);
    const value = coverage(Math.sqrt(squaredDistance(line, x, y)), radius, brush.hardness);
    if (brush.erase) {
      if (255 - value < data[index]) data[index] = 255 - value;
    } else if (value > data[index]) data[index] = value;
  }
}

/**
 * Sets the pixels of a rectangle.
 * @param {Plane} plane
 * @param {Rect} rect inside the plane
 * @param {number} value
 */
export function fillRect(plane, rect, value) {
  for (let row = rect.y; row < rect.y + rect.height; row++) {
    plane.data.fill(value, row * plane.width + rect.x, row * plane.width + rect.x + rect.width);
  }
}

/**
 * Sets the pixels whose centres lie in a polygon (nonzero rule: all that a path encloses, also where it crosses
 * itself in the same direction).
 * @param {Plane} plane
 * @param {{x: number, y: number}[]} points closed by the line from the last to the first
 * @param {number} value
 */
export function fillPolygon(plane, points, value) {
  const crossings = Array.from({ length: plane.height }, () => /** @type {[number, number][]} */ ([]));
  points.forEach((point, index) => addCrossings(crossings, point, points[(index + 1) % points.length]));
  crossings.forEach((row, y) => {
    row.sort((one, other) => one[0] - other[0]);
    let winding = 0;
    for (let index = 0; index + 1 < row.length; index++) {
      winding += row[index][1];
      if (winding === 0) continue;
      const start = Math.min(plane.width, Math.max(0, Math.ceil(row[index][0] - 0.5)));
      const end = Math.min(plane.width, Math.max(0, Math.ceil(row[index + 1][0] - 0.5)));
      if (start < end) plane.data.fill(value, y * plane.width + start, y * plane.width + end);
    }
  });
}

/** Adds [x, direction] of an edge to each row whose centre it crosses; an upper end counts, a lower one does not. */
function addCrossings(crossings, from, to) {
  if (from.y === to.y) return;
  const direction = to.y > from.y ? 1 : -1;
  const [upper, lower] = direction > 0 ? [from, to] : [to, from];
  const slope = (lower.x - upper.x) / (lower.y - upper.y);
  const start = Math.max(0, Math.ceil(upper.y - 0.5));
  const end = Math.min(crossings.length, Math.ceil(lower.y - 0.5));
  for (let row = start; row < end; row++) {
    crossings[row].push([upper.x + (row + 0.5 - upper.y) * slope, direction]);
  }
}

/**
 * Pixels inside a polygon's bounding box.
 * @param {{x: number, y: number}[]} points
 * @returns {Rect}
 */
export function polygonBounds(points, width, height) {
  let [left, top, right, bottom] = [Infinity, Infinity, -Infinity, -Infinity];
  for (const { x, y } of points) {
    left = Math.min(left, x);
    top = Math.min(top, y);
    right = Math.max(right, x);
    bottom = Math.max(bottom, y);
  }
  return clip(left, top, right, bottom, width, height);
}
