/** A round: lanes that started together, from one method (a fill) or several (a race). */

import { h } from "./dom.js";
import { Lane } from "./lane.js";
import { ordinal, plural } from "./words.js";

const ANNOUNCE = 5000;

/** Events: "lane" when a lane has ended; "open" and "continue" (detail: the lane); "say" (detail: text for screen readers). */
export class Round extends EventTarget {
  /**
   * @param {any} backend
   * @param {import("./lane.js").Input} input
   * @param {[any, Record<string, any>][]} runs - method and settings
   */
  constructor(backend, input, runs) {
    super();
    this.input = input;
    this.spoken = 0;
    this.lanes = runs.map(([method, settings]) => new Lane(backend, input, method, settings, runs.length > 1));
    for (const lane of this.lanes) {
      lane.addEventListener("change", () => this.changed(lane));
      for (const name of ["open", "continue"]) lane.addEventListener(name, () => this.send(name, lane));
    }
    this.title = h("h2");
    this.element = h("div.round", {}, h("header.bar", {}, this.title),
      h("div.lanes", { "data-count": this.lanes.length }, ...this.lanes.map((lane) => lane.element)));
    this.render();
  }

  get race() {
    return this.lanes.length > 1;
  }

  get running() {
    return this.lanes.some((lane) => !lane.ended);
  }

  get finished() {
    return this.lanes.filter((lane) => lane.state === "done");
  }

  start() {
    for (const lane of this.lanes) lane.start();
  }

  cancel() {
    for (const lane of this.lanes) lane.cancel();
  }

  changed(lane) {
    if (lane.state === "done" && !lane.place && this.race) {
      lane.place = 1 + Math.max(...this.lanes.map((each) => each.place));
      lane.render();
    }
    if (lane.ended) this.send("say", `${lane.title}: ${lane.place ? `${ordinal(lane.place)} place` : lane.state}. ${lane.message}`);
    else this.sayProgress();
    this.render();
    if (lane.ended) this.send("lane", lane);
  }

  sayProgress() {
    if (Date.now() - this.spoken < ANNOUNCE) return;
    this.spoken = Date.now();
    const shares = this.lanes.filter((lane) => lane.state === "running" && lane.update.planned)
      .map((lane) => `${lane.title} ${Math.floor(100 * Math.min(1, lane.update.nfe / lane.update.planned))} percent`);
    if (shares.length) this.send("say", shares.join(", "));
  }

  render() {
    const ended = this.lanes.length - this.lanes.filter((lane) => !lane.ended).length;
    const progress = `${ended} of ${plural(this.lanes.length, "method")} finished`;
    const result = this.finished.length ? "Race finished: choose a winner" : "Race ended";
    this.title.textContent = this.race ? (this.running ? `Race: ${progress}` : result) : this.running ? "Filling ..." : "Fill";
  }

  send(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}
