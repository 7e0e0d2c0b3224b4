"use strict";
// The parts of torch.nn that the model needs: Linear, LayerNorm, gelu and softmax.
//
// Shapes as in model.py: T tokens, H hidden_size, N heads, D = H / N, I intermediate_size.
// Matrices are Float32Arrays, row after row. Their rows are padded to a multiple of 8 numbers, so
// (T, H) means T rows that begin padded(H) numbers apart.

/** x W^T + b for every token: (T, inputs) -> (T, outputs). */
class Linear {
  /** The last part of `name` also names the result, which all layers share. */
  constructor(tensors, name, memory, maxLength) {
    const {weight, bias} = named(tensors, name);
    const [outputs, inputs] = weight.shape;
    const size = outputs * inputs;
    const matrix = readRows(weight, 0, memory.result(`matrix of ${size}`, size));
    const panels = memory.take(packedSize(outputs, inputs));
    this.weights = pack(panels, matrix, outputs, inputs, inputs, 1, floats(bias));
    this.memory = memory;
    this.out = memory.result(name.split(".").at(-1), padded(maxLength) * padded(outputs));
  }

  forward(x, T) {
    this.memory.product(x, padded(this.weights.inputs), T, this.weights, this.out);
    return this.out;
  }
}

/** Each token's vector gets mean 0 and variance 1, then LayerNorm's own gain and bias. */
class LayerNorm {
  constructor(tensors, name, eps) {
    const {weight, bias} = named(tensors, name);
    this.gain = floats(weight);  // (width,)
    this.bias = floats(bias);
    this.eps = eps;
  }

  /** Changes x (T, width) in place. */
  forward(x, T) {
    const width = this.gain.length;
    for (let t = 0; t < T; t++) {
      const row = x.subarray(t * padded(width), t * padded(width) + width);
      let mean = 0, variance = 0;
      for (let c = 0; c < width; c++) mean += row[c];
      mean /= width;
      for (let c = 0; c < width; c++) variance += (row[c] - mean) ** 2;
      const scale = 1 / Math.sqrt(variance / width + this.eps);
      for (let c = 0; c < width; c++) {
        row[c] = (row[c] - mean) * scale * this.gain[c] + this.bias[c];
      }
    }
    return x;
  }
}

/** x * P(a normal variable is below x), in place. It uses erf, as F.gelu does. */
function gelu(x) {
  for (let i = 0; i < x.length; i++) x[i] = 0.5 * x[i] * (1 + erf(x[i] * Math.SQRT1_2));
  return x;
}

/** The error function, to 1.5e-7. Abramowitz and Stegun, formula 7.1.26. */
function erf(x) {
  const t = 1 / (1 + 0.3275911 * Math.abs(x));
  const sum = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t
    + 0.254829592) * t;
  const y = 1 - sum * Math.exp(-x * x);
  return x < 0 ? -y : y;
}

/** softmax(scale * scores) for each row of scores (T, T), in place. */
function softmax(scores, T, scale) {
  for (let t = 0; t < T; t++) {
    const row = scores.subarray(t * padded(T), t * padded(T) + T);
    let largest = -Infinity, sum = 0;
    for (let j = 0; j < T; j++) if (row[j] > largest) largest = row[j];
    for (let j = 0; j < T; j++) sum += row[j] = Math.exp((row[j] - largest) * scale);
    for (let j = 0; j < T; j++) row[j] /= sum;
  }
  return scores;
}

/** x += y, in place. */
function add(x, y) {
  for (let i = 0; i < x.length; i++) x[i] += y[i];
  return x;
}
