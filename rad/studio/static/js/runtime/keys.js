/** Keys of random draws, equal to rad/keys.py: BLAKE2b of Python's text of a tuple of numbers and texts. */

const MASK = (1n << 64n) - 1n;

const START = [
  0x6a09e667f3bcc908n, 0xbb67ae8584caa73bn, 0x3c6ef372fe94f82bn, 0xa54ff53a5f1d36f1n,
  0x510e527fade682d1n, 0x9b05688c2b3e6c1fn, 0x1f83d9abfb41bd6bn, 0x5be0cd19137e2179n,
];

const ORDER = [
  [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
  [14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3],
  [11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4],
  [7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8],
  [9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13],
  [2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9],
  [12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11],
  [13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10],
  [6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5],
  [10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0],
];

/** Indices of the state that each of a round's eight mixing steps changes: four columns, four diagonals. */
const LANES = [
  [0, 4, 8, 12], [1, 5, 9, 13], [2, 6, 10, 14], [3, 7, 11, 15],
  [0, 5, 10, 15], [1, 6, 11, 12], [2, 7, 8, 13], [3, 4, 9, 14],
];

/** @param {bigint} value @param {bigint} bits */
const rotated = (value, bits) => ((value >> bits) | (value << (64n - bits))) & MASK;

/**
 * One compression of BLAKE2b (RFC 7693, section 3.2), in place.
 * @param {bigint[]} state eight words
 * @param {bigint[]} words sixteen words of the message
 * @param {bigint} count bytes so far
 * @param {boolean} last whether the message ends here
 */
function compress(state, words, count, last) {
  const v = [...state, ...START];
  v[12] ^= count;
  if (last) v[14] ^= MASK;
  for (let round = 0; round < 12; round++) {
    const order = ORDER[round % 10];
    LANES.forEach(([a, b, c, d], step) => {
      v[a] = (v[a] + v[b] + words[order[2 * step]]) & MASK;
      v[d] = rotated(v[d] ^ v[a], 32n);
      v[c] = (v[c] + v[d]) & MASK;
      v[b] = rotated(v[b] ^ v[c], 24n);
      v[a] = (v[a] + v[b] + words[order[2 * step + 1]]) & MASK;
      v[d] = rotated(v[d] ^ v[a], 16n);
      v[c] = (v[c] + v[d]) & MASK;
      v[b] = rotated(v[b] ^ v[c], 63n);
    });
  }
  for (let i = 0; i < 8; i++) state[i] ^= v[i] ^ v[i + 8];
}

/**
 * The first word of the 8-byte BLAKE2b digest of `bytes`, read as a big-endian number.
 * @param {Uint8Array} bytes
 * @returns {bigint}
 */
export function blake2b64(bytes) {
  const state = [...START];
  state[0] ^= 0x01010000n ^ 8n;
  const blocks = Math.max(1, Math.ceil(bytes.length / 128));
  const padded = new DataView(new ArrayBuffer(128 * blocks));
  bytes.forEach((byte, at) => padded.setUint8(at, byte));
  for (let block = 0; block < blocks; block++) {
    const words = Array.from({ length: 16 }, (_, i) => padded.getBigUint64(128 * block + 8 * i, true));
    const last = block === blocks - 1;
    compress(state, words, BigInt(last ? bytes.length : 128 * (block + 1)), last);
  }
  const digest = new DataView(new ArrayBuffer(8));
  digest.setBigUint64(0, state[0], true);
  return digest.getBigUint64(0, false);
}

const ESCAPES = { "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t" };

/**
 * Python's repr() of a text.
 * @param {string} text
 */
export function reprText(text) {
  const quote = text.includes("'") && !text.includes('"') ? '"' : "'";
  let written = "";
  for (const character of text) {
    const code = character.codePointAt(0);
    if (character in ESCAPES) written += ESCAPES[character];
    else if (character === quote) written += `\\${character}`;
    else if (character === " " || !/[\p{C}\p{Z}]/u.test(character)) written += character;
    else if (code < 0x100) written += `\\x${code.toString(16).padStart(2, "0")}`;
    else if (code < 0x10000) written += `\\u${code.toString(16).padStart(4, "0")}`;
    else written += `\\U${code.toString(16).padStart(8, "0")}`;
  }
  return quote + written + quote;
}

/**
 * A 63-bit integer that depends on every part and on their order, as rad.keys.key.
 * @param {...(number|bigint|string)} parts whole numbers and texts
 * @returns {bigint}
 */
export function key(...parts) {
  const texts = parts.map((part) => (typeof part === "string" ? reprText(part) : BigInt(part).toString()));
  const tuple = `(${texts.join(", ")}${texts.length === 1 ? "," : ""})`;
  return blake2b64(new TextEncoder().encode(tuple)) >> 1n;
}
