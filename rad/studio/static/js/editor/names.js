/** Safe names for files of any origin. */

const SUFFIXES = {
  "image/png": ".png",
  "image/jpeg": ".jpg",
  "image/webp": ".webp",
  "image/gif": ".gif",
  "image/bmp": ".bmp",
  "image/avif": ".avif",
  "image/tiff": ".tif",
};
const LONGEST = 80;

/**
 * A name of the characters A-Z a-z 0-9 . _ - with a suffix, without folders and leading dots.
 * @param {string | undefined} name as the system gave it
 * @param {string} [type] MIME type, for the suffix of a name without one
 * @returns {string} at most 80 characters
 */
export function safeName(name, type = "") {
  const last = String(name ?? "").split(/[\\/]/).pop() ?? "";
  const plain = last
    .normalize("NFKD")
    .replace(/\p{M}/gu, "")
    .replace(/[^A-Za-z0-9._-]+/g, "-")
    .replace(/\.{2,}/g, ".")
    .replace(/[.-]+$/, "");
  const match = plain.match(/^(.+)(\.[A-Za-z0-9]{1,5})$/);
  const stem = (match ? match[1] : plain).replace(/^[.-]+/, "") || "image"; // no letter of the name may be Latin
  const suffix = match ? match[2].toLowerCase() : (SUFFIXES[type] ?? ".png");
  return stem.slice(0, LONGEST - suffix.length) + suffix;
}

/**
 * @param {string} name
 * @returns {string} without its suffix
 */
export function stemOf(name) {
  return name.replace(/\.[^.]*$/, "");
}
