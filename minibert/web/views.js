"use strict";
// The views of one window: bars over the words, the grid of spans, decoders, layers, pieces, and
// what the answer depends on.

const SHOWN = 10;  // a word has no bar if its logit is this much below the highest; see page.html
const VIRIDIS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
const DECODERS = {argmax: "best start, best end", beam: "20 best × 20 best", exact: "all legal spans"};

// --- bars over the words

/** The words that have a piece in the window, in the order of its tokens. */
function wordsOf(window) {
  const list = [];
  for (const [side, places, from, to] of [
    ["question", data.question_words, 0, window.context_start],
    ["context", data.context_words, window.context_start, window.context_end]]) {
    let k = from;
    for (const [start, end] of places) {
      while (k < to && window.ends[k] <= start) k++;
      const first = k;
      while (k < to && window.starts[k] >= 0 && window.starts[k] < end) k++;
      if (k > first) list.push({side, start, end, first, last: k - 1});
    }
  }
  return list;
}

function showBars() {
  words = wordsOf(view);
  const best = {start: Math.max(...view.start_logits), end: Math.max(...view.end_logits)};
  const height = (side, w) => Math.max(0, 1 + (wordLogit(side, w) - best[side]) / SHOWN).toFixed(3);
  const span = tokensOf(data.answers[chosen], view);
  const paragraphs = ["question", "context"].map((side) => {
    const node = el("p", {dir: "auto"});
    let last = null;
    words.forEach((w, k) => {
      if (w.side !== side) return;
      const cut = side === "question" ? question : context;
      if (last !== null) node.append(cut(last, w.start));
      const marked = span && w.first <= span[1] && w.last >= span[0];
      node.append(el("span", {class: marked ? "word chosen" : "word", "data-k": k,
        "--s": height("start", w), "--e": height("end", w)}, cut(Math.max(last, w.start), w.end)));
      last = w.end;
    });
    return node;
  });
  $("bars").replaceChildren(...paragraphs);
  reveal($("bars"), ".chosen");
  readWord(span ? words.findIndex((w) => w.last >= span[0]) : 0);
}

const wordLogit = (side, w) => Math.max(...view[`${side}_logits`].slice(w.first, w.last + 1));

function readWord(k) {
  word = Math.min(Math.max(k, 0), words.length - 1);
  $("bars").querySelector(".here")?.classList.remove("here");
  const node = $("bars").querySelector(`[data-k="${word}"]`);
  node.classList.add("here");
  const w = words[word];
  $("word").textContent = `${quoted(node.textContent)} in the ${w.side === "context" ? "passage" : "question"}: `
    + `start ${number(wordLogit("start", w))}, end ${number(wordLogit("end", w))}`;
}

// --- the grid of all spans

function showGrid() {
  const {start_logits: starts, end_logits: ends} = view, size = starts.length;
  const [canvas, box] = [$("heat"), $("grid")];
  canvas.width = canvas.height = size;
  const image = new ImageData(size, size);
  const top = Math.max(...starts) + Math.max(...ends);
  const range = top - Math.min(...starts) - Math.min(...ends) || 1;
  for (let i = 0; i < size; i++) {
    for (let j = 0; j < size; j++) {
      const place = 3.999 * (1 + (starts[i] + ends[j] - top) / range);
      const low = Math.max(0, Math.floor(place)), part = place - low;
      for (let channel = 0; channel < 3; channel++) {
        const [a, b] = [VIRIDIS[low][channel], VIRIDIS[low + 1][channel]];
        image.data[4 * (i * size + j) + channel] = a + part * (b - a);
      }
      image.data[4 * (i * size + j) + 3] = broken(i, j) ? 80 : 255;  // pale: the background shows through
    }
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  for (const old of box.querySelectorAll("i:not(#here)")) old.remove();
  const answer = data.answers[chosen];
  const span = answer.token_end ? tokensOf(answer, view) : [0, 0];  // "no answer": the first token, twice
  if (span) box.append(pin(el("i"), ...span));
  const exact = view.decoders[view.decoders.length - 1];
  readCell(...(span || [exact.token_start, exact.token_end]));
}

function pin(node, i, j) {
  const size = view.tokens.length;
  node.style.left = `${(100 * (j + 0.5)) / size}%`;
  node.style.top = `${(100 * (i + 0.5)) / size}%`;
  node.style.width = node.style.height = `${100 / size}%`;
  return node;
}

function readCell(i, j) {
  const last = view.tokens.length - 1;
  cell = [Math.min(Math.max(i, 0), last), Math.min(Math.max(j, 0), last)];
  [i, j] = cell;
  pin($("here"), i, j);
  const [start, end] = [view.start_logits[i], view.end_logits[j]];
  const rule = broken(i, j), none = data.no_answer && i === 0 && j === 0;
  let better = 0, legal = 0;
  for (let a = view.context_start; a < view.context_end; a++) {
    for (let b = a; b < Math.min(view.context_end, a + data.max_answer_len); b++) {
      if (broken(a, b)) continue;
      legal++;
      if (view.start_logits[a] + view.end_logits[b] > start + end) better++;
    }
  }
  $("cell").textContent = `${quoted(spanText(i, j))}: start ${number(start)}, end ${number(end)}, `
    + `sum ${number(start + end)}; `
    + (none ? "the logits of “no answer”" : rule ? `not a legal span: ${data.rules[rule]}`
      : `number ${better + 1} of ${legal} legal spans in this window`);
}

// --- decoders, layers, pieces

function showDecoders() {
  const heads = ["decoder", "chosen span", "sum of logits", "difference"];
  table("decoders", heads, view.decoders.map((pick) => row({},
    DECODERS[pick.decoder], textCell(spanText(pick.token_start, pick.token_end)),
    el("td", {class: "number"}, number(pick.logit)),
    pick.rule ? data.rules[pick.rule] : pick.decoder === "exact" ? "" : "the same span")));
}

function showLayers() {
  const best = data.answers[0];
  table("lens", ["after", "best answer", "its probability", "probability of the final answer"], data.layers.map((layer) =>
    row({class: layer.layer >= data.stays_from ? "final" : ""},
      layer.layer ? `layer ${layer.layer}` : "embeddings", textCell(layer.answer),
      meter(layer.score), meter(layer.final_score))));
  $("stays").replaceChildren(said(best.answer), data.stays_from
    ? ` is the best answer from layer ${data.stays_from} on.`
    : " is the best answer for the embeddings and after every layer.");
}

function showPieces() {
  if (!$("pieces").open) return;
  table("piece-table", ["token", "piece", "id", "characters", "segment", "start", "end"],
    view.tokens.map((token, k) => row({}, `${k}`, textCell(token), `${view.ids[k]}`,
      view.starts[k] < 0 ? "special" : `${k < view.context_start ? "question" : "passage"} `
        + `${view.starts[k]}–${view.ends[k]}`,
      `${view.segments[k]}`, number(view.start_logits[k]), number(view.end_logits[k]))));
}

// --- what the answer depends on

function showAttribution() {
  const parts = data.attribution;
  $("attribution").hidden = !parts;
  $("pending").textContent = parts ? "" : "This part was not computed, because it takes much longer.";
  if (!parts) return;
  const {log_p, baseline_log_p, gap, steps} = parts.gradients;
  $("complete").replaceChildren("Each word has a share in log p, the natural logarithm of the answer’s "
    + `probability. In float32, log p is ${number(log_p)} with all words and ${number(baseline_log_p)} when `
    + "the padding token replaces every word. The difference is "
    + `${number(log_p - baseline_log_p)}, and the shares add up to `,
    el("b", {}, number(sum(parts.gradients.question) + sum(parts.gradients.context))),
    `. These two are ${(100 * gap).toFixed(3)} % apart, because the shares are computed in ${steps} steps.`);
  const largest = Math.max(...parts.gradients.question.map(Math.abs), ...parts.gradients.context.map(Math.abs));
  $("shares").replaceChildren(...[
    [data.question_words, parts.gradients.question, question],
    [data.context_words, parts.gradients.context, context]].map(([places, shares, cut]) => {
    const node = el("p", {dir: "auto"});
    places.forEach(([start, end], k) => {
      if (k) node.append(cut(places[k - 1][1], start));
      const part = shares[k] / largest;
      node.append(Math.abs(part) < 0.02 ? cut(start, end) : el("span", {
        class: part > 0 ? "share for" : "share against", title: signed(shares[k]),
        "--a": (0.6 * Math.abs(part)).toFixed(2)}, cut(start, end)));
    });
    return node;
  }));
  const now = Math.log(data.answers[0].score);
  const heads = ["without", "change of log p", "best answer", "its probability", ...(live ? ["try it"] : [])];
  table("occlusions", heads, parts.occlusions.map((o) => row({},
    textCell((o.side === "question" ? question : context)(o.start, o.end)),
    el("td", {class: "number"}, o.log_p === null ? "the answer is no longer possible" : signed(o.log_p - now)),
    textCell(o.answer), meter(o.score),
    ...(live ? [el("button", {type: "button", click: () => strike(o)}, "Ask without it")] : []))));
}

const sum = (numbers) => numbers.reduce((a, b) => a + b, 0);

// --- keys and pointer

const ARROWS = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]};
$("grid").addEventListener("keydown", (event) => {
  const step = ARROWS[event.key];
  if (!step) return;
  event.preventDefault();
  const far = event.shiftKey ? 10 : 1;
  readCell(cell[0] + far * step[0], cell[1] + far * step[1]);
});
for (const kind of ["pointermove", "pointerdown"]) {
  $("grid").addEventListener(kind, (event) => {
    const box = $("heat").getBoundingClientRect(), size = view.tokens.length;
    readCell(Math.floor(((event.clientY - box.top) / box.height) * size),
      Math.floor(((event.clientX - box.left) / box.width) * size));
  });
}
$("bars").addEventListener("keydown", (event) => {
  if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
  event.preventDefault();
  readWord(word + (event.key === "ArrowLeft" ? -1 : 1));
});
$("bars").addEventListener("pointerover", (event) => {
  if (event.target.dataset.k) readWord(Number(event.target.dataset.k));
});
$("pieces").addEventListener("toggle", showPieces);
