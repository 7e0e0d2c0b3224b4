"use strict";
// What every view needs: elements, numbers and tables.
// The files share one scope, in the order of `scripts` in minibert/explain/page.py.

// Who answers a question: the server of `minibert serve` (server.js), or the model in the page
// (site.js). The file of `minibert explain` cannot answer more questions, so there it stays null.
let transport = null;

// The page as it was loaded, for a copy of it (keep.js).
const PRISTINE = document.documentElement.cloneNode(true);

const $ = (id) => document.getElementById(id);

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
const today = () => new Date().toLocaleDateString("sv");  // this language writes 2026-11-29
const sum = (numbers) => numbers.reduce((a, b) => a + b, 0);
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

/** Cuts the text from `start` to `end` at the bounds of `places`, which are [start, end] each. Returns
    its parts: {text, covering}, where `covering` has the indices of the places that cover the part. */
function segments(cut, start, end, places) {
  const inner = places.flat().filter((place) => place > start && place < end);
  const cuts = [...new Set([start, ...inner, end])].sort((a, b) => a - b);
  return cuts.slice(1).map((to, k) => ({text: cut(cuts[k], to),
    covering: [...places.keys()].filter((p) => places[p][0] <= cuts[k] && to <= places[p][1])}));
}

const VIRIDIS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];

/** A colour from dark blue (part 0) to yellow (part 1): red, green, blue. */
function viridis(part) {
  const place = 3.999 * part, step = Math.floor(place);
  return VIRIDIS[step].map((low, channel) => low + (place - step) * (VIRIDIS[step + 1][channel] - low));
}

const MOVES = {ArrowLeft: (k) => k - 1, ArrowRight: (k) => k + 1, Home: () => 0, End: () => Infinity};

/** Moves the cursor of a row of items with the keys. `now` gives its place, and `read` takes the new one
    and returns the item's element. */
function onKeys(box, now, read) {
  box.addEventListener("keydown", (event) => {
    const move = MOVES[event.key];
    if (!move) return;
    event.preventDefault();
    read(move(now())).scrollIntoView({block: "nearest"});
  });
}

/** Scrolls a box to its first element that matches. The page itself does not scroll. */
function reveal(box, selector) {
  const match = box.querySelector(selector);
  if (match) box.scrollTop = match.offsetTop - box.clientHeight / 3;
}

// A table that is wider than the screen says so. Without this, a reader may not see that it has more columns.
const wide = new ResizeObserver(() => {
  for (const box of document.querySelectorAll(".wide")) {
    box.classList.toggle("more-columns", box.scrollWidth > box.clientWidth + 1);
  }
});
for (const node of document.querySelectorAll(".wide, .wide > table")) wide.observe(node);
