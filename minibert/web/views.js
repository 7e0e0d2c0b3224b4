"use strict";
// The views of words: bars over the words of a window, the answer after each layer, and what the answer
// depends on.

const SHOWN = 10;  // a word has no bar if its logit is this much below the highest; see page.html

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
  if (data.no_answer) words.unshift({side: "special", first: 0, last: 0});  // [CLS]
  for (const [id, logits, least] of [["half", SHOWN / 2, ""], ["none", SHOWN, "at least "]]) {
    $(id).textContent = ` (${least}${Math.round(Math.exp(logits / data.temperature)).toLocaleString("en")} times less probable)`;
  }
  const best = {start: Math.max(...view.start_logits), end: Math.max(...view.end_logits)};
  const height = (side, w) => Math.max(0, 1 + (wordLogit(side, w) - best[side]) / SHOWN).toFixed(3);
  const span = tokensOfChosen();
  const bar = (w, k, text) => el("span", {
    class: span && w.first <= span[1] && w.last >= span[0] ? "word chosen" : "word", "data-k": k,
    "--s": height("start", w), "--e": height("end", w)}, text);
  const paragraphs = ["question", "context"].map((side) => {
    const node = el("p", {dir: "auto"});
    let last = null;
    if (data.no_answer && side === "question") node.append(bar(words[0], 0, view.tokens[0]), " ");
    words.forEach((w, k) => {
      if (w.side !== side) return;
      const cut = side === "question" ? question : context;
      if (last !== null) node.append(cut(last, w.start));
      node.append(bar(w, k, cut(Math.max(last, w.start), w.end)));
      last = w.end;
    });
    return node;
  });
  $("bars").replaceChildren(...paragraphs);
  // in a window without the chosen answer, the cursor shows the best span of this window
  const start = span ? span[0] : bestSpan().span?.[0] ?? view.context_start;
  readWord(words.findIndex((w) => w.last >= start));
  reveal($("bars"), ".here");
}

const wordLogit = (side, w) => Math.max(...view[`${side}_logits`].slice(w.first, w.last + 1));

function readWord(k) {
  word = Math.min(Math.max(k, 0), words.length - 1);
  $("bars").querySelector(".here")?.classList.remove("here");
  const node = $("bars").querySelector(`[data-k="${word}"]`);
  node.classList.add("here");
  const w = words[word];
  const where = {context: " in the passage", question: " in the question", special: ", a special piece"}[w.side];
  $("strike").disabled = w.side === "special";
  $("word").textContent = `${quoted(node.textContent)}${where}: `
    + `start ${number(wordLogit("start", w))}, end ${number(wordLogit("end", w))}`;
  return node;
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

// --- what the answer depends on

function showAttribution() {
  const parts = data.attribution;
  $("attribution").hidden = !parts;
  $("pending").textContent = parts ? "" : "This part takes much longer than the answer, so minibert did not compute it.";
  if (!parts) return;
  const {log_p, baseline_log_p, gap, steps} = parts.gradients;
  $("complete").replaceChildren(`With all words, log p is ${number(log_p)}. When an empty token replaces every `
    + `word, log p is ${number(baseline_log_p)}. The difference is `
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
    ...(live ? [el("button", {type: "button", click: () => strike(o)}, "Leave it out and ask again")] : []))));
}

// --- keys and pointer

onKeys($("bars"), () => word, readWord);
$("bars").addEventListener("pointerover", (event) => {
  if (event.target.dataset.k) readWord(Number(event.target.dataset.k));
});
