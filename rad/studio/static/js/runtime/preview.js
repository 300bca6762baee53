/** Previews of a run: the image at display size, with the estimates of the clean image painted over its hole. */

const eightBits = (value) => 127.5 * (value + 1);

export class Preview {
  /**
   * @param {import("./canvas.js").Picture} picture
   * @param {import("./canvas.js").Layout} layout
   * @param {number} longest most pixels on the longer side
   */
  constructor(picture, layout, longest) {
    const scale = Math.min(1, longest / Math.max(picture.width, picture.height));
    const [width, height] = [picture.width, picture.height].map((side) => Math.max(1, Math.round(side * scale)));
    this.layout = layout;
    this.drawing = new OffscreenCanvas(width, height);
    const context = this.drawing.getContext("2d");
    context.putImageData(sampled(picture, width, height), 0, 0);
    const working = layout.resized ? layout : picture; // a padded canvas is larger than the picture
    context.scale(width / working.width, height / working.height);
    this.context = context;
  }

  /**
   * Paint the windows of the first sample in a batch.
   * @param {import("./inpainter.js").Batch} batch
   */
  paint({ jobs }) {
    for (const { canvas, window, x0 } of jobs) {
      if (canvas.sample === 0) this.paintWindow(canvas, window, x0);
    }
  }

  paintWindow(canvas, window, x0) {
    const { top, left, bottom, right } = window.core;
    const patch = new ImageData(right - left, bottom - top); // transparent where pixels are known
    canvas.eachUnknown(window, (at, from, area) => {
      const [row, column] = [Math.floor(at / this.layout.width) - top, (at % this.layout.width) - left];
      const to = 4 * (row * patch.width + column);
      for (let channel = 0; channel < 3; channel++) patch.data[to + channel] = eightBits(x0[channel * area + from]);
      patch.data[to + 3] = 255;
    });
    const stamp = new OffscreenCanvas(patch.width, patch.height);
    stamp.getContext("2d").putImageData(patch, 0, 0);
    this.context.drawImage(stamp, left, top);
  }

  /** @returns {Promise<Blob>} of type image/png */
  blob() {
    return this.drawing.convertToBlob({ type: "image/png" });
  }
}

/** The nearest pixel of a picture for each pixel of a smaller one. */
function sampled({ width, height, data }, columns, rows) {
  const shown = new ImageData(columns, rows);
  for (let i = 0; i < columns * rows; i++) {
    const y = Math.floor(((Math.floor(i / columns) + 0.5) * height) / rows);
    const x = Math.floor((((i % columns) + 0.5) * width) / columns);
    for (let channel = 0; channel < 3; channel++) shown.data[4 * i + channel] = data[(channel * height + y) * width + x];
    shown.data[4 * i + 3] = 255;
  }
  return shown;
}
