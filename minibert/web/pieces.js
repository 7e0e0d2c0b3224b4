"use strict";
// The pieces of a window, and the characters that they come from. Both have the same cursor.

function showPieces() {
  $("chips").replaceChildren(...view.tokens.map((token, k) =>
    el("span", {class: view.starts[k] < 0 ? "piece special" : "piece", "data-k": `${k}`}, token)));
  const {starts, ends, context_start: first, context_end: end} = view;
  const sides = [
    {cut: question, from: 0, to: Array.from(data.question).length, tokens: [0, first]},
    {cut: context, from: starts[first], to: ends[end - 1], tokens: [first, end]}];
  $("characters").replaceChildren(...sides.map(({cut, from, to, tokens}) => {
    const places = starts.slice(...tokens).map((start, k) => [start, ends[tokens[0] + k]]);
    return el("p", {dir: "auto"}, ...segments(cut, from, to, places).map(({text, covering}) =>
      (covering.length ? el("span", {"data-k": covering.map((k) => tokens[0] + k).join(" ")}, text) : text)));
  }));
  readPiece((tokensOfChosen() || [first])[0]);
  showPieceTable();
}

/** Marks a piece in both boxes, and returns its element in this box. The other box scrolls to it. */
function readPiece(k, box = null) {
  piece = Math.min(Math.max(k, 0), view.tokens.length - 1);
  for (const one of [$("chips"), $("characters")]) {
    one.querySelectorAll(".here").forEach((node) => node.classList.remove("here"));
    one.querySelectorAll(`[data-k~="${piece}"]`).forEach((node) => node.classList.add("here"));
    if (one !== box) reveal(one, ".here");
  }
  const [start, end] = [view.starts[piece], view.ends[piece]];
  const inContext = piece >= view.context_start;
  $("piece").textContent = `piece ${piece}: ${quoted(view.tokens[piece])}, id ${view.ids[piece]}, `
    + (start < 0 ? "a special piece without characters"
      : `from the characters ${start}–${end} of the ${inContext ? "passage" : "question"}: `
        + quoted((inContext ? context : question)(start, end)));
  return box?.querySelector(".here") ?? box;
}

function showPieceTable() {
  if (!$("pieces").open) return;
  table("piece-table", ["token", "piece", "id", "characters", "segment", "start", "end"],
    view.tokens.map((token, k) => row({}, `${k}`, textCell(token), `${view.ids[k]}`,
      view.starts[k] < 0 ? "special" : `${k < view.context_start ? "question" : "passage"} `
        + `${view.starts[k]}–${view.ends[k]}`,
      `${view.segments[k]}`, number(view.start_logits[k]), number(view.end_logits[k]))));
}

for (const id of ["chips", "characters"]) {
  onKeys($(id), () => piece, (k) => readPiece(k, $(id)));
  for (const kind of ["pointerover", "pointerdown"]) {  // touching has no "over"
    $(id).addEventListener(kind, (event) => {
      if (event.target.dataset.k) readPiece(parseInt(event.target.dataset.k), $(id));
    });
  }
}
$("pieces").addEventListener("toggle", showPieceTable);
