/** Keyed noise, equal to rad.rng.KeyedNoise: torch's generator (mt19937) and torch.randn, in float32. */

import { key } from "./keys.js";

const SIZE = 624;
const SHIFT = 397;
const GROUP = 16;
const TURN = Math.fround(2 * Math.PI);

/** The Mersenne Twister of Matsumoto and Nishimura (1998), as torch seeds it: with the low 32 bits of the seed. */
export class Mt19937 {
  /** @param {bigint} seed */
  constructor(seed) {
    this.state = new Uint32Array(SIZE);
    this.state[0] = Number(seed & 0xffffffffn);
    for (let i = 1; i < SIZE; i++) {
      const before = this.state[i - 1];
      this.state[i] = Math.imul(1812433253, before ^ (before >>> 30)) + i;
    }
    this.at = SIZE;
  }

  /** The next 32 random bits. */
  next() {
    if (this.at === SIZE) this.refill();
    let value = this.state[this.at++];
    value ^= value >>> 11;
    value ^= (value << 7) & 0x9d2c5680;
    value ^= (value << 15) & 0xefc60000;
    return (value ^ (value >>> 18)) >>> 0;
  }

  refill() {
    const { state } = this;
    for (let i = 0; i < SIZE; i++) {
      const mixed = (state[i] & 0x80000000) | (state[(i + 1) % SIZE] & 0x7fffffff);
      state[i] = state[(i + SHIFT) % SIZE] ^ (mixed >>> 1) ^ (mixed & 1 ? 0x9908b0df : 0);
    }
    this.at = 0;
  }

  /** The next number of torch.rand in float32: 24 bits, in [0,1). */
  uniform() {
    return (this.next() & 0xffffff) / 0x1000000;
  }
}

/**
 * torch.randn(count) in float32 by a generator with this seed. The uniform draws are exact; logarithm, sine and cosine agree
 * to rounding.
 * @param {bigint} seed
 * @param {number} count at least 16: below it torch draws by another rule
 * @returns {Float32Array}
 */
export function randn(seed, count) {
  if (count < GROUP) throw new RangeError(`randn of ${count} values: at least ${GROUP} are supported`);
  const rng = new Mt19937(seed);
  const values = Float32Array.from({ length: count }, () => rng.uniform());
  for (let start = 0; start + GROUP <= count; start += GROUP) boxMuller(values, start);
  if (count % GROUP) {
    const tail = count - GROUP; // torch draws the last 16 again
    for (let i = tail; i < count; i++) values[i] = rng.uniform();
    boxMuller(values, tail);
  }
  return values;
}

/** Turn 16 uniform numbers into normal ones, in place. */
function boxMuller(values, start) {
  for (let i = start; i < start + GROUP / 2; i++) {
    const radius = Math.fround(Math.sqrt(Math.fround(-2 * Math.fround(Math.log(1 - values[i])))));
    const angle = Math.fround(TURN * values[i + GROUP / 2]);
    values[i] = radius * Math.fround(Math.cos(angle));
    values[i + GROUP / 2] = radius * Math.fround(Math.sin(angle));
  }
}

/** Standard normal images for a batch, keyed by (seed, image, sample number, draw number). */
export class KeyedNoise {
  /**
   * @param {number|bigint} seed
   * @param {(string|number)[]} images identity of each image
   * @param {number[]} samples sample number of each image
   */
  constructor(seed, images, samples) {
    Object.assign(this, { seed, images, samples });
  }

  /**
   * Draw `number` for every image.
   * @param {number} number
   * @param {number} count values per image
   * @returns {Float32Array} (B * count)
   */
  randn(number, count) {
    const noise = new Float32Array(this.images.length * count);
    this.images.forEach((image, row) => {
      noise.set(randn(key(this.seed, image, this.samples[row], number), count), row * count);
    });
    return noise;
  }
}
