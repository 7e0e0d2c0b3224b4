"use strict";
// Two questions side by side: one explanation is pinned while the visitor asks for others.

let pinned = null;  // an explanation
const AROUND = 90;  // characters of the passage that a card shows on each side of the answer
const RANKS = 5;  // answers on a card

/** One explanation in short. */
function card(explanation, name, ...buttons) {
  const best = explanation.answers[0], cut = cutter(explanation.context);
  const {start, end} = best, length = Array.from(explanation.context).length;
  return el("article", {class: "card"}, el("p", {class: "kicker"}, name),
    el("h3", {dir: "auto"}, explanation.question),
    el("p", {}, el("b", {dir: "auto"}, said(best.answer)), ` ${percent(best.score)}`),
    el("p", {class: "text excerpt", dir: "auto"}, start > AROUND ? "… " : "", cut(Math.max(0, start - AROUND), start),
      ...(start < end ? [el("mark", {class: "chosen", "--p": "100%"}, cut(start, end))] : []),
      cut(end, end + AROUND), end + AROUND < length ? " …" : ""),
    el("ol", {}, ...explanation.answers.slice(0, RANKS).map((answer) =>
      el("li", {}, said(answer.answer), meter(answer.score)))),
    el("p", {class: "note"}, explanation.stays_from ? `It is the best answer from layer ${explanation.stays_from} on.`
      : "It is the best answer after every layer."),
    el("p", {class: "row"}, ...buttons));
}

function showPair() {
  const other = pinned !== null && pinned !== data;
  $("pinned").hidden = !other;
  $("pin").textContent = pinned === data ? "Unpin this question" : "Pin this question";
  if (!other) return;
  const button = (text, click) => el("button", {type: "button", class: "small", click}, text);
  $("pair").replaceChildren(
    card(pinned, "pinned", button("Show this one on the whole page", swap), button("Unpin", () => setPinned(null))),
    card(data, "shown on this page"));
}

/** Shows the pinned explanation on the page, and pins the one that was shown. */
function swap() {
  const next = pinned;
  pinned = data;
  undo = [];
  fillForm(next);
  show(next);
  compare(null);
}

function setPinned(explanation) {
  pinned = explanation;
  $("kept").textContent = explanation ? "Pinned. Ask another question to see the two side by side." : "";
  showPair();
}

if (live) {
  onShow.push(() => {
    $("kept").textContent = "";
    showPair();
  });
  $("pin").addEventListener("click", () => setPinned(pinned === data ? null : data));
}
