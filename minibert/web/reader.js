"use strict";
// Text in, answers out: the files of a model -> its tokenizer and its engine, which answer. The
// twin of reader.py. It runs in a worker of its own, because a search in a long text takes time.

let reader;  // {tokenizer, read, config, settings, calibration}

/** The text of a file: a Blob from the page's folder or from a visitor, or the text itself. */
const textOf = (file) => (typeof file === "string" ? file : file.text());

/** The bytes that base64 text stands for. */
function fromBase64(base64) {
  const binary = atob(base64);
  return Uint8Array.from({length: binary.length}, (_, k) => binary.charCodeAt(k)).buffer;
}

/**
 * `files`: a Blob or a text for each name; the weights also as text, under "base64". `source` is
 * the program of the engine's workers. `made` has the names of the model and of this version.
 */
async function openReader({"model.safetensors": file, base64, ...others}, source, made) {
  const names = Object.keys(others), texts = await Promise.all(Object.values(others).map(textOf));
  const files = Object.fromEntries(names.map((name, k) => [name, texts[k]]));
  const config = parsed("config.json", files["config.json"]);
  readConfig(config);  // refuses other kinds of models before their tokenizers
  const tokenizer = makeTokenizer(files), calibration = storedCalibration(config);
  const weights = base64 ? fromBase64(base64) : await file.arrayBuffer();
  const engine = await startEngine({config, weights, source});
  const settings = windowSettings(tokenizer, engine.config.max_position_embeddings);
  const computes_with = `this browser, fp32${base64 ? " with 8-bit weights" : ""}, ${engine.kernel}`;
  return {...engine, tokenizer, calibration, settings, madeWith: {...made, computes_with}};
}

Object.assign(CALLS, {
  async open(values) {
    reader = await openReader(...values);
    return {kernel: reader.kernel, workers: reader.workers};
  },
  explain([question, context, options], {onProgress, signal}) {
    const read = (features, tell) => reader.read(features, tell, signal);
    return explain({...reader, read}, question, context, options, onProgress);
  },
  tokenize([text]) {
    const {ids, offsets} = reader.tokenizer.encode(text);
    return {ids, offsets};
  },
});
