/**
 * The worker of the static demo: it loads the model, and fills images while the page stays responsive.
 *
 * Messages in: {call: "info" | "methods" | "run" | "cancel" | "readMask", id, ...}. Messages out: {id, event} for the progress of
 * a run, and one {id, result} or {id, error} for each call but "cancel".
 */

import { crc32, encodePng } from "../png.js";
import { profileOf, withProfile } from "./colour.js";
import { fill, paceOf, prepare } from "./inpainter.js";
import { methodOf, methodsOf } from "./methods.js";
import { Model } from "./network.js";
import { greyOf, interleaved, readHole, readMask, readPicture } from "./picture.js";
import { Preview } from "./preview.js";
import { settingsOf } from "./record.js";
import { breathe, Turns, Watch } from "./turns.js";

const PREVIEW_EVERY = 200; // milliseconds
const REPORT_EVERY = 100;
const PREVIEW_SIZE = 512; // pixels
const EMPTY = "the mask is empty: nothing is filled";

const folder = new URL(new URL(self.location.href).searchParams.get("model"), self.location.href).href;
const turns = new Turns();
const cancelled = new Set();
let opened = null;

class Cancelled extends Error {}

function model() {
  opened ??= Model.open(folder).catch((error) => {
    opened = null;
    throw error;
  });
  return opened;
}

/** One run: its turns, its progress, and its result. */
class Run {
  constructor({ id, image, mask, name, settings }) {
    Object.assign(this, { id, image, mask, name, given: settings });
    this.watch = new Watch();
    this.progress = { state: "queued", nfe: 0, planned: 0, position: 0, warnings: [], preview: null };
    this.drawn = this.sent = -Infinity;
  }

  async result() {
    this.report({ position: turns.length });
    await turns.enter();
    try {
      return await this.fill();
    } finally {
      turns.leave();
    }
  }

  async fill() {
    const { settings: described, ...loaded } = await this.load();
    this.check();
    const run = await this.prepared(described, loaded);
    this.report({ state: "running", planned: run.planned, warnings: run.planned ? [] : [EMPTY] });
    this.preview = new Preview(run.picture, run.layout, PREVIEW_SIZE);
    this.watch.start();
    const pictures = await fill(loaded.network, run, (done, batch) => this.afterCall(done, batch));
    this.watch.stop();
    const settings = JSON.stringify(settingsOf(described, run, this.name), null, 2);
    const images = await this.encode(pictures, settings);
    const mask = await encodePng(greyOf(loaded.hole, loaded.picture), loaded.picture.width, loaded.picture.height);
    this.report({ state: "done", nfe: run.planned });
    return { images, mask, settings: new Blob([settings, "\n"], { type: "application/json" }) };
  }

  /** The network, and the inputs in memory. */
  async load() {
    const loaded = await model();
    const picture = await readPicture(this.image);
    const hole = this.mask && (await readHole(this.mask, this.given.soft_mask));
    if (hole && (hole.width !== picture.width || hole.height !== picture.height)) {
      throw new Error(`the mask is ${hole.width}x${hole.height} and the image ${picture.width}x${picture.height}`);
    }
    const network = await loaded.network(methodOf(loaded.settings, this.given.method).network);
    return { settings: loaded.settings, network, picture, hole };
  }

  async prepared(described, { network, picture, hole }) {
    const pace = this.given.budget_seconds ? await paceOf(network, described.size) : null;
    return prepare(described, picture, hole, this.given, { name: this.name, pace });
  }

  async encode(pictures, settings) {
    const profile = await profileOf(this.image);
    const encode = async (picture) => {
      const png = await encodePng(interleaved(picture), picture.width, picture.height, 3, { "rad-settings": settings });
      return withProfile(png, profile, crc32);
    };
    return Promise.all(pictures.map(encode));
  }

  /** Report, let the next run go on, and wait for the next turn. Throws Cancelled. */
  async afterCall(done, batch) {
    this.watch.stop();
    this.progress.nfe = done;
    this.preview.paint(batch);
    const now = performance.now();
    if (now - this.drawn > PREVIEW_EVERY) {
      this.drawn = now;
      this.progress.preview = await this.preview.blob();
    }
    if (now - this.sent > REPORT_EVERY) this.report({});
    await breathe();
    turns.leave();
    await turns.enter();
    this.check();
    this.watch.start();
  }

  check() {
    if (cancelled.has(this.id)) throw new Cancelled("the run was cancelled");
  }

  report(change) {
    this.sent = performance.now();
    Object.assign(this.progress, change);
    self.postMessage({ id: this.id, event: { ...this.progress, seconds: this.watch.total } });
  }
}

async function run(message) {
  const each = new Run(message);
  try {
    return await each.result();
  } catch (error) {
    error.state = error instanceof Cancelled ? "cancelled" : "failed";
    each.report({ state: error.state });
    throw error;
  } finally {
    cancelled.delete(message.id);
  }
}

const calls = {
  info: async () => (await model()).settings,
  methods: async () => methodsOf((await model()).settings),
  run,
  readMask: async ({ file }) => {
    const { width, height, values, ...messages } = await readMask(file);
    return { blob: await encodePng(values, width, height), width, height, ...messages };
  },
};

self.onmessage = async ({ data }) => {
  if (data.call === "cancel") {
    cancelled.add(data.id);
    return;
  }
  try {
    self.postMessage({ id: data.id, result: await calls[data.call](data) });
  } catch (error) {
    self.postMessage({ id: data.id, error: error.message, state: error.state });
  }
};
