"use strict";
// Shows one explanation, which is the data of `Explanation.to_dict()`: what the page knows, and the
// answers, the passage and the windows. Offsets count code points, but indices of JavaScript's
// strings count UTF-16 units. So the functions `question` and `context` cut these texts by code points.

const onShow = [];  // the functions of other files that draw a new explanation
let data = JSON.parse($("data").textContent);
const live = transport !== null;
let question, context;  // (start, end) -> text
let chosen = 0;  // index of the marked answer in data.answers
let view;  // the window that the page shows
let words = [];  // the words of this window: {side, start, end, first, last}; first and last are tokens
let word = 0, cell = [0, 0];  // the cursor of the bars and the cursor of the grid

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
  for (const draw of onShow) draw();
}
