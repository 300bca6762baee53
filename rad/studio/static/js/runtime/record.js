/** The settings file of a result, for `rad sample --config FILE`; as that of the service. */

/**
 * @param {object} model runtime.json
 * @param {import("./inpainter.js").Prepared} run
 * @param {string} name of the image's file
 * @returns {object} options of `rad sample`, all values explicit
 */
export function settingsOf(model, { plan, settings, hasMask }, name) {
  const stem = name.replace(/(.)\.[^.]*$/, "$1");
  const { method, set, steps, solver, spacing, eta } = plan;
  return {
    checkpoint: model.source.checkpoint,
    image: name,
    output: `${stem}-${method.name}.png`,
    method: [method.name],
    set: Object.entries(set).map(([setting, value]) => `${method.name}.${setting}=${value}`),
    solver,
    spacing,
    eta,
    seed: settings.seed,
    num_samples: settings.num_samples,
    size_policy: settings.size_policy,
    feather: 0,
    batch_size: settings.batch_size,
    ...(hasMask ? { mask: [`${stem}-mask.png`], mask_channel: "grey", soft_mask: settings.soft_mask } : {}),
    steps,
    ...(settings.margin === null ? {} : { margin: settings.margin }),
    ...(settings.extend ? { extend: settings.extend.join(",") } : {}),
  };
}
