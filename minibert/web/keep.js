"use strict";
// Keeps what was asked. A reload asks it again: the browser keeps the texts in this tab's sessionStorage
// until the tab is closed. Only on request the texts are put into the page's address, after "#". Browsers
// do not send this part to a server. The page can also be saved as a file.

const STORED = "minibert";  // the key in sessionStorage
const LONGEST_LINK = 8000;  // characters; programs that send links often cut longer ones

/** What the form asks now: the fields of `Asked` in serve/page.py. */
const formValues = () => ({question: $("ask-question").value, context: $("ask-context").value,
  top_k: Number($("ask-top").value), no_answer: $("ask-null").checked});

/** Fills the form with an explanation's texts, or with what `formValues` returned. */
function fillForm({question, context, no_answer, top_k}) {
  [$("ask-question").value, $("ask-context").value] = [question, context];
  $("ask-null").checked = Boolean(no_answer);
  if (top_k) $("ask-top").value = top_k;
}

function store() {
  try {
    sessionStorage.setItem(STORED, JSON.stringify(formValues()));
  } catch {
    // the browser forbids storage, or the passage is too long: a reload then shows an empty form
  }
}

/** What the page's address asks, or null. */
function inAddress() {
  const link = new URLSearchParams(location.hash.slice(1));
  if (!link.has("question") || !link.has("passage")) return null;
  return {question: link.get("question"), context: link.get("passage"), no_answer: link.has("no_answer")};
}

/** What the page before a reload has asked, or null. */
function stored() {
  try {
    return JSON.parse(sessionStorage.getItem(STORED));
  } catch {
    return null;
  }
}

/** Puts question and passage into the page's address, and copies it. */
async function copyLink() {
  const link = new URLSearchParams({question: data.question, passage: data.context, ...(data.no_answer && {no_answer: 1})});
  if (String(link).length > LONGEST_LINK) {
    $("kept").textContent = "The passage is too long for a link. Save the page as a file.";
    return;
  }
  history.replaceState(null, "", `#${link}`);
  const where = "Anyone who gets the link can read both texts. A browser that opens it does not send them to a server.";
  try {
    await navigator.clipboard.writeText(location.href);
    $("kept").textContent = `Copied: this page’s address now has the question and the passage. ${where}`;
  } catch {
    $("kept").textContent = `The page’s address now has the question and the passage, so copy the address. ${where}`;
  }
}

/** The text of a script or a style sheet, which is in the page or in a file next to it. */
const sourceOf = async (node) => node.textContent || (await fetch(node.src || node.href)).text();

/** A text's hash in the form that a Content-Security-Policy needs: see `source` in page.py. */
async function hashOf(text) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", new TextEncoder().encode(text)));
  return `'sha256-${btoa(String.fromCharCode(...digest))}'`;
}

/** The page of `minibert explain` with the explanation that is shown: see `page` in page.py. */
async function savedPage() {
  const root = PRISTINE.cloneNode(true), head = root.querySelector("head");
  const scripts = await Promise.all([...document.querySelectorAll("script[data-page]")].map(sourceOf));
  const style = await sourceOf(document.querySelector("style, link[rel=stylesheet]"));
  for (const old of root.querySelectorAll("script:not(#data), style, link[rel=stylesheet], meta[http-equiv]")) old.remove();
  const hashes = crypto.subtle && await Promise.all([style, ...scripts].map(hashOf));  // only https and this machine have it
  const [ofStyle, ...ofScripts] = hashes || ["'unsafe-inline'", "'unsafe-inline'"];
  head.querySelector("meta").after(el("meta", {"http-equiv": "Content-Security-Policy",
    content: `default-src 'none'; img-src data:; style-src ${ofStyle}; script-src ${ofScripts.join(" ")}; base-uri 'none'; form-action 'none'`}));
  head.append(el("style", {}, style));
  const json = JSON.stringify({...data, day: today()}).replace(/[<>&]/g, (c) => `\\u00${c.charCodeAt(0).toString(16)}`);
  root.querySelector("#data").textContent = json;
  root.querySelector("body").append(...scripts.map((script) => el("script", {}, script)));
  return `<!doctype html>\n${root.outerHTML}`;
}

async function save() {
  const name = spaced(data.question).replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 60);
  const address = URL.createObjectURL(new Blob([await savedPage()], {type: "text/html"}));
  el("a", {href: address, download: `${name || "answer"}.html`}).click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);  // the browser may still be reading it
}

if (live) {
  $("keep").hidden = false;
  onShow.push(store);
  $("link").addEventListener("click", copyLink);
  $("save").addEventListener("click", save);
}
