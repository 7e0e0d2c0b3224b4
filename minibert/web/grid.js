"use strict";
// The grid of all spans of a window, the three decoders, and two handles: the longest answer, and the
// threshold of "no answer". The handles change only this part of the page.

const DECODERS = {argmax: "best start, best end", beam: "20 best × 20 best", exact: "all legal spans"};
const NEAR = 7;  // the enlarged part shows this many pieces on each side of the cursor

let longest, threshold;  // the places of the two handles, in tokens and in logits
let range;  // the lowest and the highest sum of two logits in this window: {low, high}

/** The rule that a span of the window breaks: a name in data.rules, or "". */
function broken(i, j) {
  if (j < i) return "order";
  if (data.no_answer && j === 0) return "null";
  if (i < view.context_start || j >= view.context_end) return "outside";
  if (j - i >= longest) return "length";
  return view.starts[i] >= view.ends[j] ? "blank" : "";
}

const ruleText = (rule) =>
  (rule === "length" ? data.rules[rule].replace(data.max_answer_len, longest) : data.rules[rule]);
const sumOf = (i, j) => view.start_logits[i] + view.end_logits[j];

/** Calls `visit(i, j, sum)` for each legal span of the window: its two tokens, and the sum of its logits. */
function visitLegal(visit) {
  for (let i = view.context_start; i < view.context_end; i++) {
    for (let j = i; j < Math.min(view.context_end, i + longest); j++) {
      if (!broken(i, j)) visit(i, j, sumOf(i, j));
    }
  }
}

/** The best legal span of the window, the number of legal spans, and how probable the best one is among them. */
function bestSpan() {
  let span = null, top = -Infinity, count = 0, total = 0;
  visitLegal((i, j, value) => {
    count++;
    if (value > top) [span, top] = [[i, j], value];
  });
  visitLegal((i, j, value) => { total += Math.exp((value - top) / data.temperature); });
  return {span, top, count, probability: 1 / total};
}

// --- the grid

/** The colour of a sum of two logits: red, green, blue. */
const colour = (value) => viridis((value - range.low) / (range.high - range.low || 1));

const PALE = 80;  // of 255: the background shows through
const isPale = (i, j) => !["", "null"].includes(broken(i, j));

function showGrid() {
  const {start_logits: starts, end_logits: ends} = view, size = starts.length;
  range = {low: Math.min(...starts) + Math.min(...ends), high: Math.max(...starts) + Math.max(...ends)};
  $("low").textContent = number(range.low, 1);
  $("high").textContent = number(range.high, 1);
  $("grid").style.setProperty("--size", size);
  const canvas = $("heat");
  canvas.width = canvas.height = size;
  const image = new ImageData(size, size);
  for (let i = 0; i < size; i++) {
    for (let j = 0; j < size; j++) {
      image.data.set([...colour(sumOf(i, j)), isPale(i, j) ? PALE : 255], 4 * (i * size + j));
    }
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  const best = bestSpan();
  showPins();
  showDecoders(best);
  showLongest(best);
  if (data.no_answer) showThreshold();
  readCell(...(tokensOfChosen() || best.span || [view.context_start, view.context_start]));
}

/** Marks the chosen answer with a ring and two lines, and the choices of the first two decoders. */
function showPins() {
  for (const old of $("grid").querySelectorAll("i:not(#here)")) old.remove();
  for (const {decoder, token_start, token_end} of view.decoders) {
    if (decoder !== "exact") $("grid").append(pin(el("i", {class: `pin ${decoder}`}), token_start, token_end));
  }
  const span = tokensOfChosen();
  if (!span) return;
  for (const kind of ["line across", "line down", "pin answer"]) $("grid").append(pin(el("i", {class: kind}), ...span));
}

function pin(node, i, j) {
  const size = view.tokens.length;
  node.style.left = `${(100 * (j + 0.5)) / size}%`;
  node.style.top = `${(100 * (i + 0.5)) / size}%`;
  return node;
}

function readCell(i, j) {
  const last = view.tokens.length - 1;
  cell = [Math.min(Math.max(i, 0), last), Math.min(Math.max(j, 0), last)];
  [i, j] = cell;
  pin($("here"), i, j);
  showNear(i, j);
  const rule = broken(i, j);
  let better = 0, legal = 0;
  visitLegal((a, b, value) => { legal++; better += value > sumOf(i, j); });
  $("cell").textContent = `${quoted(rule === "null" ? "no answer" : spanText(i, j))}: start ${number(view.start_logits[i])}, `
    + `end ${number(view.end_logits[j])}, sum ${number(sumOf(i, j))}; `
    + (rule === "null" ? "the logits of “no answer”" : rule ? `not a legal span: ${ruleText(rule)}`
      : `number ${better + 1} of ${legal} legal spans in this window`);
}

/** The cells around the cursor, enlarged, with their pieces. */
function showNear(i, j) {
  const around = (place) => {
    const size = view.tokens.length, first = Math.max(0, Math.min(place - NEAR, size - 2 * NEAR - 1));
    return [...Array(Math.min(2 * NEAR + 1, size)).keys()].map((k) => first + k);
  };
  const [rows, columns] = [around(i), around(j)];
  const cells = [el("span"), ...columns.map((b) => el("span", {class: "column"}, view.tokens[b]))];
  for (const a of rows) {
    cells.push(el("span", {}, view.tokens[a]));
    for (const b of columns) {
      const [red, green, blue] = colour(sumOf(a, b)).map(Math.round);
      const opacity = isPale(a, b) ? (PALE / 255).toFixed(2) : 1;
      cells.push(el("i", {class: a === i && b === j ? "here" : "", "--c": `rgb(${red} ${green} ${blue} / ${opacity})`}));
    }
  }
  $("near").style.setProperty("--columns", columns.length);
  $("near").replaceChildren(...cells);
}

// --- decoders

function showDecoders(best) {
  const heads = ["decoder", "chosen span", "sum of logits", "difference"];
  const picks = view.decoders.map((pick) => (pick.decoder === "exact" && longest !== data.max_answer_len
    ? {...pick, token_start: best.span[0], token_end: best.span[1], logit: best.top} : pick));
  const exact = picks.find((pick) => pick.decoder === "exact");
  const none = {decoder: "", token_start: 0, token_end: 0, logit: sumOf(0, 0)};
  const noneWins = data.no_answer && (!exact || none.logit - exact.logit > threshold);
  const final = noneWins ? none : exact;
  const difference = (pick) => {
    const {token_start: i, token_end: j} = pick;
    if (pick === exact) return noneWins ? "the sum of “no answer” is higher by more than the threshold" : "";
    if (final && i === final.token_start && j === final.token_end) return "the same choice";
    return ruleText(broken(i, j) || (pick.decoder === "beam" ? "beam" : "tie"));
  };
  const shown = picks.map((pick) => [DECODERS[pick.decoder], pick, difference(pick)]);
  if (data.no_answer && final) shown.push(["all legal spans and “no answer”", final, ""]);
  table("decoders", heads, shown.map(([name, {token_start: i, token_end: j, logit}, told]) => row({},
    name, textCell(broken(i, j) === "null" ? "" : spanText(i, j)), el("td", {class: "number"}, number(logit)), told)));
}

// --- the handles

/** The logit of "no answer" minus the logit of the best span, over all windows. */
function nullOdds() {
  const logit = (answer) => answer.start_logit + answer.end_logit;
  const none = data.answers.find((a) => !a.token_end), best = data.answers.find((a) => a.token_end);
  return best ? logit(none) - logit(best) : Infinity;
}

/** Puts the handles where the model has them. The ranges include the places where the answers change. */
function setHandles() {
  longest = data.max_answer_len;
  Object.assign($("longest"), {max: Math.max(60, longest), value: longest});
  threshold = data.null_threshold;
  if (!data.no_answer) return;
  const odds = Math.max(-100, Math.min(nullOdds(), 100));
  Object.assign($("threshold"), {min: Math.floor(Math.min(threshold, odds) - 3),
    max: Math.ceil(Math.max(threshold, odds) + 3), value: threshold});
}

function showLongest({span, count, probability}) {
  $("longest-told").textContent = `${longest} pieces`;
  $("recomputed").replaceChildren(...(span ? [
    `In this window alone, ${count} spans are legal. The best one is “`, said(spanText(...span)),
    `”, with ${percent(probability)} of the probability of these spans.`
      + (longest === data.max_answer_len ? "" : ` The other sections still use ${data.max_answer_len} pieces.`)]
    : ["This window has no legal span."]));
}

/** The probability of "no answer" with the chosen threshold, over all windows. */
function showThreshold() {
  const odds = nullOdds(), none = data.answers.find((a) => !a.token_end), best = data.answers.find((a) => a.token_end);
  $("threshold-told").textContent = number(threshold, 1);
  if (!best) { $("decided").textContent = "The passage has no other answer."; return; }
  // Among the spans alone, the best one has the probability `share`; the threshold does not change it.
  const share = Math.min(1, best.score / Math.max(1 - none.score, best.score));
  const against = share * Math.exp((odds - threshold) / data.temperature);  // odds of “no answer” against all spans
  const wins = odds > threshold;
  $("decided").replaceChildren(
    `The sum of the logits of “no answer” minus the sum of “`, said(best.answer), `” is ${number(odds)}. `
    + `This is ${wins ? "more" : "not more"} than the threshold ${number(threshold, 1)}, so the answer is `,
    el("b", {}, wins ? "“no answer”" : quoted(best.answer)),
    `. The probability of “no answer” is ${percent(1 / (1 + 1 / against))}.`);
}

$("longest").addEventListener("input", () => {
  longest = Number($("longest").value);
  const kept = cell;
  showGrid();
  readCell(...kept);
});
$("threshold").addEventListener("input", () => {
  threshold = Number($("threshold").value);
  showThreshold();
  showDecoders(bestSpan());
});

// --- keys and pointer

const STEPS = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], PageUp: [-10, 0],
  PageDown: [10, 0], Home: [0, -Infinity], End: [0, Infinity]};
$("grid").addEventListener("keydown", (event) => {
  const step = STEPS[event.key];
  if (!step) return;
  event.preventDefault();
  const far = event.shiftKey ? 10 : 1, corner = event.ctrlKey && !step[0] ? step[1] : 0;
  readCell(cell[0] + (far * step[0] || corner), cell[1] + far * step[1]);
});
for (const kind of ["pointermove", "pointerdown"]) {
  $("grid").addEventListener(kind, (event) => {
    const box = $("heat").getBoundingClientRect(), size = view.tokens.length;
    readCell(Math.floor(((event.clientY - box.top) / box.height) * size),
      Math.floor(((event.clientX - box.left) / box.width) * size));
  });
}
