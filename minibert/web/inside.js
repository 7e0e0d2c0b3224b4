"use strict";
// Inside the model: the three parts of each token's embedding, and what each head attends to. The
// twin of explain/inside.py. Both are for one window, in whole thousandths, as in Python.

const NUMBERS_SHOWN = 32;  // the page shows only the first numbers of each vector

const thousandths = (numbers) => Array.from(numbers, (x) => Math.round(1000 * x) + 0);  // + 0: not -0

/** {embeddings, attention} of one window; `question` are the question's positions [start, end]. */
async function insideOf(engine, feature, [start, end]) {
  const rows = [0, ...Array.from({length: end - start}, (_, k) => start + k)];
  const heads = await engine.attentions(feature, rows);  // [layer][head] -> (R * T)
  const T = feature.length;
  const weights = heads.map((layer) => layer.map((head) =>
    rows.map((_, r) => thousandths(head.subarray(r * T, (r + 1) * T)))));
  const parts = await engine.embeddingParts(feature);
  return {embeddings: embeddingParts(parts, feature, engine.config), attention: {rows, weights}};
}

/** The parts of the embedding of each token of a window, from the vectors (T * width) of its parts. */
function embeddingParts({word, segment, position}, {tokenTypeIds}, config) {
  const width = config.embedding_size ?? config.hidden_size;
  const T = tokenTypeIds.length;
  const total = word.map((x, k) => x + position[k] + (segment ? segment[k] : 0));
  const row = (vectors, t) => vectors.subarray(t * width, (t + 1) * width);
  const shown = (vectors, t) => thousandths(row(vectors, t).subarray(0, NUMBERS_SHOWN));
  const length = (vectors, t) => (vectors ? Number(Math.hypot(...row(vectors, t)).toFixed(3)) : 0);
  const tokens = Array.from({length: T}, (_, t) => t);
  const first = [...new Set(tokenTypeIds)].sort().map((id) => tokenTypeIds.indexOf(id));
  return {
    width,
    hidden_size: config.hidden_size,
    piece: tokens.map((t) => shown(word, t)),
    position: tokens.map((t) => shown(position, t)),
    segment: segment ? first.map((t) => shown(segment, t)) : [],
    lengths: tokens.map((t) => [word, position, segment, total].map((vectors) => length(vectors, t))),
  };
}
