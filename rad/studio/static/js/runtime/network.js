/** Networks of an exported folder (rad export --onnx), run by onnxruntime-web. */

import { estimateOf } from "./sampler.js";

const ORT = new URL("../../vendor/onnxruntime-web/", import.meta.url).href;

/** A network, called as rad.diffusion.Denoiser. */
export class Network {
  /** @param {object} session of onnxruntime-web @param {object} ort @param {object} options of `estimateOf` */
  constructor(session, ort, options) {
    Object.assign(this, { session, ort, options });
  }

  /**
   * Estimate the clean images from x (B,C,H,W) at the level `now`.
   * @param {Float32Array} x @param {import("./process.js").NoiseLevel} now
   * @param {import("./solvers.js").Shape} shape @param {[number, number]} size H, W
   */
  async estimate(x, now, shape, [height, width]) {
    const { count, channels, pixels } = shape;
    const indicators = new Float32Array(count * now.levels * pixels).fill(now.index ? 0 : 1);
    now.index?.forEach((level, at) => {
      indicators[(Math.floor(at / pixels) * now.levels + level) * pixels + (at % pixels)] = 1;
    });
    const tensor = (values, dims) => new this.ort.Tensor("float32", values, dims);
    const results = await this.session.run({
      sample: tensor(x, [count, channels, height, width]),
      timesteps: tensor(Float32Array.from(now.timesteps), [count, now.levels]),
      levels: tensor(indicators, [count, now.levels, height, width]),
    });
    const output = Float32Array.from(results.output.data);
    for (const value of output) if (!Number.isFinite(value)) throw new Error("the network's output is not finite");
    return estimateOf(x, output, now, shape, this.options);
  }
}

/** An exported model: `settings` of its runtime.json, and its networks, loaded at their first use. */
export class Model {
  /** @param {string} folder URL that ends in a slash @param {object} settings */
  constructor(folder, settings) {
    Object.assign(this, { folder, settings, networks: {} });
  }

  /** @param {string} folder URL that ends in a slash */
  static async open(folder) {
    const settings = JSON.parse(new TextDecoder().decode(await download(new URL("runtime.json", folder))));
    if (settings.format !== 1) throw new Error(`the model has format ${settings.format}; this page reads format 1`);
    return new Model(folder, settings);
  }

  /** @param {"rad"|"base"} name @returns {Promise<Network>} */
  network(name) {
    this.networks[name] ??= this.load(name).catch((error) => {
      delete this.networks[name]; // the next run tries again
      throw error;
    });
    return this.networks[name];
  }

  async load(name) {
    const { file, sha256 } = this.settings.networks[name];
    const [ort, bytes] = await Promise.all([runtime(), download(new URL(file, this.folder))]);
    await checkHash(file, bytes, sha256);
    const session = await ort.InferenceSession.create(new Uint8Array(bytes), { executionProviders: ["wasm"] });
    const { prediction, clip, learned_variance: ofRad, base_learned_variance: ofBase } = this.settings;
    return new Network(session, ort, { prediction, clip, learned: name === "rad" ? ofRad : ofBase });
  }
}

let loading = null;

/** onnxruntime-web, once. It uses threads only where the page is cross-origin isolated. */
function runtime() {
  loading ??= import(`${ORT}ort.wasm.bundle.min.mjs`).then((ort) => {
    ort.env.wasm.wasmPaths = { wasm: `${ORT}ort-wasm-simd-threaded.wasm` };
    ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1;
    return ort;
  });
  return loading;
}

async function download(url) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url.pathname} cannot be loaded (status ${response.status})`);
  return response.arrayBuffer();
}

/** Throws an Error if a file is damaged. Browsers offer the check to pages of https and localhost alone. */
async function checkHash(file, bytes, expected) {
  if (!self.crypto?.subtle) return;
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  const hash = [...digest].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  if (hash !== expected) throw new Error(`${file} is damaged: its SHA-256 is not the one in runtime.json`);
}
