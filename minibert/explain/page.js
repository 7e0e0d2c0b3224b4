"use strict";
// Shows one explanation, which is the data of `Explanation.to_dict()`. A page without data asks the
// server for an explanation. Offsets count code points, but indices of JavaScript's strings count
// UTF-16 units. So the functions `question` and `context` cut these texts by code points.
(() => {
const $ = (id) => document.getElementById(id);
const SHOWN = 10;  // a word has no bar if its logit is this much below the highest; see page.html
const VIRIDIS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
const DECODERS = {argmax: "best start, best end", beam: "20 best × 20 best", exact: "all legal spans"};

let data = JSON.parse($("data").textContent);
const live = data === null;
let question, context;  // (start, end) -> text
let chosen = 0;  // index of the marked answer in data.answers
let view;  // the window that the page shows
let words = [];  // the words of this window: {side, start, end, first, last}; first and last are tokens
let word = 0, cell = [0, 0];  // the cursor of the bars and the cursor of the grid

/** A new element. Its text becomes text nodes, so the browser never reads it as markup. */
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (name.startsWith("--")) node.style.setProperty(name, value);
    else if (value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}
const number = (x, digits = 3) => x.toFixed(digits).replace(/^-(?=[0.]+$)/, "").replace("-", "−");
const percent = (p) =>
  p > 0.9995 ? "> 99.9 %" : p < 0.0001 ? "< 0.01 %" : `${(100 * p).toFixed(p < 0.1 ? 2 : 1)} %`;
const signed = (x) => number(x).replace(/^(?=.*[1-9])(?=\d)/, "+");
const spaced = (text) => text.replace(/\s+/g, " ");
const quoted = (text) => `“${spaced(text)}”`;
const said = (answer) => el("bdi", {}, spaced(answer) || "no answer");
const meter = (p) => el("span", {class: "meter", "--p": `${100 * p}%`}, percent(p));

function cutter(text) {
  const points = /[\ud800-\udfff]/.test(text) ? Array.from(text) : null;
  return (start, end) => (points ? points.slice(start, end).join("") : text.slice(start, end));
}

function table(id, heads, rows) {
  $(id).replaceChildren(
    el("thead", {}, el("tr", {}, ...heads.map((head) => el("th", {scope: "col"}, head)))),
    el("tbody", {}, ...rows));
}
const row = (attributes, ...cells) =>
  el("tr", attributes, ...cells.map((c) => (c.tagName === "TD" ? c : el("td", {}, c))));
const textCell = (text) => el("td", {class: "words"}, said(text));

/** The first and last token of an answer in a window, or null if the window does not contain it. */
function tokensOf(answer, window) {
  if (!answer.token_end) return null;
  const from = data.windows[answer.window];
  const shift = from.token_start - from.context_start - window.token_start + window.context_start;
  const [i, j] = [answer.token_start + shift, answer.token_end + shift];
  return i >= window.context_start && j < window.context_end ? [i, j] : null;
}

/** The rule that a span of the window breaks: a name in data.rules, or "". */
function broken(i, j) {
  if (j < i) return "order";
  if (i < view.context_start || j >= view.context_end) return "outside";
  if (j - i >= data.max_answer_len) return "length";
  return view.starts[i] >= view.ends[j] ? "blank" : "";
}

function spanText(i, j) {
  if (j < i) return `${view.tokens[i]} … back to ${view.tokens[j]}`;
  const cut = i >= view.context_start ? context : question;
  const inside = view.starts.slice(i, j + 1).every((start) => start >= 0);
  return inside && (i >= view.context_start) === (j >= view.context_start)
    && cut(view.starts[i], view.ends[j]) || view.tokens.slice(i, j + 1).join(" ");
}

// --- the passage and its best answers

function showAnswers() {
  const best = data.answers[0];
  $("question").textContent = data.question;
  $("answer").replaceChildren(el("b", {dir: "auto"}, said(best.answer)), " ", percent(best.score));
  $("answers").replaceChildren(...data.answers.map((answer, rank) => el("li", {},
    el("button", {type: "button", "aria-pressed": "false", click: () => choose(rank)},
      el("span", {class: "number"}, `${rank + 1}`), said(answer.answer), meter(answer.score),
      el("small", {}, `start ${number(answer.start_logit)}, end ${number(answer.end_logit)}`)))));

  const places = data.answers.flatMap((a) => [a.start, a.end]);
  const cuts = [...new Set([0, ...places, Array.from(data.context).length])].sort((a, b) => a - b);
  $("passage").replaceChildren(...cuts.slice(1).map((end, k) => {
    const ranks = [...data.answers.keys()].filter(
      (rank) => data.answers[rank].start <= cuts[k] && end <= data.answers[rank].end);
    const text = context(cuts[k], end);
    return ranks.length
      ? el("mark", {"data-ranks": ranks.join(" "), click: () => choose(ranks[0])}, text) : text;
  }));
}

function choose(rank) {
  chosen = rank;
  const answer = data.answers[rank];
  [...$("answers").querySelectorAll("button")].forEach(
    (button, k) => button.setAttribute("aria-pressed", k === rank));
  for (const mark of $("passage").querySelectorAll("mark")) {
    mark.classList.toggle("chosen", mark.dataset.ranks.split(" ").includes(`${rank}`));
  }
  reveal($("passage"), "mark.chosen");
  showWindows();
  look(answer.window);
}

/** Scrolls a box to its first element that matches. The page itself does not scroll. */
function reveal(box, selector) {
  const match = box.querySelector(selector);
  if (match) box.scrollTop = match.offsetTop - box.clientHeight / 3;
}

// --- the windows

function showWindows() {
  const total = Math.max(...data.windows.map((w) => w.token_start + w.context_end - w.context_start));
  const answer = data.answers[chosen];
  const stripe = (kind, start, length) => {
    const node = el("i", {class: kind});
    node.style.left = `${(100 * start) / total}%`;
    node.style.width = `${(100 * length) / total}%`;
    return node;
  };
  $("windows").replaceChildren(...data.windows.map((w, k) => {
    const here = tokensOf(answer, w);
    const track = el("span", {class: "track"},
      stripe("seen", w.token_start, w.context_end - w.context_start));
    if (here) track.append(stripe("answer", w.token_start + here[0] - w.context_start, here[1] - here[0] + 1));
    const used = k === answer.window && data.windows.length > 1;  // its logits give the score
    let saw = used ? ": the logits of “no answer” are lowest here, and they count" : "";
    if (answer.token_end) saw = " does not contain the answer";
    if (here) {
      saw = ` contains the answer, with ${here[0] - w.context_start} tokens before it and `
        + `${w.context_end - 1 - here[1]} after it${used ? "; the logits come from here" : ""}`;
    }
    return el("li", {}, el("button", {type: "button", "aria-pressed": "false", click: () => look(k)},
      el("span", {}, `Window ${k + 1}${saw}`),
      track, el("span", {}, "best answer of this window alone: ", said(w.alone.answer), ` ${percent(w.alone.score)}`)));
  }));
}

function look(k) {
  view = data.windows[k];
  [...$("windows").querySelectorAll("button")].forEach(
    (button, w) => button.setAttribute("aria-pressed", w === k));
  for (const name of document.querySelectorAll(".window-name")) {
    name.textContent = data.windows.length > 1 ? `window ${k + 1}` : "the only window";
  }
  showBars();
  showGrid();
  showDecoders();
  showPieces();
}

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

function show(explanation) {
  data = explanation;
  question = cutter(data.question);
  context = cutter(data.context);
  document.title = `${data.question} · minibert`;
  for (const node of document.querySelectorAll(".null")) node.hidden = !data.no_answer;
  $("answered").hidden = $("main").hidden = false;
  showAnswers();
  showLayers();
  choose(0);
  showAttribution();
}

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

// --- the live page

let running = null;  // the AbortController of the current request

async function ask(attribution = false) {
  running?.abort();
  running = new AbortController();
  const before = data;
  $("message").textContent = "Reading …";
  try {
    const response = await fetch("ask", {
      method: "POST", headers: {"Content-Type": "application/json"}, signal: running.signal,
      body: JSON.stringify({question: $("ask-question").value, context: $("ask-context").value,
        top_k: Number($("ask-top").value), no_answer: $("ask-null").checked, attribution})});
    if (!response.ok) throw new Error((await response.json()).error);
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let rest = "", part = await reader.read(); !part.done; part = await reader.read()) {
      const lines = (rest + part.value).split("\n");
      rest = lines.pop();
      for (const line of lines) take(JSON.parse(line), before);
    }
  } catch (error) {
    if (error.name === "AbortError") return;  // a newer question replaced this one
    $("message").textContent = error.message;
  }
  $("progress").hidden = true;
}

/** Shows one line of the server's answer. */
function take(line, before) {
  if (line.explanation) {
    $("message").textContent = "";
    show(line.explanation);
    compare(before);
  } else if (line.reading) {
    const [done, total] = line.reading;
    $("message").textContent = `${done} of ${total} windows read …`;
  } else if (line.progress) {
    [$("progress").value, $("progress").max] = line.progress;
    $("progress").hidden = false;
    $("pending").textContent = "Reading the text again: without each part, and for the integrated gradients …";
  } else if (line.attribution) {
    data.attribution = line.attribution;
    showAttribution();
  } else if (line.skipped) {
    $("pending").replaceChildren(`This part takes as long as reading the ${data.windows.length} windows hundreds of times. `,
      el("button", {type: "button", click: () => ask(true)}, "Compute it"));
  } else {
    throw new Error(line.error);
  }
}

/** Compares the previous answer with the new one. */
function compare(before) {
  $("before").hidden = !before;
  if (!before) return;
  const [old, now] = [before.answers[0], data.answers[0]];
  const first = quoted(old.answer || "no answer");
  const same = data.answers.findIndex((a) => a.answer === old.answer);
  const cells = [before, data].map((d) => el("td", {class: "words"}, el("bdi", {}, d.question), " ",
    el("b", {}, said(d.answers[0].answer)), ` ${percent(d.answers[0].score)}`));
  const change = old.answer === now.answer
    ? `The answer is the same. Its log p changes by ${signed(Math.log(now.score) - Math.log(old.score))}.`
    : `The answer changes from ${first} to ${quoted(now.answer || "no answer")}. ${first} is now `
      + (same < 0 ? "not in the list of the best answers."
        : `number ${same + 1} in the list, with ${percent(data.answers[same].score)}.`);
  $("changes").replaceChildren(el("table", {}, el("tbody", {},
    el("tr", {}, el("th", {scope: "row"}, "before"), cells[0]),
    el("tr", {}, el("th", {scope: "row"}, "now"), cells[1]))), el("p", {}, change));
}

/** Removes a word or a sentence from the form, and asks again. */
function strike({side, start, end}) {
  const cut = cutter(data[side]);
  $(`ask-${side}`).value = cut(0, start) + cut(end, Infinity).trimStart();
  ask();
}

if (live) {
  $("ask").hidden = $("strike").hidden = false;
  $("ask").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
  $("ask-context").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) ask();
  });
  $("strike").addEventListener("click", () => strike(words[word]));
  addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("drop"); });
  addEventListener("dragleave", () => document.body.classList.remove("drop"));
  addEventListener("drop", async (event) => {
    event.preventDefault();
    document.body.classList.remove("drop");
    const file = event.dataTransfer.files[0];
    if (!file) return;
    const text = /\.(txt|md)$/i.test(file.name) && file.size < 1e7;
    if (text) $("ask-context").value = await file.text();
    $("message").textContent = text ? "" : `${file.name}: expected a .txt or .md file of less than 10 MB`;
  });
  $("ask-question").focus();
} else {
  show(data);
}
})();
