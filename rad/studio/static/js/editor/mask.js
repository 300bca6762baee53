/** The mask in full resolution, in tiles for undo and storage: 0 = keep, 255 = fill. */

/** @typedef {import("./raster.js").Rect} Rect */
/** @typedef {number | Uint32Array | Uint8Array} Packed one value; runs of (length << 8 | value); or the bytes */

export const TILE = 256;

/**
 * @param {Uint8Array} bytes of a tile
 * @returns {Packed}
 */
export function pack(bytes) {
  const runs = [];
  let start = 0;
  for (let index = 1; index <= bytes.length; index++) {
    if (index < bytes.length && bytes[index] === bytes[start]) continue;
    runs.push(((index - start) << 8) | bytes[start]);
    start = index;
    if (runs.length * 4 > bytes.length) return bytes;
  }
  return runs.length === 1 ? bytes[0] : Uint32Array.from(runs);
}

/**
 * @param {Packed} packed
 * @param {number} length of the tile in bytes
 * @returns {Uint8Array}
 */
export function unpack(packed, length) {
  if (typeof packed === "number") return new Uint8Array(length).fill(packed);
  if (packed instanceof Uint8Array) return packed;
  const bytes = new Uint8Array(length);
  let index = 0;
  for (const run of packed) {
    bytes.fill(run & 255, index, index + (run >>> 8));
    index += run >>> 8;
  }
  return bytes;
}

export class Mask {
  /**
   * An empty mask.
   * @param {number} width
   * @param {number} height
   */
  constructor(width, height) {
    this.width = width;
    this.height = height;
    this.data = new Uint8Array(width * height);
    this.across = Math.ceil(width / TILE);
    this.tiles = this.across * Math.ceil(height / TILE);
    this.sums = new Float64Array(this.tiles);
    this.softs = new Uint8Array(this.tiles);
  }

  /** @returns {Rect} */
  get rect() {
    return { x: 0, y: 0, width: this.width, height: this.height };
  }

  /** Share of the image in the hole, 0 to 1; a grey value counts in part. */
  get share() {
    return this.sums.reduce((sum, value) => sum + value, 0) / (255 * this.data.length);
  }

  get empty() {
    return this.sums.every((sum) => sum === 0);
  }

  /** Whether there are values between 0 and 255. */
  get soft() {
    return this.softs.some(Boolean);
  }

  /**
   * @param {number} tile
   * @returns {Rect}
   */
  tileRect(tile) {
    const x = (tile % this.across) * TILE;
    const y = Math.floor(tile / this.across) * TILE;
    return { x, y, width: Math.min(TILE, this.width - x), height: Math.min(TILE, this.height - y) };
  }

  /**
   * Tiles that a rectangle inside the mask meets.
   * @param {Rect} rect
   * @returns {number[]}
   */
  tilesIn(rect) {
    if (!rect.width || !rect.height) return [];
    const tiles = [];
    for (let y = Math.floor(rect.y / TILE); y * TILE < rect.y + rect.height; y++) {
      for (let x = Math.floor(rect.x / TILE); x * TILE < rect.x + rect.width; x++) tiles.push(y * this.across + x);
    }
    return tiles;
  }

  /**
   * @param {number} tile
   * @returns {Uint8Array} a copy of its bytes
   */
  read(tile) {
    const { x, y, width, height } = this.tileRect(tile);
    const bytes = new Uint8Array(width * height);
    for (let row = 0; row < height; row++) {
      const start = (y + row) * this.width + x;
      bytes.set(this.data.subarray(start, start + width), row * width);
    }
    return bytes;
  }

  /**
   * @param {number} tile
   * @param {Packed} packed
   */
  write(tile, packed) {
    const { x, y, width, height } = this.tileRect(tile);
    const bytes = unpack(packed, width * height);
    for (let row = 0; row < height; row++) {
      this.data.set(bytes.subarray(row * width, (row + 1) * width), (y + row) * this.width + x);
    }
    this.measure(tile, bytes);
  }

  /**
   * Refreshes the sum and the softness of a tile after its bytes have changed.
   * @param {number} tile
   * @param {Uint8Array} [bytes] of the tile
   */
  measure(tile, bytes = this.read(tile)) {
    let sum = 0;
    let soft = 0;
    for (const value of bytes) {
      sum += value;
      if (value !== 0 && value !== 255) soft = 1;
    }
    this.sums[tile] = sum;
    this.softs[tile] = soft;
  }

  /** Exchanges hole and known pixels. */
  invert() {
    const { data } = this;
    for (let index = 0; index < data.length; index++) data[index] = 255 - data[index];
    for (let tile = 0; tile < this.tiles; tile++) {
      const { width, height } = this.tileRect(tile);
      this.sums[tile] = 255 * width * height - this.sums[tile];
    }
  }

  /** @returns {Packed[]} all tiles, for storage */
  pack() {
    return Array.from({ length: this.tiles }, (_, tile) => pack(this.read(tile)));
  }

  /** @param {Packed[]} tiles from `pack` of a mask of this size */
  unpack(tiles) {
    tiles.forEach((packed, tile) => this.write(tile, packed));
  }
}
