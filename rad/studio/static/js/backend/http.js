/** Fills images through the HTTP API of `rad studio`, see docs/guides/studio.md. */

/**
 * @typedef {{state: string, nfe: number, planned: number, seconds: number, position: number|null, preview: Blob|null, warnings: string[]}} Update
 * @typedef {{image: Blob, mask: Blob|null, name: string, settings: Record<string, any>}} Request
 * @typedef {{images: Blob[], mask: Blob|null, settings: Blob}} Filled
 */

const ENDED = ["done", "failed", "cancelled"];
const POLL_ONLINE = 5000;
const POLL_OFFLINE = 1500;
const RECONNECTS = 3;
const POLL_JOB = 300;
const RECONNECT = 400;
const ANSWER = 10_000;

/** An answer with an error of the server. `retryAfter`: seconds, when the queue is full. */
export class Refused extends Error {
  constructor(message, status, retryAfter = null) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

/** The run ended without a result. `state`: failed, cancelled or lost (the server does not answer, or forgot the job). */
export class Ended extends Error {
  constructor(message, state) {
    super(message);
    this.state = state;
  }
}

/** Events: "offline" and "online", when the server stops and starts to answer. */
export class Backend extends EventTarget {
  constructor() {
    super();
    this.online = true;
    this.token = readToken();
    addEventListener("hashchange", () => { if (addressToken()) location.reload(); }); // an address that was opened in this tab
    /** @type {Job|null} the job whose events are streamed */
    this.streamed = null;
    /** @type {Map<() => void, number>} pauses, by the time of their end */
    this.pauses = new Map();
    this.poll();
  }

  async info() {
    const [models, limits, examples] = await Promise.all(["models", "limits", "examples"].map((name) => this.ask(`v1/${name}`)));
    return { models: models.models, defaultModel: models.default, examples: examples.examples, limits, static: false };
  }

  /** @param {string} model */
  async methods(model) {
    return (await this.ask(`v1/methods?model=${encodeURIComponent(model)}`)).methods;
  }

  /** Image or mask of an example. */
  async file(url) {
    return (await this.fetch(url)).blob();
  }

  /** @returns {Promise<{blob: Blob, notes: string[], warnings: string[]}>} mask of any file, as 8-bit grey PNG, white = fill */
  async readMask(file, image) {
    const form = new FormData();
    form.append("mask", file, file.name);
    if (image) form.append("image", image, image.name);
    const read = () => this.json("v1/mask", { method: "POST", body: form });
    const soft = await isGreyPng(file);
    if (soft) form.append("soft_mask", "true");
    const answer = await read().catch((error) => {
      if (!soft || !(error instanceof Refused)) throw error;
      form.delete("soft_mask"); // for labels, such as 0 and 1
      return read();
    });
    const bytes = Uint8Array.from(atob(answer.mask), (letter) => letter.charCodeAt(0));
    return { blob: new Blob([bytes], { type: "image/png" }), notes: answer.notes, warnings: answer.warnings };
  }

  /** @returns {Promise<Blob>} PNG of an image that this browser cannot show */
  async readImage(file) {
    const form = new FormData();
    form.append("image", file, file.name ?? "image");
    return (await this.fetch("v1/image", { method: "POST", body: form })).blob();
  }

  /**
   * Start a job.
   * @param {Request} request
   * @param {(update: Update) => void} onEvent
   * @returns {{cancel(): void, result: Promise<Filled>}}
   */
  run(request, onEvent) {
    const job = new Job(this, request, onEvent);
    return { cancel: () => job.cancel(), result: job.run() };
  }

  /** Wait for a time. In hidden tabs, whose timers are slow, `beat` ends the pause. */
  async pause(milliseconds) {
    await new Promise((resolve) => {
      const wake = () => this.pauses.delete(wake) && resolve(null);
      this.pauses.set(wake, Date.now() + milliseconds);
      setTimeout(wake, milliseconds);
    });
  }

  /** End the pauses that are due. */
  beat() {
    for (const [wake, end] of this.pauses) if (end <= Date.now()) wake();
  }

  /** `json` with a limit of time: a server that does not answer counts as away. */
  ask(path) {
    return this.json(path, { signal: AbortSignal.timeout(ANSWER) });
  }

  async json(path, options = {}) {
    return (await this.fetch(path, options)).json();
  }

  /** `fetch` with the token. Throws `Refused` for an answer with an error, TypeError when the server does not answer. */
  async fetch(path, options = {}) {
    const headers = new Headers(options.headers);
    if (this.token) headers.set("Authorization", `Bearer ${this.token}`);
    let response;
    try {
      response = await fetch(path, { ...options, headers, cache: "no-store" });
    } catch (error) {
      if (error.name !== "AbortError") this.answers(false);
      throw error;
    }
    this.answers(true);
    if (response.ok) return response;
    const retry = response.status === 429 ? Number(response.headers.get("Retry-After")) || 5 : null;
    throw new Refused(await errorText(response), response.status, retry);
  }

  answers(online) {
    if (online === this.online) return;
    this.online = online;
    this.dispatchEvent(new Event(online ? "online" : "offline"));
    if (!online) this.poll();
  }

  /** Ask for the health of the server from time to time, more often when it does not answer. */
  poll() {
    clearTimeout(this.timer);
    this.timer = setTimeout(async () => {
      await this.ask("v1/health").catch(() => null);
      this.poll();
    }, this.online ? POLL_ONLINE : POLL_OFFLINE);
  }
}

/**
 * One job on the server, from its request to its files.
 *
 * Browsers open six connections to a server. One job of a tab reads the stream of its events; the others ask for their state.
 */
class Job {
  constructor(backend, request, onEvent) {
    this.backend = backend;
    this.request = request;
    this.onEvent = onEvent;
    this.id = null;
    this.cancelled = false;
    this.shown = 0;
    this.loading = null;
    /** @type {Update} */
    this.update = { state: "queued", nfe: 0, planned: 0, seconds: 0, position: null, preview: null, warnings: [] };
  }

  async run() {
    let job;
    try {
      job = await this.backend.json("v1/inpaint", { method: "POST", body: formOf(this.request) });
    } catch (error) {
      if (error instanceof Refused) throw error;
      throw this.lost();
    }
    this.id = job.id;
    if (this.cancelled) this.cancel();
    this.report(job);
    job = await this.follow(job);
    if (job.state !== "done") throw new Ended(job.error ?? "This run was cancelled.", job.state);
    return this.files(job);
  }

  cancel() {
    this.cancelled = true;
    if (this.id) this.backend.fetch(`v1/jobs/${this.id}`, { method: "DELETE" }).catch(() => null);
  }

  /** Follow the job until it has ended. Reconnects when the connection breaks. */
  async follow(job) {
    for (let failures = 0; !ENDED.includes(job.state);) {
      try {
        for await (const state of this.states()) {
          job = state;
          failures = 0;
          this.report(job);
        }
      } catch (error) {
        failures += 1;
        if (error instanceof Refused || failures > RECONNECTS) throw this.lost();
        await this.backend.pause(RECONNECT);
      }
    }
    return job;
  }

  /** States of the job: those of its stream if no other job of this tab has one, else the current state. */
  async *states() {
    const { backend } = this;
    if (backend.streamed) {
      await backend.pause(POLL_JOB);
      yield await backend.json(`v1/jobs/${this.id}`);
      return;
    }
    backend.streamed = this;
    try {
      yield* this.events();
    } finally {
      backend.streamed = null;
    }
  }

  /** Jobs of the stream of server-sent events. Throws when it ends before the job. */
  async *events() {
    const response = await this.backend.fetch(`v1/jobs/${this.id}/events`, { headers: { Accept: "text/event-stream" } });
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let [text, state] = ["", "queued"];
    while (!ENDED.includes(state)) {
      const { done, value } = await reader.read();
      if (done) throw new Error("the stream of events ended early");
      this.backend.beat();
      const parts = (text + value).replaceAll("\r", "").split("\n\n");
      text = parts.pop() ?? "";
      for (const part of parts) {
        const lines = part.split("\n").filter((line) => line.startsWith("data:"));
        if (!lines.length) continue;
        const job = JSON.parse(lines.map((line) => line.slice(5)).join("\n"));
        state = job.state;
        yield job;
      }
    }
    reader.cancel().catch(() => null);
  }

  report(job) {
    const { state, nfe, planned, seconds, position, warnings } = job;
    Object.assign(this.update, { state, nfe, planned, seconds, position, warnings: warnings ?? [] });
    this.onEvent({ ...this.update });
    if (job.preview > this.shown && state === "running") this.loadPreview(job.preview);
  }

  /** Load a preview, one at a time; the newest follows. */
  async loadPreview(number) {
    if (this.loading) return;
    this.loading = number;
    try {
      this.update.preview = await (await this.backend.fetch(`v1/jobs/${this.id}/preview`)).blob();
      this.shown = number;
      if (this.update.state === "running") this.onEvent({ ...this.update });
    } catch {
      // The next event asks again.
    }
    this.loading = null;
  }

  async files(job) {
    const blob = async (path) => (await this.backend.fetch(`v1/jobs/${this.id}/${path}`)).blob();
    try {
      const numbers = Array.from({ length: job.samples }, (_, index) => blob(`images/${index}`));
      const [images, mask, settings] = await Promise.all([Promise.all(numbers), blob("mask"), blob("settings")]);
      this.backend.fetch(`v1/jobs/${this.id}`, { method: "DELETE" }).catch(() => null);
      return { images, mask, settings };
    } catch {
      throw this.cancelled ? new Ended("This run was cancelled.", "cancelled") : this.lost();
    }
  }

  lost() {
    this.onEvent({ ...this.update, state: "lost" });
    return new Ended("The server stopped before this run ended.", "lost");
  }
}

/** @param {Request} request */
function formOf({ image, mask, name, settings }) {
  const form = new FormData();
  form.append("image", image, name);
  if (mask) form.append("mask", mask, "mask.png");
  form.append("name", name);
  form.append("watched", "true");
  for (const [key, value] of Object.entries(settings)) {
    if (value === null || value === undefined || value === "") continue;
    form.append(key, key === "set" ? JSON.stringify(value) : String(value));
  }
  return form;
}

/** Whether a file is a PNG of 8-bit grey values, as the editor saves masks. @param {Blob} file */
async function isGreyPng(file) {
  const head = new Uint8Array(await file.slice(0, 26).arrayBuffer());
  return String.fromCharCode(...head.subarray(1, 4)) === "PNG" && head[24] === 8 && head[25] === 0;
}

async function errorText(response) {
  if (response.status === 401) return "This server needs a token. Open the address that `rad studio` printed.";
  try {
    return (await response.json()).error ?? response.statusText;
  } catch {
    return response.statusText || `The server answered with ${response.status}.`;
  }
}

/** Token of the address (`#token=...`). */
function addressToken() {
  return new URLSearchParams(location.hash.slice(1)).get("token");
}

/** Token of the address, which is then removed from the address bar; kept for this tab where the browser keeps data. */
function readToken() {
  const token = addressToken();
  if (token) history.replaceState(null, "", location.pathname + location.search);
  try {
    if (token) sessionStorage.setItem("rad-token", token);
    return token || sessionStorage.getItem("rad-token");
  } catch {
    return token; // Without storage it lasts for this visit.
  }
}
