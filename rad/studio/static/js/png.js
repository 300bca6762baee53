/** PNG files from pixels, byte for byte: no canvas, no colour management, no premultiplied alpha. */

const SIGNATURE = new Uint8Array([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]);
const COLOUR_TYPES = { 1: 0, 3: 2 };
const ROWS_PER_PART = 256;

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, index) => {
  let value = index;
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? 0xedb88320 ^ (value >>> 1) : value >>> 1;
  return value;
});

/**
 * CRC-32 of the PNG specification (ISO 3309).
 * @param {Uint8Array} bytes
 * @returns {number} unsigned, 32 bits
 */
export function crc32(bytes) {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = CRC_TABLE[(crc ^ byte) & 255] ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}

/**
 * One chunk: length, type, data, checksum.
 * @param {string} type four letters
 * @param {Uint8Array} data
 * @returns {Uint8Array}
 */
function chunk(type, data) {
  const bytes = new Uint8Array(data.length + 12);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, data.length);
  for (let index = 0; index < 4; index++) bytes[4 + index] = type.charCodeAt(index);
  bytes.set(data, 8);
  view.setUint32(data.length + 8, crc32(bytes.subarray(4, data.length + 8)));
  return bytes;
}

/** @returns {Uint8Array} the IHDR chunk of an 8-bit image */
function header(width, height, channels) {
  const data = new Uint8Array(13);
  const view = new DataView(data.buffer);
  view.setUint32(0, width);
  view.setUint32(4, height);
  data[8] = 8;
  data[9] = COLOUR_TYPES[channels];
  return chunk("IHDR", data);
}

/** @returns {Uint8Array} an iTXt chunk: UTF-8 text under a Latin-1 keyword */
function textChunk(keyword, text) {
  const key = Uint8Array.from(keyword, (letter) => letter.charCodeAt(0));
  const value = new TextEncoder().encode(text);
  const data = new Uint8Array(key.length + 5 + value.length);
  data.set(key);
  data.set(value, key.length + 5);
  return chunk("iTXt", data);
}

/** Rows with filter type 0 in front of each, in parts of bounded size. */
function* filteredRows(pixels, width, height, channels) {
  const stride = width * channels;
  for (let top = 0; top < height; top += ROWS_PER_PART) {
    const rows = Math.min(ROWS_PER_PART, height - top);
    const part = new Uint8Array(rows * (stride + 1));
    for (let row = 0; row < rows; row++) {
      const start = (top + row) * stride;
      part.set(pixels.subarray(start, start + stride), row * (stride + 1) + 1);
    }
    yield part;
  }
}

/**
 * An 8-bit PNG, grey or RGB.
 * @param {Uint8Array | Uint8ClampedArray} pixels height x width x channels, row by row
 * @param {number} width
 * @param {number} height
 * @param {1 | 3} [channels]
 * @param {Record<string, string>} [texts] iTXt chunks by keyword
 * @returns {Promise<Blob>} of type image/png
 */
export async function encodePng(pixels, width, height, channels = 1, texts = {}) {
  if (!(channels in COLOUR_TYPES)) throw new RangeError(`A PNG of ${channels} channels is not supported; use 1 or 3.`);
  if (!(width > 0 && height > 0) || pixels.length !== width * height * channels) {
    throw new RangeError(`${pixels.length} values do not fill ${width} x ${height} pixels of ${channels} channels.`);
  }
  const rows = filteredRows(pixels, width, height, channels);
  const source = new ReadableStream({
    pull(controller) {
      const { done, value } = rows.next();
      if (done) controller.close();
      else controller.enqueue(value);
    },
  });
  const reader = source.pipeThrough(new CompressionStream("deflate")).getReader();
  const parts = [SIGNATURE, header(width, height, channels)];
  for (const [keyword, text] of Object.entries(texts)) parts.push(textChunk(keyword, text));
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(chunk("IDAT", value));
  }
  parts.push(chunk("IEND", new Uint8Array(0)));
  return new Blob(parts, { type: "image/png" });
}
