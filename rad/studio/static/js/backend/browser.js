/** The backend of the static demo: a worker of this page fills the images, and nothing leaves the browser. */

import { MOST_SAMPLES } from "../runtime/inpainter.js";
import { MOST_PIXELS } from "../runtime/picture.js";

const ROOT = new URL("../../", import.meta.url);

/** A call that failed. `state` of a run: failed or cancelled. `status`: it fails again if it is repeated. */
export class Ended extends Error {
  constructor(message, state = "failed") {
    super(message);
    this.state = state;
    this.status = 500;
  }
}

/** The interface of ./http.js without a server. It never emits "offline". */
export class Backend extends EventTarget {
  /** @param {string} [model] URL of an exported folder, relative to the page's files */
  constructor(model = "model/") {
    super();
    const script = new URL("../runtime/worker.js", import.meta.url);
    script.searchParams.set("model", new URL(model, ROOT).href);
    this.worker = new Worker(script, { type: "module" });
    this.worker.onmessage = ({ data }) => this.receive(data);
    this.worker.onerror = () => this.fail(new Ended("This browser cannot run the model: it needs module workers."));
    this.pending = new Map();
    this.last = 0;
    this.broken = null;
  }

  /** @returns {Promise<object>} models, examples and limits, as the service describes them */
  async info() {
    const [model, examples] = await Promise.all([this.call("info"), readExamples()]);
    const { name, kind, size, networks } = model;
    const described = { id: name, source: name, runtime: "onnx", kind, size, text: false, adapter: "rad" in networks };
    const limits = { max_megapixels: MOST_PIXELS / 1e6, max_samples: MOST_SAMPLES, max_steps: model.betas.length };
    return { models: [described], defaultModel: name, examples, limits, static: true };
  }

  /** @returns {Promise<object[]>} the methods, as GET /v1/methods */
  methods() {
    return this.call("methods");
  }

  /** Image or mask of an example. @param {string} url */
  async file(url) {
    const response = await fetch(url);
    if (!response.ok) throw new Error(`${new URL(url).pathname} cannot be loaded (status ${response.status})`);
    return response.blob();
  }

  /**
   * Fill an image.
   * @param {{image: Blob, mask: Blob|null, name: string, settings: object}} request settings: fields of POST /v1/inpaint
   * @param {(progress: object) => void} onEvent state, nfe, planned, seconds, position, preview, warnings
   * @returns {{cancel: () => void, result: Promise<{images: Blob[], mask: Blob, settings: Blob}>}}
   */
  run(request, onEvent) {
    const id = this.last + 1;
    const result = this.call("run", request, onEvent);
    return { cancel: () => this.worker.postMessage({ call: "cancel", id }), result };
  }

  /**
   * A mask file as PNG, 8-bit grey, white = fill, in the size of the image.
   * @param {Blob} file @param {Blob} [image]
   */
  async readMask(file, image) {
    const { width, height, ...mask } = await this.call("readMask", { file });
    if (image) {
      const bitmap = await createImageBitmap(image);
      const fits = bitmap.width === width && bitmap.height === height;
      const text = `the mask is ${width}x${height} and the image ${bitmap.width}x${bitmap.height}: give one of equal size`;
      bitmap.close();
      if (!fits) throw new Error(text);
    }
    return mask;
  }

  /** Images that the browser cannot show need a server. */
  async readImage() {
    throw new Error("the browser cannot read this image: save it as PNG or JPEG");
  }

  call(call, content = {}, onEvent = null) {
    if (this.broken) return Promise.reject(this.broken);
    const id = ++this.last;
    return new Promise((resolve, reject) => {
      this.pending.set(id, { resolve, reject, onEvent });
      this.worker.postMessage({ ...content, call, id });
    });
  }

  receive({ id, event, result, error, state }) {
    const waiting = this.pending.get(id);
    if (!waiting) return;
    if (event) {
      waiting.onEvent?.(event);
      return;
    }
    this.pending.delete(id);
    if (error === undefined) waiting.resolve(result);
    else waiting.reject(new Ended(error, state));
  }

  fail(error) {
    this.broken = error;
    for (const { reject } of this.pending.values()) reject(error);
    this.pending.clear();
  }
}

async function readExamples() {
  const response = await fetch(new URL("examples/examples.json", ROOT));
  if (!response.ok) return [];
  const absolute = (file) => file && new URL(`examples/${file}`, ROOT).href;
  const { examples } = await response.json();
  return examples.map(({ image, mask, ...example }) => ({ ...example, image: absolute(image), mask: absolute(mask) }));
}
