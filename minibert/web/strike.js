"use strict";
// Leaving a word out: a click on the word itself asks anew, and one more click puts it back.

let undo = [];  // for each word that is left out now: {before, side, text}, before is the older explanation

/** Leaves a word or a sentence of the shown texts out, and asks again. */
async function strike({side, start, end}) {
  if (side === "special") return;  // [CLS] is no word
  const before = data, cut = cutter(data[side]);
  fillForm(data);  // the visitor may have edited it
  $(`ask-${side}`).value = cut(0, start) + cut(end, Infinity).trimStart();
  const shown = () => {
    $("put-back").focus({preventScroll: true});
    $("answered").scrollIntoView({block: "start"});
  };
  const answered = await ask({left: [...undo, {before, side, text: cut(start, end)}], shown});
  if (answered === false && data === before) {  // an error, and no newer question
    fillForm(before);
    $("ask").scrollIntoView({block: "start"});
  }
}

/** Shows the explanation from before the last word was left out. It is not computed again. */
function putBack() {
  const {before} = undo.pop();
  running?.abort();
  fillForm(before);
  $("message").textContent = "";
  show(before);
  compare(null);
  (undo.length ? $("put-back") : $("question").querySelector("button")).focus({preventScroll: true});
  $("answered").scrollIntoView({block: "start"});
}

/** Each word of the question is a button. Punctuation is not. */
function showQuestionWords() {
  const nodes = [];
  let last = 0;
  for (const [start, end] of data.question_words) {
    if (!/[\p{L}\p{N}]/u.test(question(start, end))) continue;
    nodes.push(question(last, start), el("button", {type: "button", class: "out",
      title: "leave this word out and ask again", click: () => strike({side: "question", start, end})}, question(start, end)));
    last = end;
  }
  $("question").replaceChildren(...nodes, question(last, Infinity));
}

function showStruck() {
  $("struck").hidden = !undo.length;
  if (!undo.length) return;
  const {side, text} = undo.at(-1);
  $("struck-word").replaceChildren(el("del", {}, spaced(text)), ` is left out of the ${side === "context" ? "passage" : "question"}.`);
}

if (live) {
  onShow.push(showQuestionWords, showStruck);
  $("strike-hint").hidden = $("strike").hidden = false;
  $("put-back").addEventListener("click", putBack);
  $("strike").addEventListener("click", () => strike(words[word]));
  $("bars").addEventListener("keydown", (event) => {
    if (event.key === "Delete" || event.key === "Enter") strike(words[word]);
  });
  let touched = -1;  // a finger reads a word first; a second touch leaves it out
  $("bars").addEventListener("click", (event) => {
    const k = Number(event.target.dataset.k ?? -1);
    if (k < 0) return;
    if (event.pointerType === "touch" && touched !== k) touched = k;
    else strike(words[k]);
  });
}
