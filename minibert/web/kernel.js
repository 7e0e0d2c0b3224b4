"use strict";
// The WebAssembly kernel of the product. Not written yet: the plain loop of product.js is used.

/** {product, buffer}, or null if this browser has no WebAssembly with SIMD. */
function makeKernel(bytes) {
  return null;
}
