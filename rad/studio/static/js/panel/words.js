/** Texts about methods, costs and states. */

const TITLES = {
  rad: "RAD", tdpaint: "TD-Paint", growrad: "GrowRAD", repaint: "RePaint", lanpaint: "LanPaint", ddrm: "DDRM", ddnm: "DDNM",
  diffpir: "DiffPIR", dps: "DPS", daps: "DAPS", copaint: "CoPaint", mcg: "MCG", mcgdiff: "MCGDiff", m2s: "M2S", pigdm: "PiGDM",
  gradpaint: "GradPaint", reddiff: "RED-diff", resample: "ReSample", vipaint: "VIPaint", pnpflow: "PnP-Flow", flowdps: "FlowDPS",
  flowchef: "FlowChef", ding: "DInG", pilot: "PILOT", psld: "PSLD", flair: "FLAIR", latino: "LATINO", telea: "Telea",
  navier_stokes: "Navier-Stokes",
};

export const LABELS = { solver: "Solver", spacing: "Spacing of the steps" };

export const STATES = {
  starting: "Starting", queued: "Waiting", running: "Running", done: "Done", failed: "Failed", cancelled: "Cancelled",
  lost: "Lost", refused: "Not started",
};

/** @param {{name: string}} method */
export function methodTitle(method) {
  return TITLES[method.name] ?? method.name[0].toUpperCase() + method.name.slice(1).replaceAll("_", " ");
}

/** @param {number} value @param {string} unit @param {string} [units] */
export function plural(value, unit, units = `${unit}s`) {
  return `${value.toLocaleString("en")} ${value === 1 ? unit : units}`;
}

/** Cost at the preset: "20 network calls". @param {any} method */
export function costText(method) {
  if (!method.nfe) return "no network calls";
  if (!method.vjp) return plural(method.nfe, "network call");
  return `${plural(method.nfe, "call")} + ${method.vjp.toLocaleString("en")} backward`;
}

/**
 * What a click on the button will do.
 * @param {any[]} methods
 * @param {string} effort
 * @param {Record<string, number>} amounts
 */
export function runText(methods, effort, amounts) {
  if (!methods.length) return "Choose a method.";
  const who = methods.length === 1 ? methodTitle(methods[0]) : plural(methods.length, "method");
  if (effort !== "preset") {
    const units = { steps: "step", budget_nfe: "network call", budget_seconds: "second" };
    const most = effort === "steps" ? "" : "at most ";
    const each = effort === "budget_nfe" ? " for each window" : methods.length > 1 ? " each" : "";
    return `${who}, ${most}${plural(amounts[effort] || 0, units[effort])}${each}`;
  }
  return methods.length === 1 ? `${who}, ${costText(methods[0])} for each window` : `${who}, one lane each, fair turns`;
}

/** Summary of a method, with its paper unless the summary cites it. @param {any} method */
export function sourceText({ summary, paper }) {
  const identifier = paper.split(" ").at(-1);
  return summary.includes(identifier) ? summary : `${summary} (${paper})`;
}

/** @param {number} place */
export function ordinal(place) {
  const ending = { 1: "st", 2: "nd", 3: "rd" }[place] ?? "th";
  return `${place}${ending}`;
}

/** @param {number} value */
export function secondsText(value) {
  return value < 60 ? `${value.toFixed(1)} s` : `${Math.floor(value / 60)} min ${Math.round(value % 60)} s`;
}

/** Options of `rad sample` in messages about masks, and what a user of the page does. */
const INSTEAD = /** @type {[string, string][]} */ ([
  [" (--soft_mask keeps them)", ""],
  ["for white = known use --mask_polarity white_is_known", "press I to invert it"],
  ["give mask_resize nearest, or give the mask", "give the mask"],
  ["give its mask; for masks beside the images see mask_pattern", "open the file of its mask"],
]);

/** A message about a mask file in words of the page. @param {string} text */
export function maskText(text) {
  return INSTEAD.reduce((message, [option, words]) => message.replace(option, words), text);
}

/** A message of the server as a sentence: a capital at its beginning and a full stop. @param {string} text */
export function sentence(text) {
  const ended = /[.!?]$/.test(text) ? text : `${text}.`;
  return ended[0].toUpperCase() + ended.slice(1);
}
