/** PNG files with transparency to exact values: a canvas keeps colours premultiplied with alpha, and loses some. */

const CHANNELS = { 4: 2, 6: 4 };

/**
 * RGBA of a PNG with 8 bits and an alpha channel, without interlacing; null for other files.
 * @param {Blob} blob
 * @returns {Promise<{width: number, height: number, data: Uint8ClampedArray}|null>}
 */
export async function decodeAlphaPng(blob) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  const view = new DataView(bytes.buffer);
  if (bytes.length < 33 || view.getUint32(0) !== 0x89504e47) return null;
  const [width, height] = [view.getUint32(16), view.getUint32(20)];
  const [depth, colour, interlaced] = [bytes[24], bytes[25], bytes[28]];
  if (depth !== 8 || !(colour in CHANNELS) || interlaced) return null;
  const stream = new Blob(compressed(bytes, view)).stream().pipeThrough(new DecompressionStream("deflate"));
  const rows = new Uint8Array(await new Response(stream).arrayBuffer());
  unfilter(rows, width * CHANNELS[colour], height, CHANNELS[colour]);
  return { width, height, data: rgba(rows, width, height, CHANNELS[colour]) };
}

/** The data of the IDAT chunks. */
function compressed(bytes, view) {
  const parts = [];
  for (let at = 8; at + 12 <= bytes.length; at += 12 + view.getUint32(at)) {
    if (view.getUint32(at + 4) === 0x49444154) parts.push(bytes.subarray(at + 8, at + 8 + view.getUint32(at)));
  }
  return parts;
}

/** Undo the filter of each row, in place (PNG specification, section 9). */
function unfilter(rows, stride, height, step) {
  for (let y = 0; y < height; y++) {
    const start = y * (stride + 1) + 1;
    const filter = rows[start - 1];
    for (let x = 0; x < stride; x++) {
      const left = x >= step ? rows[start + x - step] : 0;
      const up = y ? rows[start + x - stride - 1] : 0;
      const corner = y && x >= step ? rows[start + x - stride - 1 - step] : 0;
      if (filter === 1) rows[start + x] += left;
      else if (filter === 2) rows[start + x] += up;
      else if (filter === 3) rows[start + x] += (left + up) >> 1;
      else if (filter === 4) rows[start + x] += paeth(left, up, corner);
    }
  }
}

function paeth(left, up, corner) {
  const ofLeft = Math.abs(up - corner);
  const ofUp = Math.abs(left - corner);
  const ofCorner = Math.abs(left + up - 2 * corner);
  if (ofLeft <= ofUp && ofLeft <= ofCorner) return left;
  return ofUp <= ofCorner ? up : corner;
}

function rgba(rows, width, height, channels) {
  const data = new Uint8ClampedArray(4 * width * height);
  for (let i = 0; i < width * height; i++) {
    const at = i * channels + Math.floor(i / width) + 1; // a byte in front of each row names its filter
    for (let channel = 0; channel < 3; channel++) data[4 * i + channel] = rows[channels === 4 ? at + channel : at];
    data[4 * i + 3] = rows[at + channels - 1];
  }
  return data;
}
