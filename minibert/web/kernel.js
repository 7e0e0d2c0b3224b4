"use strict";
// The product of product.js in WebAssembly with SIMD: several times as fast as the plain loop.
//
// There is no compiler and no binary file: this file is the source, and the browser gets the bytes
// that it writes. The opcodes are from the WebAssembly Core Specification 3.0, section 5.4.

// --- a small assembler: each function returns the bytes of an instruction, nested in arrays

/** A whole number in LEB128: 7 bits a byte, the highest bit says that more bytes follow. */
const unsigned = (value) =>
  value < 128 ? [value] : [(value & 127) | 128, ...unsigned(Math.floor(value / 128))];
const signedInt = (value) =>
  value >= -64 && value < 64 ? [value & 127] : [(value & 127) | 128, ...signedInt(value >> 7)];
const vector = (items) => [unsigned(items.length), items];
const sized = (bytes) => {
  const flat = bytes.flat(Infinity);
  return [unsigned(flat.length), flat];
};
const text = (string) => vector([...string].map((letter) => letter.charCodeAt(0)));

const I32 = 0x7f, V128 = 0x7b;  // types: a whole number; 4 float32 numbers
const get = (local) => [0x20, local];  // local.get
const set = (local, value) => [value, 0x21, local];  // local.set
const int = (value) => [0x41, signedInt(value)];  // i32.const
const plus = (a, b) => [a, b, 0x6a];  // i32.add
const times4 = (a) => [a, int(2), 0x74];  // i32.shl: two bits to the left
const move = (local, step) => set(local, plus(get(local), step));
/** Repeat `body` until `counter`, which loses `step` in each round, is 0. */
const repeat = (counter, step, body) => [
  0x03, 0x40, body,  // loop
  plus(get(counter), int(-step)), 0x22, counter,  // local.tee: set it, and keep it on the stack
  0x0d, 0,  // br_if: back to the loop's beginning, if it is not 0
  0x0b];  // end
const simd = (opcode) => [0xfd, unsigned(opcode)];
const at = (offset) => [2, unsigned(offset)];  // bytes after a place; 2: a multiple of 4 bytes
const load4 = (place, offset) => [place, simd(0x00), at(offset)];  // v128.load: 4 numbers
/** Four copies of one number: v128.load32_splat. */
const loadCopies = (place, offset) => [place, simd(0x09), at(offset)];
const store4 = (place, offset, value) => [place, value, simd(0x0b), at(offset)];  // v128.store
/** sum + a * b for 4 numbers. `fused`: in one instruction, which rounds once (relaxed SIMD). */
const plusProduct = (sum, a, b, fused) => (fused
  ? [a, b, sum, simd(0x105)]  // f32x4.relaxed_madd
  : [a, b, simd(0xe6), sum, simd(0xe4)]);  // f32x4.mul, f32x4.add

// --- the kernel

/**
 * x W^T + b -> out, with the arguments of `plainProduct` in product.js. It computes 4 rows and 8
 * columns at once, in 8 SIMD registers of 4 sums.
 */
function kernelCode(fused) {
  const [x, xStride, rows, panels, inputs, outputs, out] = [0, 1, 2, 3, 4, 5, 6];  // arguments
  const [row, k, w, xRow, outRow, column, outStride] = [7, 8, 9, 10, 11, 12, 13];
  const xs = [14, 15, 16, 17];  // a place in each of the 4 rows of x
  const [left, right, copies] = [18, 19, 20];  // 8 weights; 4 copies of a number of x
  const sums = [21, 22, 23, 24, 25, 26, 27, 28];  // of row i: sums[2 i] and sums[2 i + 1]
  const four = [0, 1, 2, 3];
  const step = (s) => [  // one input for 4 rows and 8 columns
    set(left, load4(get(w), 32 * (s + 1))),
    set(right, load4(get(w), 32 * (s + 1) + 16)),
    four.map((i) => [
      set(copies, loadCopies(get(xs[i]), 4 * s)),
      set(sums[2 * i], plusProduct(get(sums[2 * i]), get(copies), get(left), fused)),
      set(sums[2 * i + 1], plusProduct(get(sums[2 * i + 1]), get(copies), get(right), fused)),
    ]),
  ];
  const body = [
    set(outStride, times4(get(outputs))),
    set(column, get(outputs)),
    repeat(column, 8, [  // a panel of 8 columns
      set(xRow, get(x)),
      set(outRow, get(out)),
      set(row, get(rows)),
      repeat(row, 4, [
        set(xs[0], get(xRow)),
        [1, 2, 3].map((i) => set(xs[i], plus(get(xs[i - 1]), get(xStride)))),
        set(w, get(panels)),
        four.map((i) => [  // a panel's first row is the bias
          set(sums[2 * i], load4(get(w), 0)), set(sums[2 * i + 1], load4(get(w), 16))]),
        set(k, get(inputs)),
        repeat(k, 4, [
          four.map(step),
          move(w, int(128)),
          xs.map((place) => move(place, int(16))),
        ]),
        four.map((i) => [
          store4(get(outRow), 0, get(sums[2 * i])),
          store4(get(outRow), 16, get(sums[2 * i + 1])),
          move(outRow, get(outStride)),
        ]),
        set(xRow, plus(get(xRow), times4(get(xStride)))),
      ]),
      set(panels, plus(get(w), int(32))),
      move(out, int(32)),
    ]),
  ];
  const locals = vector([[11, I32], [11, V128]]);  // 7 to 17, and 18 to 28
  return [locals, body, 0x0b];
}

/** The bytes of a WebAssembly module with one function "product", on the memory of the page. */
function kernelModule(fused) {
  const section = (number, ...items) => [number, sized(vector(items))];
  return new Uint8Array([
    0x00, 0x61, 0x73, 0x6d, 1, 0, 0, 0,  // "\0asm", version 1
    section(1, [0x60, vector(Array(7).fill(I32)), vector([])]),  // the type: 7 numbers -> nothing
    section(2, [text("page"), text("memory"), 0x02, 0x00, 0]),  // imported; 0: the least pages
    section(3, 0),  // function 0 has type 0
    section(7, [text("product"), 0x00, 0]),  // exported
    section(10, sized(kernelCode(fused))),
  ].flat(Infinity));
}

/** {product, buffer} with room for this many bytes, or null if the browser lacks SIMD. */
function makeKernel(bytes) {
  for (const fused of [true, false]) {  // not every browser has relaxed SIMD
    try {
      const module = new WebAssembly.Module(kernelModule(fused));
      const memory = new WebAssembly.Memory({initial: Math.ceil(bytes / 65536)});
      const {exports} = new WebAssembly.Instance(module, {page: {memory}});
      return {product: exports.product, buffer: memory.buffer};
    } catch {
      // no WebAssembly, no SIMD, or a security policy that forbids WebAssembly
    }
  }
  return null;
}
