/** The page around the editor: it connects settings, rounds, results and messages. */

import { keyOf } from "../editor/keys.js";
import { button, h, segments } from "./dom.js";
import { History } from "./history.js";
import { display, filledName } from "./images.js";
import { ResultView } from "./result.js";
import { Round } from "./round.js";
import { Settings } from "./settings.js";
import { Welcome } from "./welcome.js";
import { maskText } from "./words.js";

const VIEWS = /** @type {[string, string][]} */ ([["editor", "Edit"], ["progress", "Progress"], ["result", "Result"]]);

/** Starts with `await new Panel(...).start()`. */
export class Panel {
  /**
   * @param {any} editor
   * @param {any} backend
   * @param {import("./notices.js").Notices} notices
   * @param {any} info - of `backend.info()`
   */
  constructor(editor, backend, notices, info) {
    Object.assign(this, { editor, backend, notices, info });
    this.round = null;
    this.view = "editor";
    this.element = (id) => /** @type {HTMLElement} */ (document.getElementById(id));
  }

  async start() {
    const { editor, backend, info } = this;
    const body = h("div.body");
    this.element("tools").prepend(button("New", () => this.show("start"), { icon: "open", look: "quiet", id: "new" }));
    this.element("new").title = "Another image, or an example";
    this.settings = new Settings(body, backend, info);
    this.history = new History(body);
    this.fill = button("Fill", () => (this.round?.running ? this.round.cancel() : this.run()), { look: "primary big", id: "fill" });
    this.summary = h("p.note", { id: "summary" });
    this.element("panel").append(body, h("div.footer", {}, this.fill, this.summary));
    this.tabs = segments(this.element("views"), VIEWS, (view) => this.show(view));
    this.result = new ResultView(this.element("result"));
    this.zoomBar = this.buildZoomBar();
    this.welcome = new Welcome(this.element("welcome"), info, (url) => backend.file(url));
    this.listen();
    await this.notices.insist(() => this.settings.load());
    await editor.restore().catch((error) => this.notices.show(error.message));
    this.show("editor");
    this.render();
  }

  listen() {
    const { editor, settings, history, result, welcome } = this;
    for (const name of ["image", "mask", "extend"]) editor.addEventListener(name, () => this.edited(name));
    editor.addEventListener("show", () => this.unzoom());
    editor.addEventListener("error", (event) => this.notices.show(event.detail));
    editor.openMaskFile = (file) => this.openMask(file);
    editor.decodeImage = (file) => this.backend.readImage(file);
    settings.addEventListener("change", () => this.render());
    settings.addEventListener("submit", () => this.run());
    settings.addEventListener("error", (event) => this.notices.show(event.detail));
    history.addEventListener("open", (event) => this.openResult(event.detail.round, event.detail.lane));
    result.addEventListener("continue", (event) => this.continueFrom(event.detail.lane, event.detail.blob));
    result.addEventListener("zoom", (event) => this.zoom(event.detail.lane, event.detail.blob));
    this.element("home").addEventListener("click", () => this.show("start"));
    welcome.addEventListener("back", () => this.show("editor"));
    welcome.addEventListener("reopen", () => editor.reopen());
    welcome.addEventListener("file", (event) => this.open(event.detail, event.detail.name));
    welcome.addEventListener("example", (event) => this.openExample(event.detail));
    document.addEventListener("keydown", (event) => this.key(event));
    document.addEventListener("keyup", (event) => keyOf(event) === "o" && this.peek(false));
    window.addEventListener("blur", () => this.peek(false));
  }

  /** Show one of the views or "start"; without an image the start page takes the place of the editor. */
  show(view) {
    if (view !== this.view) scrollTo(0, 0);
    this.view = view;
    this.tabs.select(view);
    const { image, previous } = this.editor;
    const shown = view === "start" || (view === "editor" && !image) ? "welcome" : view;
    if (shown === "welcome") this.welcome.offer(image?.name, previous?.image.name);
    this.element("new").hidden = shown === "welcome";
    for (const id of ["editor", "welcome", "progress", "result"]) this.element(id).toggleAttribute("data-hidden", id !== shown);
    document.body.dataset.view = shown;
    if (view === "result") this.result.slider.layout();
    this.render();
  }

  render() {
    const running = Boolean(this.round?.running);
    const race = this.settings.mode === "race" && this.settings.chosen.length > 1;
    const image = this.view !== "start" && this.editor.image;
    this.fill.replaceChildren(running ? (this.round.race ? "Cancel the race" : "Cancel") : race ? "Start the race" : "Fill");
    this.fill.classList.toggle("primary", !running);
    this.fill.title = running ? "" : "Ctrl+Enter";
    this.fill.disabled = (!image || this.opening) && !running;
    const hint = image ? this.settings.summary : "Open an image first.";
    this.summary.textContent = running ? "You can edit the mask meanwhile." : hint;
    this.tabs.enable("progress", Boolean(this.round));
    this.tabs.enable("result", Boolean(this.result.lane));
    this.result.zoom.hidden = !this.result.lane || !this.isOpen(this.result.lane.input);
    this.settings.showSoft(this.editor.soft);
  }

  edited(name) {
    if (this.zoomed) this.unzoom();
    if (name === "image" || this.view !== "editor") this.show("editor");
    if (name === "image") {
      this.notices.clear();
      this.checkSize();
    }
    this.render();
  }

  /** Warn about an image that the server would refuse, before it is painted on. */
  checkSize() {
    const { width, height, name, blob } = this.editor.image;
    const { max_megapixels: pixels = Infinity, max_bytes: bytes = Infinity } = this.info.limits;
    const most = width * height > pixels * 1e6 ? `${pixels} megapixels` : blob.size > bytes ? `${bytes / 1e6} MB` : "";
    if (most) this.notices.show(`The image ${name} is too large to fill: this server takes up to ${most}. Make it smaller first.`);
  }

  async open(blob, name) {
    this.notices.clear();
    try {
      await this.editor.open(blob, name);
    } catch (error) {
      this.notices.show(error.message);
    }
  }

  async openExample(example) {
    this.opening = true; // nothing can be filled before the mask is there
    try {
      const [image, mask] = await Promise.all([example.image, example.mask].map((url) => url && this.backend.file(url)));
      await this.open(image, example.name.includes(".") ? example.name : `${example.name}.png`);
      if (mask) await this.editor.setMask(mask);
    } catch (error) {
      this.notices.show(`The example could not be opened: ${error.message}`);
    }
    this.opening = false;
    this.render();
  }

  async openMask(file) {
    const image = this.editor.image;
    try {
      const { blob, notes, warnings } = await this.backend.readMask(file, image && new File([image.blob], image.name));
      for (const text of [...notes, ...warnings]) this.notices.show(`Mask: ${maskText(text)}`, { error: false });
      return blob;
    } catch (error) {
      throw new Error(maskText(error.message));
    }
  }

  /** Start a fill or a race, unless one runs. */
  async run() {
    if (!this.editor.image || this.view === "start" || this.starting || this.round?.running) return;
    this.starting = true;
    try {
      this.notices.clear();
      await this.begin();
    } catch (error) {
      this.notices.show(error.message);
    }
    this.starting = false;
  }

  async begin() {
    const { image } = this.editor;
    const { chosen, wrong } = this.settings;
    if (!chosen.length) throw new Error("Choose at least one method.");
    if (wrong) {
      for (let parent = wrong.closest("details"); parent; parent = parent.parentElement.closest("details")) parent.open = true;
      wrong.focus();
      throw new Error(`Check the marked number: ${wrong.validationMessage}`);
    }
    const mask = await this.editor.maskBlob();
    const extend = [...this.editor.extend];
    const extended = extend.some((side) => side > 0);
    if (!mask && !extended) throw new Error("The mask is empty. Brush over the part to fill first.");
    const input = { image: image.blob, mask, name: image.name, extend, ...(await display(this.backend, image, mask, extend)) };
    const more = { ...(extended && { extend: extend.join(",") }), ...(this.editor.soft && { soft_mask: true }) };
    this.watch(new Round(this.backend, input, chosen.map((method) => [method, { ...this.settings.value(method.name), ...more }])));
  }

  /** Show a round and start it. */
  watch(round) {
    this.unzoom();
    this.round = round;
    round.addEventListener("say", (event) => this.notices.say(event.detail));
    round.addEventListener("open", (event) => this.openResult(round, event.detail));
    round.addEventListener("continue", (event) => this.continueFrom(event.detail, event.detail.filled.images[0]));
    round.addEventListener("lane", (event) => this.laneEnded(round, event.detail));
    this.element("progress").replaceChildren(round.element);
    this.show("progress");
    round.start();
    this.render();
  }

  laneEnded(round, lane) {
    if (lane.state === "done") {
      this.history.add(round, lane);
      if (round === this.result.round && lane !== this.result.lane) this.result.refresh();
      if (!round.race && round === this.round && this.view === "progress") this.openResult(round, lane);
    }
    this.render();
  }

  async openResult(round, lane) {
    await this.result.open(round, lane);
    this.show("result");
    this.render();
  }

  /** Whether the image of a lane is that of the editor, in the same size. */
  isOpen(input) {
    const { image, extend } = this.editor;
    return input.image === image?.blob && String(input.extend) === String([...extend]);
  }

  /** Make a result the image of the editor. */
  async continueFrom(lane, blob) {
    await this.open(blob, filledName(lane.input.name));
    this.show("editor");
  }

  buildZoomBar() {
    const text = h("span");
    const bar = h("div.zoombar", { hidden: true }, text,
      button("Back to the image", () => this.unzoom(), { icon: "close", label: "Show the image again" }),
      button("Result", () => this.show("result")));
    this.element("stage").append(bar);
    this.zoomText = text;
    return bar;
  }

  /** Show a result in the editor, with its zoom. */
  zoom(lane, blob) {
    this.zoomed = blob;
    this.editor.show(blob);
    this.zoomText.textContent = `Result of ${lane.title}. Hold O to see the original.`;
    this.zoomBar.hidden = false;
    this.show("editor");
  }

  unzoom() {
    if (!this.zoomed) return;
    this.zoomed = null;
    this.zoomBar.hidden = true;
    this.editor.show(null);
  }

  key(event) {
    if ((event.ctrlKey || event.metaKey) && event.key === "Enter") {
      event.preventDefault();
      const field = event.target.closest?.("input, textarea");
      field?.blur(); // a number that is still being typed counts
      field?.focus();
      this.run();
      return;
    }
    const typing = event.target.closest?.("input:not([type=range]), textarea, select");
    if (!typing && keyOf(event) === "o" && !event.ctrlKey && !event.metaKey && !event.altKey && !event.repeat) this.peek(true);
  }

  peek(on) {
    if (this.view === "result") this.result.peek(on);
    else if (this.zoomed && this.view === "editor") this.editor.show(on ? null : this.zoomed);
  }
}
