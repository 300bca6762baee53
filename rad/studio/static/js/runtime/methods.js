/** Methods of this runtime: their presets, as in rad/methods/rad.py and repaint.py, and the schedule of a run. */

import { RegionAware, Uniform } from "./process.js";
import { samplingTimesteps, timeTravel } from "./spacings.js";
import { checkSolver, DEFAULTS } from "./solvers.js";

const SOLVERS = Object.keys(DEFAULTS);

export const METHODS = {
  rad: {
    name: "rad",
    summary: "RAD: Region-Aware Diffusion Models for Image Inpainting (Kim, Suh, Lee, CVPR 2025, arXiv 2412.09191).",
    paper: "Kim, Suh, Lee 2025, arXiv 2412.09191",
    network: "rad",
    steps: 20,
    solver: "dpm++2m",
    spacing: "logsnr",
    eta: 0,
    solvers: SOLVERS,
    soft: true,
    fractional: true,
    replaces: false,
    settings: [],
  },
  repaint: {
    name: "repaint",
    summary:
      "RePaint: Inpainting using Denoising Diffusion Probabilistic Models (Lugmayr et al., CVPR 2022, arXiv 2201.09865).",
    paper: "Lugmayr et al. 2022, arXiv 2201.09865",
    network: "base",
    steps: 250,
    solver: "ddpm",
    spacing: "even",
    eta: 1,
    solvers: ["ddpm", "ddim"],
    soft: false,
    fractional: false,
    replaces: true,
    settings: [
      {
        name: "jump_length", type: "int", default: 10, low: 1, high: null, choices: [],
        help: "j, levels of a jump back up; the paper's 10",
      },
      {
        name: "resamplings", type: "int", default: 10, low: 1, high: null, choices: [],
        help: "r, passes through each block of levels; the paper's 10; 1: no jumps",
      },
    ],
  },
};

/**
 * @typedef {object} Plan
 * @property {object} method an entry of METHODS
 * @property {object} set its settings, all of them
 * @property {number} steps @property {string} solver @property {string} spacing @property {number} eta
 * @property {Uniform|RegionAware} process
 * @property {number[]} timesteps t to visit, ending in CLEAN; a t above its predecessor is a forward step
 * @property {number} nfe network calls for each image
 */

/**
 * The schedule of a run. What is null or absent in `settings` has the preset of the method, or of another solver.
 * @param {object} model runtime.json
 * @param {object} settings of the request
 * @returns {Plan}
 */
export function planRun(model, settings) {
  const method = methodOf(model, settings.method);
  const solver = settings.solver ?? method.solver;
  if (!method.solvers.includes(solver)) {
    throw new Error(`solver is ${solver}; allowed for ${method.name} are ${method.solvers.join(", ")}`);
  }
  const preset = [method.spacing, method.eta];
  const [defaultSpacing, defaultEta] = solver === method.solver ? preset : DEFAULTS[solver];
  const [spacing, eta] = [settings.spacing ?? defaultSpacing, Number(settings.eta ?? defaultEta)];
  checkSolver(solver, eta, spacing);
  const set = settingsOf(method, settings.set ?? {});
  const process = method.replaces ? new Uniform(model.betas) : new RegionAware(model.betas, model.time_origin);
  const timestepsFor = (steps) => timesteps(method, set, process, steps, spacing);
  const steps = stepsFor(settings, method, process.sampledSteps, timestepsFor);
  const path = timestepsFor(steps);
  return { method, set, steps, solver, spacing, eta, process, timesteps: path, nfe: callsOf(path) };
}

/**
 * A method by its name. Throws an Error for one that the model does not support.
 * @param {object} model runtime.json @param {string} [name]
 */
export function methodOf(model, name = "rad") {
  const known = supported(model);
  const method = known.find((each) => each.name === name);
  if (!method) throw new Error(`method is ${name}; this page has ${known.map((each) => each.name).join(" and ")}`);
  return method;
}

/** RAD needs weights that were trained on its process. */
const supported = ({ networks, process }) =>
  Object.values(METHODS).filter(({ name, network }) => networks[network] && (name !== "rad" || process === "region_aware"));

/** The descriptions of the methods that a model supports, as in GET /v1/methods. @param {object} model runtime.json */
export function methodsOf(model) {
  return supported(model).map(({ network, fractional, replaces, ...method }) => ({
    ...method,
    max_steps: model.betas.length,
    nfe: planRun(model, { method: method.name }).nfe,
    vjp: 0,
  }));
}

function timesteps({ fractional, replaces }, set, process, steps, spacing) {
  const path = samplingTimesteps(process, steps, spacing, fractional);
  return replaces ? timeTravel(path, { length: set.jump_length, visits: set.resamplings }) : path;
}

/** Network calls: the downward steps. */
const callsOf = (path) => path.reduce((count, t, i) => count + (i > 0 && t < path[i - 1] ? 1 : 0), 0);

/** All settings of a method, with defaults. Throws an Error for an unknown name or a value out of range. */
function settingsOf(method, given) {
  const known = method.settings.map(({ name }) => name);
  const unknown = Object.keys(given).find((name) => !known.includes(name));
  if (unknown) throw new Error(`${method.name} has no setting ${unknown}; it has ${known.join(", ") || "none"}`);
  return Object.fromEntries(method.settings.map(({ name, default: preset, low, help }) => {
    const value = given[name] ?? preset;
    if (!Number.isInteger(value) || value < low) throw new Error(`${name} is ${value}; allowed are ${low} or more (${help})`);
    return [name, value];
  }));
}

/** The steps asked for, or the most whose network calls stay within `budget_nfe`. */
function stepsFor({ steps, budget_nfe: budget }, method, most, timestepsFor) {
  if (budget == null) return steps == null ? method.steps : Number(steps);
  const within = (count) => callsOf(timestepsFor(count)) <= budget;
  if (!within(1)) throw new Error(`budget_nfe is ${budget}; ${method.name} needs at least ${callsOf(timestepsFor(1))}`);
  let [low, high] = [1, most];
  while (low < high) {
    const middle = Math.ceil((low + high) / 2);
    if (within(middle)) low = middle;
    else high = middle - 1;
  }
  return low;
}
