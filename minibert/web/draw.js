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
