/** Resizing for size policy "resize", equal to torch's adaptive pooling and antialiased bicubic interpolation to rounding. */

/** Half of the bicubic kernel (Keys 1981) with a = -0.5, as torch uses with antialias. */
function cubic(distance) {
  const x = Math.abs(distance);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
}

/** [start, end) of the input that adaptive pooling reads for each output. */
function bins(length, count) {
  return Array.from({ length: count }, (_, i) => [
    Math.floor((i * length) / count),
    Math.ceil(((i + 1) * length) / count),
  ]);
}

/** Pool (C,H,W): fold the values of each bin with `add`, from `first`, and finish with the number of values. */
function pooled(data, from, to, first, add, finish) {
  const channels = data.length / (from.width * from.height);
  const [rows, columns] = [bins(from.height, to.height), bins(from.width, to.width)];
  const result = new Float32Array(channels * to.width * to.height);
  for (let channel = 0; channel < channels; channel++) {
    rows.forEach(([top, bottom], y) => {
      columns.forEach(([left, right], x) => {
        let value = first;
        for (let row = top; row < bottom; row++) {
          const start = (channel * from.height + row) * from.width;
          for (let i = start + left; i < start + right; i++) value = add(value, data[i]);
        }
        result[(channel * to.height + y) * to.width + x] = finish(value, (bottom - top) * (right - left));
      });
    });
  }
  return result;
}

/** adaptive_avg_pool2d of (C,H,W), after `convert`. */
export const areaPool = (data, from, to, convert) =>
  pooled(data, from, to, 0, (sum, value) => sum + convert(value), (sum, count) => sum / count);

/** adaptive_max_pool2d of (C,H,W), from 0. */
export const maxPool = (data, from, to) => pooled(data, from, to, 0, Math.max, (most) => most);

/** Weights of the inputs of each output along one axis, with a kernel that widens where the image shrinks. */
function taps(length, count) {
  const scale = length / count;
  const [support, stretch] = [2 * Math.max(scale, 1), 1 / Math.max(scale, 1)];
  return Array.from({ length: count }, (_, i) => {
    const center = scale * (i + 0.5);
    const first = Math.max(Math.trunc(center - support + 0.5), 0);
    const last = Math.min(Math.trunc(center + support + 0.5), length);
    const weights = Array.from({ length: last - first }, (_, j) => cubic((first + j - center + 0.5) * stretch));
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    return { first, weights: weights.map((weight) => weight / total) };
  });
}

/** interpolate(mode="bicubic", antialias=True) of (C,H,W): along rows, then along columns. */
export function bicubic(data, from, to) {
  const channels = data.length / (from.width * from.height);
  const wide = new Float32Array(channels * from.height * to.width);
  const columns = taps(from.width, to.width);
  for (let row = 0; row < channels * from.height; row++) {
    columns.forEach(({ first, weights }, x) => {
      let sum = 0;
      weights.forEach((weight, j) => (sum += weight * data[row * from.width + first + j]));
      wide[row * to.width + x] = sum;
    });
  }
  const result = new Float32Array(channels * to.height * to.width);
  const rows = taps(from.height, to.height);
  for (let channel = 0; channel < channels; channel++) {
    rows.forEach(({ first, weights }, y) => {
      for (let x = 0; x < to.width; x++) {
        let sum = 0;
        weights.forEach((weight, j) => (sum += weight * wide[(channel * from.height + first + j) * to.width + x]));
        result[(channel * to.height + y) * to.width + x] = sum;
      }
    });
  }
  return result;
}
