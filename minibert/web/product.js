"use strict";
// The product of matrices, x W^T + b: nearly all of the model's time is spent here.
//
// `Memory` holds all weights and all results in one block of memory, because WebAssembly can only
// reach its own block. The product itself is the WebAssembly kernel of kernel.js, or the plain loop
// below if the browser has no SIMD. Both read the same packed weights.

// The product computes 8 columns of the result at once, so all widths are multiples of 8. The
// columns that are added hold zeros, or are never read.
const padded = (count) => Math.ceil(count / 8) * 8;

/** How many numbers the packed form of W (outputs, inputs) has, with its bias. */
const packedSize = (outputs, inputs) => padded(outputs) * (1 + padded(inputs));

/** Room for `count` float32 numbers, and the product on them. `plain`: do not use WebAssembly. */
class Memory {
  constructor(count, plain = false) {
    const kernel = plain ? null : makeKernel(4 * count);
    this.floats = kernel ? new Float32Array(kernel.buffer) : allocated(count);
    this.multiply = kernel ? kernel.product : (...numbers) => plainProduct(this.floats, ...numbers);
    this.kernel = kernel ? "WebAssembly" : "JavaScript";
    this.used = 0;
    this.results = {};
  }

  /** The next `count` numbers, all 0. */
  take(count) {
    const start = this.used;
    this.used += padded(count);
    if (this.used > this.floats.length) throw new Error("Memory: the size was computed wrongly");
    return this.floats.subarray(start, start + count);
  }

  /** Numbers for an intermediate result. All layers use the same ones under the same name. */
  result(name, count) {
    return (this.results[name] ??= this.take(count));
  }

  /**
   * x W^T + b -> out. x has T rows, `xStride` numbers apart. W and b are `weights`, from `pack`.
   * The rows of `out` are padded(outputs) numbers apart. Up to padded(T) rows are read and written.
   */
  product(x, xStride, T, weights, out) {
    this.multiply(
      x.byteOffset, 4 * xStride, padded(T), weights.panels.byteOffset, padded(weights.inputs),
      padded(weights.outputs), out.byteOffset);
  }
}

function allocated(count) {
  try {
    return new Float32Array(count);
  } catch {
    const size = Math.ceil(4 * count / 1e6);
    throw new Error(`The model needs ${size} MB of memory, which this browser does not give.`);
  }
}

/**
 * W (outputs, inputs) and b (outputs,) -> the order in which the product reads them: panels of 8
 * outputs. A panel's first row is the bias, then there is one row for each input.
 * W[n][k] is source[n * outputStride + k * inputStride]; without `bias`, b is 0.
 */
function pack(panels, source, outputs, inputs, outputStride, inputStride, bias = null) {
  let at = 0;
  for (let first = 0; first < outputs; first += 8) {
    for (let n = first; n < first + 8; n++) panels[at++] = bias && n < outputs ? bias[n] : 0;
    for (let k = 0; k < padded(inputs); k++) {
      for (let n = first; n < first + 8; n++) {
        const inside = n < outputs && k < inputs;
        panels[at++] = inside ? source[n * outputStride + k * inputStride] : 0;
      }
    }
  }
  return {panels, outputs, inputs};
}

/**
 * The kernel as a plain loop. It computes 4 rows and 4 columns at once, so each number that it
 * loads is used four times. Places and `xStride` are in bytes, as in WebAssembly.
 */
function plainProduct(floats, x, xStride, rows, panels, inputs, outputs, out) {
  x >>= 2; xStride >>= 2; panels >>= 2; out >>= 2;
  const panelSize = 8 * (1 + inputs);
  for (let column = 0; column < outputs; column += 4) {
    const bias = panels + Math.floor(column / 8) * panelSize + (column % 8);
    for (let row = 0; row < rows; row += 4) {
      let x0 = x + row * xStride, x1 = x0 + xStride, x2 = x1 + xStride, x3 = x2 + xStride;
      let w = bias;
      let s00 = floats[w], s01 = floats[w + 1], s02 = floats[w + 2], s03 = floats[w + 3];
      let s10 = s00, s11 = s01, s12 = s02, s13 = s03;
      let s20 = s00, s21 = s01, s22 = s02, s23 = s03;
      let s30 = s00, s31 = s01, s32 = s02, s33 = s03;
      for (let k = 0; k < inputs; k++) {
        w += 8;
        const w0 = floats[w], w1 = floats[w + 1], w2 = floats[w + 2], w3 = floats[w + 3];
        const a0 = floats[x0++], a1 = floats[x1++], a2 = floats[x2++], a3 = floats[x3++];
        s00 += a0 * w0; s01 += a0 * w1; s02 += a0 * w2; s03 += a0 * w3;
        s10 += a1 * w0; s11 += a1 * w1; s12 += a1 * w2; s13 += a1 * w3;
        s20 += a2 * w0; s21 += a2 * w1; s22 += a2 * w2; s23 += a2 * w3;
        s30 += a3 * w0; s31 += a3 * w1; s32 += a3 * w2; s33 += a3 * w3;
      }
      let y = out + row * outputs + column;
      floats[y] = s00; floats[y + 1] = s01; floats[y + 2] = s02; floats[y + 3] = s03;
      y += outputs;
      floats[y] = s10; floats[y + 1] = s11; floats[y + 2] = s12; floats[y + 3] = s13;
      y += outputs;
      floats[y] = s20; floats[y + 1] = s21; floats[y + 2] = s22; floats[y + 3] = s23;
      y += outputs;
      floats[y] = s30; floats[y + 1] = s31; floats[y + 2] = s32; floats[y + 3] = s33;
    }
  }
}
