"use strict";
// Span search: start and end logits -> grid of legal spans -> the best spans over all windows.
// The twin of spans.py, of the settings of answers (settings.py), and of `Candidates.log_p_of`
// (explain/attribution.py).
//
// BERT (arXiv:1810.04805v2) section 4.2: a span's score is S.T_i + E.T_j, and the best span with j >= i is
// the prediction. Every legal span of every window is compared and none is skipped. Here T is a number of
// context tokens, K the length of the longest span. "Null" is SQuAD v2.0's name for "no answer". Every
// WordPiece has text, so nothing here or in explanation.js is about blank pieces.
//
// The logits of one window are {tokenStart, startLogits, endLogits, nullLogits}: the position of its first
// token in the context, two Float32Array of its T context tokens, and the start and end logit of its [CLS].

/** The settings of `AnswerSettings`; `n_best` is its `top_k`. Throws for a value out of range. */
function answerSettings({n_best = 10, max_answer_len = 30, no_answer = false} = {}) {
  for (const [name, value] of Object.entries({n_best, max_answer_len})) {
    if (!Number.isInteger(value) || value < 1) throw new Error(`${name}=${value}: expected 1 or more`);
  }
  return {n_best, max_answer_len, no_answer};
}

/** The calibration in a config.json, under "minibert": two temperatures and a threshold. */
function storedCalibration(config) {
  const known = {temperature: 1, null_threshold: 0, text_temperature: 1};
  const {ranges, ...stored} = config.minibert ?? {};  // the ranges are for 8-bit integers in Python
  const calibration = {...known, ...stored};
  for (const [name, value] of Object.entries(calibration)) {
    if (!(name in known)) throw new Error(`config: minibert has no setting ${name}`);
    if (!Number.isFinite(value) || (name.endsWith("temperature") && value <= 0)) {
      const wanted = name.endsWith("temperature") ? "a number above 0" : "a number";
      throw new Error(`config: minibert: ${name}=${JSON.stringify(value)}: expected ${wanted}`);
    }
  }
  return calibration;
}

/**
 * The `n_best` best spans, best first; if there are fewer spans, all of them.
 *
 * `windows` are all windows of one example, in order; `offsets` (T, 2) the characters of the context's
 * tokens. A span that several windows contain counts once, and so do spans with the same characters. The
 * `score` is the softmax of start + end logit over all these candidates. If logits are equal, the earlier
 * start comes first, then the shorter span. With `no_answer`, "no answer" is one more candidate, and is
 * always in the list, in addition to the spans: at its rank, or at the end.
 *
 * The threshold of the calibration is subtracted from the logit of "no answer", and in the softmax all
 * logits are divided by its temperature. Tokens count from the beginning of the whole context; both are -1
 * for "no answer". Throws for logits that are not finite.
 */
function bestSpans(windows, settings, offsets, calibration) {
  requireFinite(windows, settings);
  const {grid, width, sourceWindow} = candidateGrid(windows, settings.max_answer_len, offsets);
  const {temperature, null_threshold} = calibration;
  const nullLogit = nullCandidate(windows, settings, calibration);
  const [top, total] = softmaxTotal(grid, nullLogit, temperature);
  const score = (logit) => Math.exp((logit - top) / temperature) / total;

  const legal = grid.reduce((count, logit) => count + (logit > -Infinity), 0);
  const count = Math.min(settings.n_best, legal);
  // Find all spans with at least the logit of the last wanted span, then sort only these. The sort is
  // stable: spans with equal logits keep their order.
  const lowest = Float64Array.from(grid).sort().at(-count);
  const reached = [...grid.keys()].filter((index) => grid[index] >= lowest);
  const chosen = reached.sort((a, b) => grid[b] - grid[a]).slice(0, count);
  const spans = chosen.map((index) => {
    const [tokenStart, tokenEnd] = spanAt(index, width);
    const window = sourceWindow[index];
    const {tokenStart: first, startLogits, endLogits} = windows[window];
    const [startLogit, endLogit] = [startLogits[tokenStart - first], endLogits[tokenEnd - first]];
    return {tokenStart, tokenEnd, startLogit, endLogit, score: score(grid[index]), window};
  });
  if (settings.no_answer) {
    const window = leastNullWindow(windows);
    const [startLogit, endLogit] = windows[window].nullLogits;
    const rank = chosen.filter((index) => startLogit + endLogit - grid[index] <= null_threshold).length;
    const noTokens = {tokenStart: -1, tokenEnd: -1};
    spans.splice(rank, 0, {...noTokens, startLogit, endLogit, score: score(nullLogit), window});
  }
  return spans;
}

function requireFinite(windows, settings) {
  const finite = ({startLogits, endLogits, nullLogits}) =>
    startLogits.every(Number.isFinite) && endLogits.every(Number.isFinite) &&
    (!settings.no_answer || nullLogits.every(Number.isFinite));
  if (!windows.every(finite)) {
    throw new Error("logits are not finite: check the model's weights and precision");
  }
}

/** The first and the last token (inclusive) of the span at this index of a grid. */
function spanAt(index, width) {
  const first = Math.floor(index / width);
  return [first, first + index % width];
}

/** The window of "no answer": of all windows, the one whose logits of [CLS] have the lowest sum. */
function leastNullWindow(windows) {
  const sums = windows.map(({nullLogits}) => nullLogits[0] + nullLogits[1]);
  return sums.indexOf(sums.reduce((a, b) => Math.min(a, b)));
}

/** The logit with which "no answer" competes; -Infinity if it is not allowed. */
function nullCandidate(windows, settings, calibration) {
  if (!settings.no_answer) return -Infinity;
  const [startLogit, endLogit] = windows[leastNullWindow(windows)].nullLogits;
  return startLogit + endLogit - calibration.null_threshold;
}

/** The top logit, and the sum over all candidates of exp((logit - top) / temperature). */
function softmaxTotal(grid, nullLogit, temperature) {
  const top = grid.reduce((a, b) => Math.max(a, b), nullLogit);
  const total = grid.reduce((sum, logit) => sum + Math.exp((logit - top) / temperature), 0);
  return [top, total + Math.exp((nullLogit - top) / temperature)];
}

/**
 * The log-probability of the span of these characters among all candidates of these windows:
 * -Infinity if no span has exactly these. [0, 0] stands for "no answer", as in an answer.
 */
function logPOf(windows, settings, offsets, calibration, [start, end]) {
  const {grid, width} = candidateGrid(windows, settings.max_answer_len, offsets);
  const nullLogit = nullCandidate(windows, settings, calibration);
  const [top, total] = softmaxTotal(grid, nullLogit, calibration.temperature);
  const hasPlace = (index) => {
    const [first, last] = spanAt(index, width);
    return offsets[first][0] === start && offsets[last]?.[1] === end;
  };
  const logit = end === 0 ? nullLogit : grid.reduce(
    (best, logit, index) => (logit > best && hasPlace(index) ? logit : best), -Infinity);
  return (logit - top) / calibration.temperature - Math.log(total);
}

/** All spans that can be answers, as `mergeWindows` gives them; of equal characters only the best span. */
function candidateGrid(windows, maxAnswerLen, offsets) {
  const merged = mergeWindows(windows, maxAnswerLen);
  mergeCharacters(merged, offsets);
  return merged;
}

/**
 * The legal spans of a whole context, and for each span the window that gives its logits.
 *
 * The logits of a span come from the window that shows the most context around it, or from the first such
 * window. grid[i * width + k] is the score of the tokens i to i + k inclusive: (T, K) float64, where the
 * sum of two float32 numbers is exact. It is -Infinity if no window contains the span.
 */
function mergeWindows(windows, maxAnswerLen) {
  const lengths = windows.map(({startLogits}) => startLogits.length);
  const tokens = windows.at(-1).tokenStart + lengths.at(-1);
  const width = Math.min(maxAnswerLen, lengths.reduce((a, b) => Math.max(a, b)));  // K
  const grid = new Float64Array(tokens * width).fill(-Infinity);
  const shown = new Int32Array(tokens * width).fill(-1);
  const sourceWindow = new Int32Array(tokens * width);
  // The loops hold `span_grid` and `surroundings` of spans.py: a span that ends in the window is legal.
  for (const [index, {tokenStart, startLogits, endLogits}] of windows.entries()) {
    const T = startLogits.length;
    for (let i = 0; i < T; i++) {
      for (let k = 0; k < width && i + k < T; k++) {
        const around = Math.min(i, T - 1 - i - k);  // tokens to the left, to the right
        const here = (tokenStart + i) * width + k;
        if (around > shown[here]) {
          grid[here] = startLogits[i] + endLogits[i + k];
          shown[here] = around;
          sourceWindow[here] = index;
        }
      }
    }
  }
  return {grid, width, sourceWindow};
}

/** Keeps the best of the spans that cover the same characters, and sets the others to -Infinity. */
function mergeCharacters({grid, width}, offsets) {
  const rising = offsets.every(([a, b], k) => k === 0 || (offsets[k - 1][0] < a && offsets[k - 1][1] < b));
  if (rising) return;  // no character has two tokens
  const best = new Map();  // characters -> index of the best span so far
  const longest = offsets.at(-1)[1] + 1;
  for (let index = 0; index < grid.length; index++) {
    if (grid[index] === -Infinity) continue;
    const [first, last] = spanAt(index, width);
    const characters = offsets[first][0] * longest + offsets[last][1];
    const other = best.get(characters);
    const better = other === undefined || grid[index] > grid[other];
    if (other !== undefined) grid[better ? other : index] = -Infinity;
    if (better) best.set(characters, index);
  }
}

/**
 * The blog post's first decoder: the best start and the best end, each on its own. It looks at all tokens
 * of the window. The end can come before the start. Returns [start, end inclusive].
 */
function argmaxSpan(starts, ends) {
  const argmax = (logits) => logits.indexOf(logits.reduce((a, b) => Math.max(a, b)));
  return [argmax(starts), argmax(ends)];
}

/**
 * The blog post's second decoder: the `beam` best starts with the `beam` best ends. It looks at all tokens
 * of the window and at spans of any length, start <= end. It can miss the best legal span, and it can
 * return a span in the question. Returns [start, end inclusive, start + end logit], best first.
 */
function beamSpans(starts, ends, beam = 20) {
  const best = (logits) => [...logits.keys()].sort((a, b) => logits[a] - logits[b]).reverse().slice(0, beam);
  const bestEnds = best(ends);
  const spans = best(starts).flatMap((i) =>
    bestEnds.filter((j) => i <= j).map((j) => [i, j, starts[i] + ends[j]]));
  return spans.sort((a, b) => b[2] - a[2]);
}
