/** Lines over the image: its frame, the extension, the brush, the selection in progress, the crosshair. */

/** @typedef {{kind: "rectangle" | "path", points: {x: number, y: number}[]}} Outline */

/**
 * Draws a path twice, so that it is visible on every colour.
 * @param {CanvasRenderingContext2D} context
 * @param {Path2D} path
 */
function contrasted(context, path, width = 1.25) {
  context.strokeStyle = "rgba(0, 0, 0, 0.75)";
  context.lineWidth = width + 2;
  context.stroke(path);
  context.strokeStyle = "#fff";
  context.lineWidth = width;
  context.stroke(path);
}

/**
 * @param {CanvasRenderingContext2D} context scaled to CSS pixels
 * @param {import("./view.js").View} view
 * @param {{cursor: {x: number, y: number} | null, radius: number, hardness: number, outline: Outline | null,
 *   crosshair: {x: number, y: number} | null}} guides in image pixels
 */
export function drawGuides(context, view, guides) {
  if (guides.outline) contrasted(context, outlinePath(view, guides.outline));
  const centre = guides.crosshair ?? guides.cursor;
  if (centre && guides.radius > 0) {
    const { x, y } = view.toStage(centre.x, centre.y);
    const ring = new Path2D();
    ring.arc(x, y, Math.max(1.5, guides.radius * view.zoom), 0, 2 * Math.PI);
    contrasted(context, ring);
    if (guides.hardness < 1 && guides.radius * guides.hardness * view.zoom > 2) {
      const core = new Path2D();
      core.arc(x, y, guides.radius * guides.hardness * view.zoom, 0, 2 * Math.PI);
      context.setLineDash([3, 4]);
      contrasted(context, core, 0.75);
      context.setLineDash([]);
    }
  }
  if (guides.crosshair) contrasted(context, crosshairPath(view, guides.crosshair));
}

function outlinePath(view, outline) {
  const points = outline.points.map(({ x, y }) => view.toStage(x, y));
  const path = new Path2D();
  if (outline.kind === "rectangle") {
    const [from, to] = points;
    path.rect(from.x, from.y, to.x - from.x, to.y - from.y);
    return path;
  }
  points.forEach(({ x, y }, index) => (index ? path.lineTo(x, y) : path.moveTo(x, y)));
  path.closePath();
  return path;
}

function crosshairPath(view, point) {
  const { x, y } = view.toStage(point.x, point.y);
  const path = new Path2D();
  for (const [right, down] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
    path.moveTo(x + right * 3, y + down * 3);
    path.lineTo(x + right * 15, y + down * 15);
  }
  return path;
}

/**
 * Hatches the new pixels around an image.
 * @param {CanvasRenderingContext2D} context in device pixels
 * @param {import("./view.js").View} view
 * @param {{width: number, height: number}} size of the image
 * @param {number[]} extend left, top, right, bottom
 * @param {string} color #rrggbb
 */
export function drawExtension(context, view, size, extend, color) {
  if (!extend.some(Boolean)) return;
  const scale = view.zoom * view.ratio;
  const [x, y] = [view.x * view.ratio, view.y * view.ratio];
  const [left, top, right, bottom] = extend.map((value) => value * scale);
  const [width, height] = [size.width * scale, size.height * scale];
  const area = new Path2D();
  area.rect(x - left, y - top, width + left + right, height + top + bottom);
  area.rect(x, y, width, height);
  context.save();
  context.fillStyle = `${color}33`;
  context.fill(area, "evenodd");
  context.clip(area, "evenodd");
  context.strokeStyle = `${color}cc`;
  context.lineWidth = 1.5 * view.ratio;
  context.beginPath();
  const step = 9 * view.ratio;
  const [start, end] = [Math.max(0, x - left), Math.min(context.canvas.width, x + width + right)];
  const [above, below] = [Math.max(0, y - top), Math.min(context.canvas.height, y + height + bottom)];
  const phase = (((x - left + y - top) % step) + step) % step;
  for (let line = Math.floor((start + above) / step) * step + phase; line < end + below; line += step) {
    context.moveTo(line - above, above);
    context.lineTo(line - below, below);
  }
  context.stroke();
  context.restore();
}
