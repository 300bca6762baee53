/** The form of settings: what to run, for how long, and how. */

import { DEFAULTS } from "../runtime/solvers.js";
import { button, h, segments } from "./dom.js";
import { labelled, numberInput, selectInput, settingField } from "./fields.js";
import { costText, LABELS, methodTitle, runText, sourceText } from "./words.js";

const MAX_LANES = 8;
const EFFORTS = /** @type {[string, string][]} */ ([["preset", "Preset"], ["steps", "Steps"], ["budget_nfe", "Calls"], ["budget_seconds", "Seconds"]]);
const EFFORT_NOTES = {
  preset: "The default number of steps of the method.",
  steps: "Noise levels from pure noise to the image. More steps: slower, often better.",
  budget_nfe: "The most steps within this number of network calls.",
  budget_seconds: "The most steps within this computing time. The first run measures the speed.",
};
const SIZES = /** @type {[string, string][]} */ ([["crop", "Windows around the hole"], ["zoom", "One region around all holes, scaled"], ["pyramid", "Coarse to fine, for large holes"], ["resize", "Resize the image"], ["error", "Only exact size"]]);
const SPACINGS = ["even", "trailing", "quad", "logsnr", "official"];
const FIRST_RACE = ["rad", "repaint", "ddnm", "biharmonic"]; // the first three that the model has

/**
 * Events: "change" after every change; "submit" when Enter is pressed in a field.
 */
export class Settings extends EventTarget {
  /**
   * @param {HTMLElement} element
   * @param {any} backend
   * @param {any} info - of `backend.info()`
   */
  constructor(element, backend, info) {
    super();
    this.backend = backend;
    this.info = info;
    this.mode = "fill";
    this.method = "rad";
    this.racers = new Set();
    this.effort = "preset";
    this.amounts = { steps: 20, budget_nfe: 50, budget_seconds: 10 };
    this.methods = [];
    /** @type {Map<string, {solver?: string, spacing?: string, eta?: number, set: Record<string, any>}>} */
    this.overrides = new Map();
    this.model = info.models.find((each) => each.id === info.defaultModel) ?? info.models[0];
    this.build(element);
  }

  /** Choose a model and show its methods. Nothing changes if that fails, or if another model is asked for meanwhile. */
  async load(model = this.model) {
    this.wanted = model;
    const methods = await this.backend.methods(model.id);
    if (this.wanted !== model) return;
    Object.assign(this, { model, methods });
    const names = this.methods.map((each) => each.name);
    if (!names.includes(this.method)) this.method = names[0];
    this.racers = new Set([...this.racers].filter((name) => names.includes(name)));
    if (!this.racers.size) this.racers = new Set(FIRST_RACE.filter((name) => names.includes(name)).slice(0, 3));
    this.overrides.clear();
    this.controls.size.value = this.sizePolicy;
    this.text.hidden = !this.model.text;
    this.render();
  }

  /** Methods to run, in the order of the list. */
  get chosen() {
    return this.methods.filter((each) => (this.mode === "race" ? this.racers.has(each.name) : each.name === this.method));
  }

  /** The size policy of the model. */
  get sizePolicy() {
    return this.model.size_policy ?? "crop";
  }

  /** The first field with a wrong value, or null. */
  get wrong() {
    return this.form.querySelector(":invalid:not(fieldset)");
  }

  /** One sentence about the work of the chosen methods. */
  get summary() {
    return runText(this.chosen, this.effort, this.amounts);
  }

  /**
   * Fields of POST /v1/inpaint for a method; presets are left out.
   * @param {string} name
   */
  value(name) {
    const { set, ...changed } = this.overrides.get(name) ?? { set: {} };
    const form = this.controls;
    const method = this.methods.find((each) => each.name === name);
    const steps = method.steps;
    const effort = this.effort === "preset" || !steps ? {} : { [this.effort]: this.amounts[this.effort] };
    const prompts = this.model.text
      ? { prompt: form.prompt.value.trim(), negative_prompt: form.negative.value.trim(), guidance: form.guidance.value }
      : {};
    // A request without a size policy has the model's, or "crop" for methods that cannot start from a coarser result.
    const size = form.size.value === this.sizePolicy ? {} : { size_policy: form.size.value };
    const common = { seed: form.seed.valueAsNumber, num_samples: form.samples.valueAsNumber, ...size };
    // Solver, spacing and eta stand together: a request with one of them has none of the model's.
    const sampler = Object.keys(changed).length ? { ...samplerOf(method, changed), ...changed } : {};
    const own = { ...sampler, ...(Object.keys(set).length && { set }) };
    return { model: this.model.id, method: name, ...effort, ...common, ...own, ...prompts };
  }

  /** @param {boolean} soft - whether the mask has grey values */
  showSoft(soft) {
    const hard = this.chosen.filter((each) => !each.soft).map(methodTitle);
    const exception = hard.length ? ` Without effect for ${hard.join(", ")}: grey pixels are filled whole.` : "";
    this.softNote.hidden = !soft;
    this.softNote.textContent = `The mask has soft edges: grey pixels are filled in part.${exception}`;
  }

  changed() {
    this.dispatchEvent(new Event("change"));
  }

  build(element) {
    const most = this.info.limits.max_samples ?? 8;
    this.controls = {
      seed: numberInput(0, { min: 0, max: 2 ** 32 - 1 }),
      samples: numberInput(1, { min: 1, max: most }),
      size: selectInput(SIZES.filter(([name]) => !["zoom", "pyramid"].includes(name) || !this.info.static), "crop"), // not in the demo
      prompt: h("textarea.input", { rows: 2, placeholder: "what should be in the hole" }),
      negative: h("input.input", { type: "text", placeholder: "what should not be there" }),
      guidance: h("input.input", { type: "number", min: 0, max: 50, step: "any", placeholder: "preset" }),
    };
    this.modeList = h("div.tabs.wide", { role: "radiogroup", "aria-label": "What to run" });
    this.effortList = h("div.tabs.wide", { role: "radiogroup", "aria-label": "Effort" });
    this.methodArea = h("div");
    this.amountArea = h("div");
    this.advanced = h("div");
    this.text = this.promptFields();
    this.softNote = h("p.note.box", { hidden: true });
    this.form = h("form.settings", { novalidate: "", onsubmit: (event) => event.preventDefault(),
      onkeydown: (event) => this.enter(event), oninput: () => this.changed() },
      this.modeList, this.modelField(), this.methodArea,
      h("div.field", {}, h("span.label", {}, "Effort"), this.effortList, this.amountArea),
      this.text, this.seedFields(), this.softNote,
      h("details.advanced", {}, h("summary", {}, "Advanced"), labelled("Images larger than the model", this.controls.size), this.advanced));
    element.append(this.form);
    this.modes = segments(this.modeList, [["fill", "Fill"], ["race", "Race"]], (mode) => this.setMode(mode));
    this.efforts = segments(this.effortList, EFFORTS, (effort) => this.setEffort(effort));
  }

  /** Enter in a field of one line starts the run. */
  enter(event) {
    if (event.key !== "Enter" || event.ctrlKey || event.metaKey || !event.target.matches("input.input")) return;
    event.preventDefault();
    this.dispatchEvent(new Event("submit"));
  }

  setMode(mode) {
    this.mode = mode;
    this.render();
    this.changed();
  }

  setEffort(effort) {
    this.effort = effort;
    this.renderAmount();
    this.changed();
  }

  modelField() {
    const { models } = this.info;
    if (models.length < 2) return null;
    const choices = models.map((each) => [each.id, `${each.id} (${each.size.join("x")}${each.runtime === "onnx" ? ", ONNX" : ""})`]);
    const input = selectInput(/** @type {[string, string][]} */ (choices), this.model.id, async (id) => {
      try {
        await this.load(models.find((each) => each.id === id));
      } catch (error) {
        input.value = this.model.id;
        this.dispatchEvent(new CustomEvent("error", { detail: `The model ${id} was not chosen: ${error.message}` }));
      }
      this.changed();
    });
    return labelled("Model", input);
  }

  promptFields() {
    const { prompt, negative, guidance } = this.controls;
    return h("div.group", { hidden: true }, labelled("Prompt", prompt), labelled("Negative prompt", negative),
      labelled("Guidance", guidance, "How strongly the prompt acts. Empty: the preset."));
  }

  seedFields() {
    const { seed, samples } = this.controls;
    const roll = () => {
      seed.value = String(crypto.getRandomValues(new Uint32Array(1))[0] % 100_000);
      this.changed();
    };
    const field = labelled("Seed", seed);
    field.append(h("div.row", {}, seed, button("", roll, { icon: "dice", look: "icon", label: "Random seed" })));
    return h("div.pair", {}, field, labelled("Samples", samples));
  }

  render() {
    this.modes.select(this.mode);
    this.efforts.select(this.effort);
    this.methodArea.replaceChildren(this.mode === "race" ? this.raceList() : this.methodField());
    this.renderAmount();
    this.renderAdvanced();
  }

  methodField() {
    const choices = this.methods.map((each) => [each.name, `${methodTitle(each)}, ${costText(each)}`]);
    const input = selectInput(/** @type {[string, string][]} */ (choices), this.method, (name) => {
      this.method = name;
      this.render();
      this.changed();
    });
    const method = this.chosen[0];
    return h("div.group", {}, labelled("Method", input),
      method && h("p.note", {}, sourceText(method)),
      method?.vjp ? h("p.note", {}, "A backward pass through the network takes about as long as two calls.") : null);
  }

  raceList() {
    const chosen = (each) => Number(this.racers.has(each.name));
    const rows = [...this.methods].sort((one, other) => chosen(other) - chosen(one)).map((each) => {
      const box = h("input", { type: "checkbox", value: each.name, checked: this.racers.has(each.name), onchange: () => this.pick(each.name, box) });
      return h("label.racer", { title: each.summary }, box, h("span.name", {}, methodTitle(each)), h("span.note", {}, costText(each)));
    });
    const legend = h("legend.label", {}, `Methods in the race, at most ${MAX_LANES}`);
    const list = h("fieldset.field", {}, legend, h("div.racers", {}, ...rows));
    this.limitRace(list);
    return list;
  }

  pick(name, box) {
    if (box.checked) this.racers.add(name);
    else this.racers.delete(name);
    this.limitRace(this.methodArea);
    this.renderAmount();
    this.renderAdvanced();
    this.changed();
  }

  limitRace(list) {
    for (const box of list.querySelectorAll("input")) box.disabled = !box.checked && this.racers.size >= MAX_LANES;
  }

  renderAmount() {
    const note = h("p.note", {}, EFFORT_NOTES[this.effort]);
    if (this.effort === "preset") {
      this.amountArea.replaceChildren(note);
      return;
    }
    const most = Math.min(...this.chosen.map((each) => each.max_steps ?? 1000), this.info.limits.max_steps ?? 1000);
    const limits = this.effort === "steps" ? { min: 1, max: most } : { min: this.effort === "budget_seconds" ? 0.1 : 1, max: 100_000 };
    const label = { steps: "Steps", budget_nfe: "Network calls", budget_seconds: "Seconds" }[this.effort];
    const input = numberInput(this.amounts[this.effort], { ...limits, label, whole: this.effort !== "budget_seconds",
      onchange: () => { this.amounts[this.effort] = input.valueAsNumber; } });
    this.amountArea.replaceChildren(h("div.row", {}, input, h("span.unit", {}, label.toLowerCase())), note);
  }

  renderAdvanced() {
    const several = this.chosen.length > 1;
    this.advanced.replaceChildren(...this.chosen.map((method) => several
      ? h("details.own", {}, h("summary", {}, methodTitle(method)), this.ownFields(method))
      : this.ownFields(method)));
  }

  /** Choose a solver, with the spacing and eta that are usual for it. */
  setSolver(method, solver) {
    const { set } = /** @type {any} */ (this.overrides.get(method.name));
    this.overrides.set(method.name, { set, ...(solver !== method.solver && { solver }) });
    const fields = this.ownFields(method);
    this.advanced.querySelector(`[data-method="${method.name}"]`)?.replaceWith(fields);
    fields.querySelector("select")?.focus();
  }

  /** Solver, spacing, eta and the method's own settings. */
  ownFields(method) {
    if (!this.overrides.has(method.name)) this.overrides.set(method.name, { set: {} });
    const own = /** @type {any} */ (this.overrides.get(method.name));
    const keep = (target, name, preset) => (value) => {
      if (value === preset || value === "" || (typeof value === "number" && !Number.isFinite(value))) delete target[name];
      else target[name] = value;
    };
    const fields = [];
    const offered = method.steps ? { solver: method.solvers ?? [], spacing: SPACINGS } : {};
    const { spacing, eta } = samplerOf(method, own);
    for (const [name, values] of Object.entries(offered)) {
      if (values.length < 2) continue;
      const preset = name === "solver" ? method.solver : spacing;
      const choices = values.map((each) => [each, each === preset ? `${each} (preset)` : each]);
      const change = name === "solver" ? (solver) => this.setSolver(method, solver) : keep(own, name, preset);
      fields.push(labelled(LABELS[name], selectInput(choices, own[name] ?? preset, change)));
    }
    if (method.steps && (method.solvers ?? []).length > 1) {
      const described = { name: "eta", type: "float", low: 0, high: 1, help: "Noise added in each step: 0 none, 1 as in DDPM." };
      fields.push(settingField(described, own.eta ?? eta, keep(own, "eta", eta)));
    }
    for (const setting of method.settings ?? []) {
      fields.push(settingField(setting, own.set[setting.name] ?? setting.default, keep(own.set, setting.name, setting.default)));
    }
    return h("div.group", { "data-method": method.name }, ...(fields.length ? fields : [h("p.note", {}, "This method has no settings of its own.")]));
  }
}

/**
 * Solver, spacing and eta that a form shows before they are changed: those of the method, or those usual for another solver.
 * @param {any} method @param {{solver?: string}} own
 */
function samplerOf({ solver, spacing, eta }, own) {
  if (!own.solver) return { solver, spacing, eta };
  const [usual, noise] = DEFAULTS[own.solver];
  return { solver: own.solver, spacing: usual, eta: noise };
}
