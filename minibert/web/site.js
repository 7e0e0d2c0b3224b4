"use strict";
// The transport of `minibert site`: the model is in the page. It computes in workers, so the page
// stays alive. The first worker is the reader (reader.js). It starts the workers of the engine.

const WEIGHTS = "model.safetensors";
const TOKENIZERS = ["tokenizer.json", "vocab.txt"];
const OTHER_FILES = ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"];

let reader = null;  // the worker that answers
let ready;  // the promise that a model is loaded
const parsed = new Promise((resolve) => addEventListener("DOMContentLoaded", resolve));

/**
 * What the page has for its engine: {model, version, scripts: {name: text}, files: {name: text}}. In
 * a folder, these texts are null, because the files lie next to the page. The element comes after the scripts, so
 * the first answer is shown before the browser has read the weights.
 */
async function inPage() {
  await parsed;
  return JSON.parse($("site").textContent);
}

/** The text of the workers' program: all scripts of the engine. */
async function program() {
  return Object.entries((await inPage()).scripts).map(([name, code]) =>
    code ?? `importScripts(${JSON.stringify(new URL(name, document.baseURI).href)});`).join("\n");
}

// --- the files of a model: an object with a Blob or a text for each name

const megabytes = (bytes) => Math.round(bytes / 1e6);

/** A file next to the page. `tell(done, total)` counts its bytes. */
async function download(name, tell = () => {}) {
  let response;
  try {
    response = await fetch(`model/${name}`);
  } catch {
    throw new Error(location.protocol === "file:"
      ? "The model cannot be loaded from a file: use `minibert site --single`, or a server such as `python -m http.server`."
      : "The model cannot be loaded, because the server does not answer.");
  }
  if (!response.ok) throw new Error(`The model cannot be loaded: the server has no model/${name}.`);
  const total = Number(response.headers.get("Content-Length"));
  let done = 0;
  const counter = new TransformStream({
    transform(part, stream) {
      tell(done += part.length, total);
      stream.enqueue(part);
    },
  });
  return new Response(response.body.pipeThrough(counter)).blob();
}

/** The page's own model: inside this file, or in the folder `model` next to the page. */
async function ownFiles(tell) {
  const {files} = await inPage();
  if (files) return {...files, base64: $("weights").textContent};
  const names = ["config.json", "tokenizer.json", "tokenizer_config.json"];
  const blobs = await Promise.all([...names.map((name) => download(name)), download(WEIGHTS, tell)]);
  return Object.fromEntries([...names, WEIGHTS].map((name, k) => [name, blobs[k]]));
}

/** The files of a model among a visitor's files. */
function modelFiles(files) {
  const named = Object.fromEntries(files.map((file) => [file.name, file]));
  const lacks = ["config.json", WEIGHTS].filter((name) => !named[name]);
  if (!TOKENIZERS.some((name) => named[name])) lacks.push(TOKENIZERS.join(" or "));
  if (lacks.length) throw new Error(`the folder has ${lacks.map((name) => `no ${name}`).join(", ")}.`);
  const wanted = ["config.json", WEIGHTS, ...TOKENIZERS, ...OTHER_FILES].filter((name) => named[name]);
  return Object.fromEntries(wanted.map((name) => [name, named[name]]));
}

// --- loading

const status = (text) => { $("status").textContent = text; };
const sentence = (error) => error.message.replace(/\.?$/, ".");

/** Starts the worker that reads the model's files, and the workers that it needs. */
async function started(files, model) {
  if (typeof Worker === "undefined") {
    throw new Error("This browser has no web workers, so the page cannot load its model.");
  }
  const source = await program();
  const address = URL.createObjectURL(new Blob([source], {type: "text/javascript"}));
  const worker = caller(address);
  try {
    await worker.call("open", files, source, {model, version: (await inPage()).version});
  } catch (error) {
    worker.stop();
    throw error;
  } finally {
    URL.revokeObjectURL(address);
  }
  return worker;
}

/** Loads a model. While it is being loaded, and if that fails, the model before it stays. */
async function load(files, model) {
  const worker = await started(files, model);
  reader?.stop();
  reader = worker;
  status("The model is in this page, so your text stays on this machine.");
}

async function loadOwn() {
  status("Loading the model …");
  const tell = (done, total) => {
    status(`Loading the model: ${megabytes(done)} of ${megabytes(total)} MB …`);
  };
  await load(await ownFiles(tell), (await inPage()).model);
}

/** Loads a visitor's model, and asks it the question in the form. `name` is the folder's. */
async function useFiles(files, name) {
  try {
    const own = modelFiles(files);
    status(`Loading your model of ${megabytes(own[WEIGHTS].size)} MB …`);
    const next = load(own, name || "your own");
    if (!reader) ready = next;
    await next;
    ready = next;
  } catch (error) {
    return status(`This model cannot be loaded: ${sentence(error)}`);
  }
  ask();
}

/** Uses the files in a folder that was dropped, or the files themselves. */
async function useDropped(dropped) {
  const entries = [...dropped.items].map((item) => item.webkitGetAsEntry?.()).filter((e) => e);
  const folder = entries.find((entry) => entry.isDirectory);
  if (!folder) return useFiles([...dropped.files]);
  const directory = folder.createReader(), files = [];
  const read = () => new Promise((resolve, reject) => directory.readEntries(resolve, reject));
  for (let part = await read(); part.length; part = await read()) files.push(...part);
  const opened = files.filter((entry) => entry.isFile).map(
    (entry) => new Promise((resolve, reject) => entry.file(resolve, reject)));
  return useFiles(await Promise.all(opened), folder.name);
}

const picker = el("input", {type: "file", id: "folder", webkitdirectory: true,
  change: () => useFiles([...picker.files], picker.files[0]?.webkitRelativePath.split("/").at(-2))});
$("ask").append(
  el("p", {id: "status", class: "note", role: "status"}),
  el("details", {}, el("summary", {}, "Use your own model"),
    el("p", {class: "note"}, "A folder with config.json, model.safetensors, and tokenizer.json or vocab.txt: a BERT, "
      + "DistilBERT or ELECTRA that was trained to answer questions. It stays on this machine too. Drop the folder on "
      + "this page, or choose it here."),
    el("label", {}, "Folder of the model: ", picker)));
$("welcome").replaceChildren(
  el("h1", {}, "Ask a question about a text"),
  el("p", {}, "This page has a BERT model inside. The model answers with a part of the text itself, and the page shows "
    + "each step. The example below is answered already. Change it, and press “Ask”."));
$("welcome").hidden = false;
$("welcome").setAttribute("role", "region");  // the answer is the page's main part
$("welcome").setAttribute("aria-label", "About this page");
ready = loadOwn();
ready.catch((error) => status(sentence(error)));

transport = {
  async ask(asked, tell, signal) {
    const options = {n_best: asked.top_k, no_answer: asked.no_answer};
    const onProgress = (done, total) => tell({reading: [done, total]});
    const explanation = await explain(asked.question, asked.context, options, onProgress, signal);
    await new Promise((resolve) => setTimeout(resolve));  // drawing it is a task of its own
    tell({explanation});
  },
  /** Files that were dropped on the page, but that are no passage. */
  drop: useDropped,
};

async function explain(question, context, options = {}, onProgress = () => {}, signal = undefined) {
  await ready;
  signal?.throwIfAborted();
  return reader.follow("explain", [question, context, options], onProgress, signal);
}

// --- for tests, and for people who build on the page

window.minibert = {
  /** The promise that the model is loaded. It fails with one sentence that says why. */
  get ready() { return ready; },
  /** The data of `Explanation.to_dict()` without attribution. options: n_best, max_answer_len, no_answer. */
  explain: (question, context, options) => explain(question, context, options),
  /** The ids of a text's pieces, and their places [start, end] in code points. */
  async tokenize(text) {
    await ready;
    return reader.call("tokenize", text);
  },
};
