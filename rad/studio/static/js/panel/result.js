/** The result: before/after slider, samples, downloads and the command that reproduces it. */

import { button, h } from "./dom.js";
import { selectInput } from "./fields.js";
import { download, paint, paintExtended, stem } from "./images.js";
import { Slider } from "./slider.js";
import { sentence } from "./words.js";

const SHOWN = 2048;
const THUMBNAIL = 96;

/** Events: "continue" and "zoom" (detail: {lane, blob}). */
export class ResultView extends EventTarget {
  /** @param {HTMLElement} element */
  constructor(element) {
    super();
    this.lane = null;
    this.sample = 0;
    this.slider = new Slider();
    this.thumbnails = h("div.thumbnails", { role: "group", "aria-label": "Results" });
    this.beforeArea = h("div.before");
    this.warnings = h("p.note.box", { hidden: true });
    this.command = h("code", { tabindex: 0 });
    const hold = (on) => () => this.slider.peek(on);
    const peek = button("Hold to see the original", () => {}, { label: "Hold to see the left image (key O)" });
    for (const [on, names] of /** @type {[boolean, string[]][]} */ ([[true, ["pointerdown"]], [false, ["pointerup", "pointerleave", "pointercancel", "blur", "keyup"]]])) {
      for (const name of names) peek.addEventListener(name, hold(on));
    }
    peek.addEventListener("keydown", (event) => [" ", "Enter"].includes(event.key) && this.slider.peek(true));
    this.downloads = h("div.row.wrap");
    this.zoom = button("Zoom", () => this.send("zoom"), { icon: "zoom", label: "Show the result in the editor, to zoom" });
    const copy = button("Copy", () => this.copy(copy), { icon: "copy", label: "Copy the command" });
    element.append(h("div.outcome", {},
      h("div.bar", {}, this.beforeArea, peek,
        this.zoom,
        button("Continue from this image", () => this.send("continue"), { look: "primary", icon: "next" })),
      this.slider.element, this.thumbnails, this.warnings, this.downloads,
      h("details.command", {}, h("summary", {}, "Command that reproduces this image"), h("div.row", {}, this.command, copy),
        h("p.note", {}, "Download the settings, the mask and the input into one folder, then run this command there. It writes the same pixels."))));
  }

  /** Blob of the sample that is shown. */
  get blob() {
    return this.lane.filled.images[this.sample];
  }

  /**
   * Show a result.
   * @param {any} round
   * @param {any} lane - finished
   * @param {number} [sample]
   */
  async open(round, lane, sample = 0) {
    if (round !== this.round) this.base = "original";
    Object.assign(this, { round, lane, sample });
    const settings = JSON.parse(await lane.filled.settings.text());
    if (this.lane !== lane || this.sample !== sample) return; // another result was opened meanwhile
    this.settings = settings;
    this.renderChoices();
    this.renderThumbnails();
    this.renderFiles();
    const texts = lane.update.warnings ?? [];
    this.warnings.hidden = !texts.length;
    this.warnings.textContent = texts.map(sentence).join(" ");
    await this.compare();
  }

  /** Offer the results of lanes that ended later, of the round that is shown. */
  refresh() {
    this.renderChoices();
    this.renderThumbnails();
  }

  /** Hold or release the left image. */
  peek(on) {
    this.slider.peek(on);
  }

  async compare() {
    const { shown, extend } = this.round.input;
    const other = this.round.lanes[Number(this.base)]; // of "original" there is none
    const left = other
      ? paint(this.slider.before, other.filled.images[0], SHOWN)
      : paintExtended(this.slider.before, shown, extend, SHOWN);
    this.slider.label(other ? other.title : "Original", this.label(this.lane, this.sample));
    await Promise.all([left, paint(this.slider.after, this.blob, SHOWN)]);
    this.slider.layout();
  }

  label(lane, sample) {
    return lane.filled.images.length > 1 ? `${lane.title} ${sample + 1}` : lane.title;
  }

  renderChoices() {
    const others = this.round.finished.filter((lane) => lane !== this.lane)
      .map((lane) => /** @type {[string, string]} */ ([String(this.round.lanes.indexOf(lane)), lane.title]));
    const input = selectInput([["original", "Original"], ...others], this.base, (value) => {
      this.base = value;
      this.compare();
    });
    if (input.value !== this.base) this.base = input.value = "original";
    input.id = "compare-with";
    this.beforeArea.replaceChildren(h("label.inline", { for: "compare-with" }, "Compare with"), input);
  }

  renderThumbnails() {
    const all = this.round.finished.flatMap((lane) => lane.filled.images.map((blob, sample) => ({ lane, blob, sample })));
    this.thumbnails.hidden = all.length < 2;
    this.thumbnails.replaceChildren(...(all.length < 2 ? [] : all.map(({ lane, blob, sample }) => {
      const canvas = h("canvas");
      paint(canvas, blob, THUMBNAIL);
      const current = lane === this.lane && sample === this.sample;
      const name = this.label(lane, sample);
      const open = async () => {
        await this.open(this.round, lane, sample);
        this.thumbnails.querySelector("[aria-pressed=true]")?.focus();
      };
      return h("button.thumbnail", { type: "button", "aria-pressed": String(current), onclick: open }, canvas, h("span", {}, name));
    })));
  }

  renderFiles() {
    const { images, mask, settings } = this.lane.filled;
    const output = first(this.settings.output) ?? `${stem(this.round.input.name)}-${this.lane.method.name}.png`;
    const result = images.length > 1 ? `${stem(output)}-${this.sample}.png` : output;
    const config = `${stem(output)}-settings.json`;
    const files = /** @type {[string, Blob|null, string][]} */ ([
      ["Download PNG", this.blob, result],
      ["Settings", settings, config],
      ["Mask", mask, first(this.settings.mask) ?? `${stem(this.round.input.name)}-mask.png`],
      ["Input", this.round.input.image, first(this.settings.image) ?? this.round.input.name],
    ]);
    this.downloads.replaceChildren(...files.filter(([, blob]) => blob).map(([text, blob, name]) =>
      button(text, () => download(/** @type {Blob} */ (blob), name), { icon: "download", label: `${text}: ${name}` })));
    this.command.textContent = `rad sample --config ${config}`;
  }

  async copy(target) {
    try {
      await navigator.clipboard.writeText(this.command.textContent);
      target.lastChild.textContent = "Copied";
    } catch {
      getSelection()?.selectAllChildren(this.command);
      target.lastChild.textContent = "Press Ctrl+C";
    }
    setTimeout(() => { target.lastChild.textContent = "Copy"; }, 2000);
  }

  send(name) {
    this.dispatchEvent(new CustomEvent(name, { detail: { lane: this.lane, blob: this.blob } }));
  }
}

/** A value, or the first of a list. */
function first(value) {
  return Array.isArray(value) ? value[0] : value;
}
