/** One lane: a run of one method with its progress, preview and result. */

import { button, h } from "./dom.js";
import { paint } from "./images.js";
import { methodTitle, ordinal, plural, secondsText, sentence, STATES } from "./words.js";

const PREVIEW = 512;
const FINISHED = 1024;

/**
 * @typedef {{image: Blob, shown: Blob, poster: HTMLCanvasElement, mask: Blob|null, name: string, extend: number[]}} Input
 *   image: the user's file; shown: the same for display; poster: the image with its hole, small
 */

/** Events: "change" at every state; "open" and "continue" when the user asks for it. */
export class Lane extends EventTarget {
  /**
   * @param {any} backend
   * @param {Input} input
   * @param {any} method - as in GET /v1/methods
   * @param {Record<string, any>} settings - fields of POST /v1/inpaint
   * @param {boolean} race - whether it runs beside others, and has a button to cancel it alone
   */
  constructor(backend, input, method, settings, race) {
    super();
    Object.assign(this, { backend, input, method, settings, race });
    this.title = methodTitle(method);
    this.place = 0;
    this.build();
    this.reset();
  }

  /** Whether it neither runs nor waits. */
  get ended() {
    return !["starting", "queued", "running"].includes(this.state);
  }

  get seconds() {
    return this.update.seconds;
  }

  reset() {
    this.state = "starting";
    this.update = { nfe: 0, planned: 0, seconds: 0, position: null, preview: null, warnings: [] };
    this.filled = null;
    this.message = "";
    this.place = 0;
    this.painted = null;
    this.paintInput();
    this.render();
  }

  /** Show the image with its hole. */
  paintInput() {
    const { poster } = this.input;
    [this.canvas.width, this.canvas.height] = [poster.width, poster.height];
    this.canvas.getContext("2d")?.drawImage(poster, 0, 0);
    this.frame.style.aspectRatio = `${poster.width} / ${poster.height}`;
  }

  /** Start the run, or start it again. Never throws: failures become the state. */
  async start() {
    this.reset();
    const { image, mask, name } = this.input;
    this.job = this.backend.run({ image, mask, name, settings: this.settings }, (update) => this.receive(update));
    try {
      this.filled = await this.job.result;
      this.state = "done";
      await this.show(this.filled.images[0], FINISHED);
    } catch (error) {
      this.state = error.state ?? (error.retryAfter ? "refused" : "failed");
      this.message = error.message;
      if (error.retryAfter) this.message = `The queue of the server is full. Try again in ${plural(error.retryAfter, "second")}.`;
    }
    this.render();
    this.dispatchEvent(new Event("change"));
  }

  cancel() {
    if (!this.ended) this.job?.cancel();
  }

  receive(update) {
    this.update = { ...this.update, ...update };
    if (["queued", "running"].includes(update.state)) this.state = update.state;
    if (update.preview) this.show(update.preview, PREVIEW);
    this.render();
    this.dispatchEvent(new Event("change"));
  }

  /** Paint an image; while one is being decoded the newest waits and older ones are dropped. */
  async show(blob, longest) {
    if (blob === this.painted) return;
    this.painted = blob;
    if (this.painting) return;
    this.painting = true;
    try {
      for (let drawn = null; drawn !== this.painted;) {
        drawn = this.painted;
        await paint(this.canvas, drawn, drawn === this.filled?.images[0] ? FINISHED : longest);
      }
    } catch {
      // A broken preview is not the end of the run.
    }
    this.painting = false;
  }

  build() {
    this.canvas = h("canvas", { role: "img", "aria-label": `${this.title}: estimate of the image` });
    this.badge = h("span.badge");
    this.bar = h("progress", { max: 1, "aria-label": `Progress of ${this.title}` });
    this.calls = h("span.calls");
    this.time = h("span.time");
    this.text = h("p.message");
    this.actions = h("div.actions");
    this.frame = h("button.frame", { type: "button", onclick: () => this.dispatchEvent(new Event("open")) }, this.canvas);
    this.element = h("article.lane", { "aria-label": this.title },
      h("header", {}, h("h3", {}, this.title), this.badge), this.frame, this.bar,
      h("p.numbers", {}, this.calls, this.time), this.text, this.actions);
  }

  render() {
    const { nfe, planned, seconds, position, warnings } = this.update;
    const share = planned ? Math.min(1, nfe / planned) : 0;
    this.element.dataset.state = this.state;
    this.badge.textContent = this.badgeText(share);
    this.badge.classList.toggle("first", this.place === 1);
    this.bar.value = this.state === "done" ? 1 : share;
    // A line search may need more calls than planned.
    this.calls.textContent = !planned ? "" : nfe > planned ? `${plural(nfe, "call")}, ${planned.toLocaleString("en")} planned`
      : `${nfe.toLocaleString("en")} / ${plural(planned, "call")}`;
    this.time.textContent = seconds ? secondsText(seconds) : "";
    this.frame.disabled = this.state !== "done";
    this.frame.setAttribute("aria-label", this.state === "done" ? `Open the result of ${this.title}` : `Preview of ${this.title}`);
    const waiting = this.state === "queued" && position !== null ? (position ? `${plural(position, "run")} before this one` : "Next in the queue") : "";
    this.text.textContent = [this.message || waiting, ...(warnings ?? [])].filter(Boolean).map(sentence).join(" ");
    this.text.hidden = !this.text.textContent;
    if (this.shownState !== `${this.state} ${this.place}`) this.renderActions();
  }

  badgeText(share) {
    if (this.state === "running") return `${share && share < 0.01 ? "<1" : Math.floor(share * 100)} %`;
    return this.place ? ordinal(this.place) : STATES[this.state];
  }

  renderActions() {
    const focused = this.actions.contains(document.activeElement);
    this.shownState = `${this.state} ${this.place}`;
    const event = (name) => () => this.dispatchEvent(new Event(name));
    const done = [
      button("Compare", event("open"), { label: `Compare ${this.title} with the original` }),
      button("Use this", event("continue"), { look: this.place === 1 ? "primary" : "", label: `Continue from ${this.title}` }),
    ];
    const again = [button("Run again", () => this.start(), { icon: "again", label: `Run ${this.title} again` })];
    const cancel = [button("Cancel", () => this.cancel(), { look: "quiet", icon: "close", label: `Cancel ${this.title}` })];
    this.actions.replaceChildren(...(this.state === "done" ? done : this.ended ? again : this.race ? cancel : []));
    if (focused) this.actions.querySelector("button")?.focus();
  }
}
