"use strict";
// One head of one layer: how much [CLS] and the question's pieces attend to each token of the best
// answer's window. "Attention Is All You Need" (arXiv:1706.03762v7) section 3.2.
// The numbers are from inside.py: data.attention.weights[layer][head][row][token], in thousandths.

let layerShown = 0, headShown = 0;  // both from 0
let from = 0, to = 0;  // the cursor: a row of the map, and a token of the window
const LEAST = 20;  // thousandths: lines below this weight are not drawn
const MAP_ROW = 1.25;  // height of a row in rem; see page.css

const weightsShown = () => data.attention.weights[layerShown][headShown];
const percentOf = (thousandths) => `${(thousandths / 10).toFixed(1)} %`;

/** The first and the last token of the best answer; [CLS] for "no answer". */
const answerTokens = () => [data.answers[0].token_start, data.answers[0].token_end];

/** The head in which the question attends most to the answer: layer and head from 0, and the row. */
function mostToAnswer() {
  const [first, last] = answerTokens();
  const toAnswer = (row) => sum(row.slice(first, last + 1));
  let best = {weight: -1};
  data.attention.weights.forEach((heads, layer) => heads.forEach((rows, head) => {
    const each = rows.map((row, k) => (k ? toAnswer(row) : 0));  // row 0 is [CLS]
    const weight = sum(each);
    if (weight > best.weight) best = {layer, head, weight, row: each.indexOf(Math.max(...each))};
  }));
  return best;
}

/** The largest weight of the head at a token of a text. [CLS] and [SEP] often have more. */
function scaleOf(rows) {
  const {starts} = answerWindow();
  return Math.max(1, ...rows.flatMap((row) => row.filter((_, k) => starts[k] >= 0)));
}

// --- the text with its lines

/** The tokens of the window as text: question and passage, each with its special tokens. */
function showAttentionText() {
  const window = answerWindow(), [first, last] = answerTokens(), {rows} = data.attention;
  const paragraphs = [[0, window.context_start, question], [window.context_start, window.tokens.length, context]];
  $("attention-text").replaceChildren(...paragraphs.map(([begin, end, cut]) => {
    const node = el("p", {dir: "auto"});
    let before = null;
    for (let k = begin; k < end; k++) {
      const [start, stop] = [window.starts[k], window.ends[k]];
      if (start < 0) {
        node.append(" ", el("span", {class: "special", "data-k": k}, window.tokens[k]), " ");
        continue;
      }
      if (before !== null) node.append(cut(before, start));
      node.append(el("span", {"data-k": k, class: k >= first && k <= last ? "answer" : rows.includes(k) ? "row-token" : ""},
        cut(Math.max(before ?? 0, start), stop)));
      before = stop;
    }
    return node;
  }));
}

const tokenNode = (k) => $("attention-text").querySelector(`[data-k="${k}"]`);

/** Colours the tokens by the weights of the chosen row. */
function shade() {
  const row = weightsShown()[from], largest = scaleOf(weightsShown());
  for (const node of $("attention-text").querySelectorAll("[data-k]")) {
    node.style.setProperty("--a", (0.75 * Math.min(1, row[node.dataset.k] / largest)).toFixed(2));
    node.classList.toggle("from", Number(node.dataset.k) === data.attention.rows[from]);
  }
}

/** Draws a line from each row's token to the tokens of the passage; the chosen row's lines are strong. */
function drawLines() {
  const svg = $("lines"), origin = $("attention-text").getBoundingClientRect();
  if (!tokenNode(0) || !origin.width) return;
  svg.setAttribute("width", origin.width);
  svg.setAttribute("height", origin.height);
  const middle = (k, side) => {
    const rect = tokenNode(k).getClientRects()[0] ?? tokenNode(k).getBoundingClientRect();
    return [rect.left + rect.width / 2 - origin.left, rect[side] - origin.top];
  };
  const largest = scaleOf(weightsShown()), first = answerWindow().context_start;
  const lines = weightsShown().flatMap((row, r) => row.flatMap((weight, k) => {
    if (k < first || weight < LEAST) return [];
    const strength = Math.min(1, weight / largest) * (r === from ? 1 : 0.25);
    const [[x1, y1], [x2, y2]] = [middle(data.attention.rows[r], "bottom"), middle(k, "top")];
    const line = document.createElementNS($("lines").namespaceURI, "line");
    Object.entries({x1, y1, x2, y2, "stroke-opacity": strength.toFixed(2), "stroke-width": r === from ? 2 : 1})
      .forEach(([name, value]) => line.setAttribute(name, value));
    return [line];
  }));
  svg.replaceChildren(...lines);
}

// --- the map

function showMap() {
  const rows = weightsShown(), [canvas, size] = [$("map-heat"), rows[0].length], largest = scaleOf(rows);
  [canvas.width, canvas.height] = [size, rows.length];
  const image = new ImageData(size, rows.length);
  rows.forEach((row, r) => row.forEach((weight, k) => {
    image.data.set([...viridis(Math.min(1, weight / largest)), 255], 4 * (r * size + k));
  }));
  canvas.getContext("2d").putImageData(image, 0, 0);
  $("map").style.height = `${MAP_ROW * rows.length}rem`;
  $("map-rows").replaceChildren(...data.attention.rows.map((k) => el("span", {}, answerWindow().tokens[k])));
  const [first, last] = answerTokens();
  const answer = $("map-answer");
  answer.style.left = `${(100 * first) / size}%`;
  answer.style.width = `${(100 * (last - first + 1)) / size}%`;
  $("map-scale").textContent = `The lightest yellow is ${percentOf(largest)} or more. The line below the map marks the answer.`;
}

function readAttention(row, k) {
  const rows = weightsShown(), window = answerWindow(), size = window.tokens.length;
  [from, to] = [Math.min(Math.max(row, 0), rows.length - 1), Math.min(Math.max(k, 0), size - 1)];
  const here = $("map-here");
  here.style.left = `${(100 * to) / size}%`;
  here.style.width = `${100 / size}%`;
  here.style.top = `${(100 * from) / rows.length}%`;
  here.style.height = `${100 / rows.length}%`;
  const name = (t) => quoted(window.tokens[t]);
  const most = [...rows[from].keys()].sort((a, b) => rows[from][b] - rows[from][a]).slice(0, 3);
  $("attended").textContent = `${name(data.attention.rows[from])} attends to ${name(to)} with ${percentOf(rows[from][to])}. `
    + `It attends most to ${most.map((t) => `${name(t)} (${percentOf(rows[from][t])})`).join(", ")}.`;
  $("from").value = from;
  shade();
  drawLines();
}

function showHead(layer, head, row = from) {
  [layerShown, headShown] = [layer, head];
  [$("layer").value, $("head").value] = [layer, head];
  showMap();
  const [first, last] = answerTokens(), weights = weightsShown()[row];
  const most = Math.max(...weights.slice(first, last + 1));
  readAttention(row, weights.indexOf(most, first));
}

const numbered = (count) => Array.from({length: count}, (_, k) => el("option", {value: k}, `${k + 1}`));

function showAttention() {
  const {weights, rows} = data.attention;
  $("layer").replaceChildren(...numbered(weights.length));
  $("head").replaceChildren(...numbered(weights[0].length));
  $("from").replaceChildren(...rows.map((k, r) => el("option", {value: r}, answerWindow().tokens[k])));
  showAttentionText();
  const {layer, head, row} = mostToAnswer();
  showHead(layer, head, row);
  reveal($("attention-box"), ".answer");
}

onShow.push(showAttention);
for (const id of ["layer", "head", "from"]) {
  $(id).addEventListener("change", () => showHead(Number($("layer").value), Number($("head").value), Number($("from").value)));
}
$("most").addEventListener("click", () => {
  const {layer, head, row} = mostToAnswer();
  showHead(layer, head, row);
});
$("attention-text").addEventListener("click", (event) => {
  const row = data.attention.rows.indexOf(Number(event.target.dataset.k));
  if (row >= 0) readAttention(row, to);
});
$("map").addEventListener("keydown", (event) => {
  const step = STEPS[event.key];
  if (!step) return;
  event.preventDefault();
  readAttention(from + step[0], to + step[1]);
  $("map-here").scrollIntoView({block: "nearest", inline: "nearest"});
});
for (const kind of ["pointermove", "pointerdown"]) {
  $("map").addEventListener(kind, (event) => {
    const box = $("map-heat").getBoundingClientRect(), rows = data.attention.rows.length;
    readAttention(Math.floor(((event.clientY - box.top) / box.height) * rows),
      Math.floor(((event.clientX - box.left) / box.width) * answerWindow().tokens.length));
  });
}
new ResizeObserver(drawLines).observe($("attention-text"));
$("attention-box").addEventListener("scroll", drawLines);  // the question stays in view while the passage scrolls
