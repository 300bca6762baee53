/** Colour profiles: an RGB profile of the input goes into the PNG of the result, whose values stay as they are. */

/**
 * The ICC profile of a PNG or JPEG file, if it is one of RGB.
 * @param {Blob} blob
 * @returns {Promise<Uint8Array|null>}
 */
export async function profileOf(blob) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  const view = new DataView(bytes.buffer);
  let profile = null;
  if (bytes[0] === 0x89) profile = await ofPng(bytes, view);
  else if (bytes[0] === 0xff && bytes[1] === 0xd8) profile = ofJpeg(bytes, view);
  return profile && text(profile, 16, 4) === "RGB " ? profile : null;
}

const text = (bytes, start, length) => String.fromCharCode(...bytes.subarray(start, start + length));

async function ofPng(bytes, view) {
  for (let at = 8; at + 12 <= bytes.length; at += 12 + view.getUint32(at)) {
    if (text(bytes, at + 4, 4) === "IDAT") return null;
    if (text(bytes, at + 4, 4) !== "iCCP") continue;
    const data = bytes.subarray(at + 8, at + 8 + view.getUint32(at));
    return through(data.subarray(data.indexOf(0) + 2), new DecompressionStream("deflate")).catch(() => null);
  }
  return null;
}

/** The parts of a profile in APP2 segments, in their order. */
function ofJpeg(bytes, view) {
  const parts = [];
  for (let at = 2; at + 4 <= bytes.length && bytes[at] === 0xff && bytes[at + 1] !== 0xda; at += 2 + view.getUint16(at + 2)) {
    if (bytes[at + 1] !== 0xe2 || text(bytes, at + 4, 11) !== "ICC_PROFILE") continue;
    parts.push({ number: bytes[at + 16], data: bytes.subarray(at + 18, at + 2 + view.getUint16(at + 2)) });
  }
  parts.sort((one, other) => one.number - other.number);
  const profile = new Uint8Array(parts.reduce((length, { data }) => length + data.length, 0));
  parts.reduce((at, { data }) => (profile.set(data, at), at + data.length), 0);
  return parts.length ? profile : null;
}

async function through(bytes, stream) {
  return new Uint8Array(await new Response(new Blob([bytes]).stream().pipeThrough(stream)).arrayBuffer());
}

/**
 * A PNG with a colour profile.
 * @param {Blob} png without a profile
 * @param {Uint8Array|null} profile null: the PNG as it is
 * @param {(bytes: Uint8Array) => number} crc32
 * @returns {Promise<Blob>}
 */
export async function withProfile(png, profile, crc32) {
  if (!profile) return png;
  const packed = await through(profile, new CompressionStream("deflate"));
  const name = [0x49, 0x43, 0x43, 0, 0]; // "ICC", its end, and the only method of compression
  const chunk = new Uint8Array(12 + name.length + packed.length);
  const view = new DataView(chunk.buffer);
  view.setUint32(0, name.length + packed.length);
  chunk.set([0x69, 0x43, 0x43, 0x50, ...name], 4); // iCCP
  chunk.set(packed, 8 + name.length);
  view.setUint32(chunk.length - 4, crc32(chunk.subarray(4, chunk.length - 4)));
  const header = 8 + 25; // signature and IHDR
  return new Blob([png.slice(0, header), chunk, png.slice(header)], { type: "image/png" });
}
