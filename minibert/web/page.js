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
let word = 0, piece = 0, cell = [0, 0];  // the cursors of the bars, of the pieces and of the grid

/** The first and last token of an answer in a window, or null if the window does not contain it. */
function tokensOf(answer, window) {
  if (!answer.token_end) return null;
  const from = data.windows[answer.window];
  const shift = from.token_start - from.context_start - window.token_start + window.context_start;
  const [i, j] = [answer.token_start + shift, answer.token_end + shift];
  return i >= window.context_start && j < window.context_end ? [i, j] : null;
}

/** The same for the chosen answer. “No answer” is the first token, [CLS], as start and as end. */
function tokensOfChosen() {
  const answer = data.answers[chosen];
  return answer.token_end ? tokensOf(answer, view) : [0, 0];
}

function spanText(i, j) {
  if (j < i) return `${view.tokens[i]} … back to ${view.tokens[j]}`;
  const cut = i >= view.context_start ? context : question;
  const inside = view.starts.slice(i, j + 1).every((start) => start >= 0);
  return inside && (i >= view.context_start) === (j >= view.context_start)
    && cut(view.starts[i], view.ends[j]) || view.tokens.slice(i, j + 1).join(" ");
}

// --- the passage and its best answers

const UNMARKED = 0.001;  // an answer below this probability is not marked; see page.html

function showAnswers() {
  const best = data.answers[0];
  $("question").textContent = data.question;
  $("answer").replaceChildren(el("b", {dir: "auto"}, said(best.answer)), " ", percent(best.score));
  $("part").hidden = !partOfWord(best);
  $("part").textContent = `The answer is only a part of ${partOfWord(best)}. The model reads pieces, `
    + "and an answer can start and end at any piece, also in the middle of a word.";
  const {model, computes_with, version} = data.made_with;
  const day = data.day ?? today();
  $("made").textContent = `Model ${model}, computed with ${computes_with}, by minibert ${version} on ${day}.`;
  $("answers").replaceChildren(...data.answers.map((answer, rank) => {
    const more = !answer.token_end && rank > 0 && rank === data.answers.length - 1;
    return el("li", {}, el("button", {type: "button", "aria-pressed": "false", click: () => choose(rank)},
      el("span", {class: "number"}, more ? "–" : `${rank + 1}`), said(answer.answer), meter(answer.score),
      el("small", {}, `start ${number(answer.start_logit)}, end ${number(answer.end_logit)}`
        + (more ? `; less probable than the ${rank} above` : "")
        + (partOfWord(answer) ? `; a part of ${partOfWord(answer)}` : ""))));
  }));
}

/** The word that an answer cuts, in quotation marks, or "". */
function partOfWord(answer) {
  const inside = ([start, end], place) => start < place && place < end;
  const cut = data.context_words.find((w) => inside(w, answer.start) || inside(w, answer.end));
  return cut ? `the word ${quoted(context(...cut))}` : "";
}

/** The steps from the text to the answer, each with its numbers and a link to its part of the page. */
function showFlow() {
  const {windows, layers} = data, best = data.answers[0];
  const pieces = windows.map((w) => w.tokens.length);
  const steps = [
    ["h-passage", "Text", `${data.question_words.length} words of the question, ${data.context_words.length} of the passage`],
    ["h-pieces", "Pieces", pieces.length > 1 ? `${pieces.length} windows with up to ${Math.max(...pieces)} pieces` : `${pieces[0]} pieces`],
    ["h-lens", "Model", `${layers.length - 1} layers make a vector of every piece`],
    ["h-bars", "Two scores", "a start score and an end score for every piece"],
    ["h-grid", "Spans", "start and end together: the best pair wins"],
    ["h-answers", "Answer", el("b", {}, said(best.answer), ` ${percent(best.score)}`)]];
  // In a notebook's frame the link itself would load the notebook, so a click only scrolls.
  const scroll = (event) => {
    event.preventDefault();
    document.querySelector(event.target.getAttribute("href")).scrollIntoView();
  };
  $("flow").replaceChildren(...steps.map(([id, name, told]) =>
    el("li", {}, el("a", {href: `#${id}`, click: scroll}, name), el("span", {}, told))));
}

function showPassage() {
  const marked = [...data.answers.keys()].filter(
    (rank) => rank === chosen || data.answers[rank].score >= UNMARKED);
  const places = marked.map((rank) => [data.answers[rank].start, data.answers[rank].end]);
  const end = Array.from(data.context).length;
  $("passage").replaceChildren(...segments(context, 0, end, places).map(({text, covering}) => {
    if (!covering.length) return text;
    const ranks = covering.map((k) => marked[k]);
    const probability = sum(ranks.map((rank) => data.answers[rank].score));
    return el("mark", {class: ranks.includes(chosen) ? "chosen" : "", "data-ranks": ranks.join(" "),
      "--p": `${(100 * probability).toFixed(1)}%`, click: () => choose(ranks[0])}, text);
  }));
  reveal($("passage"), "mark.chosen");
}

function choose(rank) {
  chosen = rank;
  [...$("answers").querySelectorAll("button")].forEach(
    (button, k) => button.setAttribute("aria-pressed", k === rank));
  showPassage();
  showWindows();
  look(data.answers[rank].window);
  reveal($("windows"), '[aria-pressed="true"]');
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
  showPieces();
  showBars();
  showGrid();
}

/** What a window says alone, in words, if it lacks the best answer and is sure of another one. */
function showAlone() {
  const best = data.answers[0];
  const sure = data.windows.findIndex((w) =>
    best.token_end && !tokensOf(best, w) && w.alone.token_end && w.alone.score > 0.5);
  $("alone").hidden = sure < 0;
  if (sure < 0) return;
  const {answer, score} = data.windows[sure].alone;
  $("alone").replaceChildren(`Window ${sure + 1} does not contain the best answer. Alone, it would be `
    + `${percent(score)} sure of another answer, “`, said(answer), "”. The probabilities of one window "
    + "always add up to 100 %, so a window without the right answer still gives its 100 % to other spans. "
    + "A percentage from one window alone therefore says little. minibert compares the logits of all "
    + "windows, and makes one set of probabilities for the whole passage.");
}

function show(explanation) {
  data = explanation;
  question = cutter(data.question);
  context = cutter(data.context);
  document.title = `${data.question} · minibert`;
  for (const node of document.querySelectorAll(".null")) node.hidden = !data.no_answer;
  $("answered").hidden = $("main").hidden = false;
  showAnswers();
  $("unread").hidden = !data.question_unread;
  $("unread").textContent = `The question is too long for the model. This part of it was not read: ${quoted(data.question_unread)}`;
  showFlow();
  showAlone();
  showLayers();
  setHandles();
  choose(0);
  showAttribution();
  for (const draw of onShow) draw();
}
