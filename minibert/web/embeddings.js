"use strict";
// What the vector of a token is made of, before the first layer: BERT (arXiv:1810.04805v2) section 3.
// The numbers are from inside.py: whole thousandths, for the window of the best answer.

let token = 0;  // the chosen token of that window

/** The window of the best answer. The views of the model's inside show this window. */
const answerWindow = () => data.windows[data.answers[0].window];

/** A vector as a strip of coloured cells. `largest` has the full colour. `length` is of the whole vector. */
function strip(name, numbers, length, largest) {
  const cells = numbers.map((n) => el("i", {class: n < 0 ? "against" : "for",
    "--a": Math.min(1, Math.abs(n) / largest).toFixed(2), title: number(n / 1000)}));
  const told = `${spaced(name)}: the first numbers are ${numbers.slice(0, 4).map((n) => number(n / 1000)).join(", ")}`;
  return el("div", {class: "strip"}, el("span", {class: "name"}, name),
    el("span", {class: "cells", role: "img", "aria-label": told}, ...cells),
    el("span", {class: "number"}, `length ${number(length, 2)}`));
}

function showToken(k) {
  token = k;
  const window = answerWindow(), {piece, position, segment, lengths, width, hidden_size} = data.embeddings;
  const vectors = [piece[k], position[k], segment[window.segments[k]]].filter(Boolean);
  const total = piece[k].map((_, n) => sum(vectors.map((vector) => vector[n])));
  const largest = Math.max(1, ...[...vectors, total].flat().map(Math.abs));
  const names = [`piece ${window.tokens[k]}`, `+ position ${k}`, `+ segment ${window.segments[k]}`];
  $("strips").replaceChildren(
    ...vectors.map((vector, n) => strip(names[n], vector, lengths[k][n], largest)),
    strip("= the sum", total, lengths[k][3], largest));
  $("token").value = k;
  $("token").setAttribute("aria-valuetext", `${window.tokens[k]}, position ${k}`);
  $("token-told").textContent = `${window.tokens[k]} at position ${k} of ${window.tokens.length - 1}`;
  const [shown, parts] = [piece[k].length, vectors.length];
  $("strips-note").textContent = (shown < width ? `The strips show the first ${shown} of ${width} numbers. ` : "")
    + `The lengths are of all ${width} numbers. `
    + (parts < 3 ? "This model has no segments. " : "Segment 0 is the question, and segment 1 is the passage. ")
    + "Then LayerNorm shifts and scales the sum"
    + (width === hidden_size ? "." : `, and a matrix makes ${hidden_size} numbers of the ${width}.`);
}

onShow.push(() => {
  $("token").max = answerWindow().tokens.length - 1;
  showToken(data.answers[0].token_start);
});
$("token").addEventListener("input", () => showToken(Number($("token").value)));
