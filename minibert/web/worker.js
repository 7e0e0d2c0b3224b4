"use strict";
// The model in workers, so that the page stays alive while it computes.
//
// On the page:
//     engine = await startEngine({config, weights, plain, source}, workers)
//         config   the parsed config.json
//         weights  ArrayBuffer with model.safetensors (also the 8-bit form). Each worker gets a
//                  copy, and the first one gets the caller's buffer, which is then empty.
//         plain    true: compute without WebAssembly (default false)
//         source   the text of the workers' program (default `workerSource()`)
//         workers  how many (default `defaultWorkers(weights)`)
//     A "feature" is one window: any object with inputIds and tokenTypeIds, two arrays (T,).
//     await engine.read(features, onProgress, signal) -> [layer][window] -> {start, end}
//         start and end are Float32Arrays (T,): the logits that S and E give after each layer.
//         Layer 0 is the embeddings. This is what `layer_logits` in explanation.py returns.
//         onProgress(windows read, all windows) is called first with 0 and after each window.
//         After `signal` (of an AbortController) no further window starts, and the promise fails
//         with the signal's reason.
//     await engine.attentions(feature, rows) -> [layer][head] -> Float32Array (R * T)
//         rows are R positions of tokens. Row r says how much this token reads of each token, and
//         sums to 1. Layer 0 is the first layer.
//     await engine.hiddenStates(feature) -> [layer] -> Float32Array (T * H), layer 0: embeddings
//     await engine.embeddingParts(feature) -> {word, segment, position}: Float32Array (T * width)
//         The vectors that are added for each token; their sum is then normalised. segment is null
//         for DistilBERT. width is engine.config.embedding_size, or hidden_size if that is null.
//     engine.config    the sizes of the model, under BERT's names (hidden_size, ...)
//     engine.kernel    "WebAssembly" or "JavaScript": what computes the products
//     engine.workers   how many workers there are
//     engine.stop()    ends the workers; what they have not finished fails
// Every promise fails with an Error whose message is one sentence for the user.
//
// The scripts of the workers are the <script> elements with the attribute data-engine, in the
// order product.js, kernel.js, nn.js, pretrained.js, bert.js, worker.js. They may be inline or have
// a src. The page's security policy needs `worker-src blob:` and, for WebAssembly,
// 'wasm-unsafe-eval' in its script-src. Without the latter, the plain loop computes.

/** The text of the workers' program, from the page's own script elements. */
function workerSource() {
  return [...document.querySelectorAll("script[data-engine]")].map((script) => (
    script.src ? `importScripts(${JSON.stringify(script.src)});` : script.textContent)).join("\n");
}

/** One worker for each core, but at most 3: with the bundled model, each needs about 120 MB. */
function defaultWorkers(weights) {
  const cores = navigator.hardwareConcurrency || 1, copies = Math.floor(150e6 / weights.byteLength);
  return Math.max(1, Math.min(cores, 3, copies));
}

async function startEngine({config, weights, plain = false, source = workerSource()}, count) {
  if (typeof Worker === "undefined") throw new Error("This browser has no workers.");
  const address = URL.createObjectURL(new Blob([source], {type: "text/javascript"}));
  const workers = Array.from({length: count ?? defaultWorkers(weights)}, () => caller(address));
  const stop = () => workers.forEach((worker) => worker.stop());
  const copies = workers.map((_, k) => (k ? weights.slice(0) : weights));
  let loaded;
  try {
    loaded = await Promise.all(workers.map(
      (worker, k) => worker.call("load", config, copies[k], plain)));
  } catch (error) {
    stop();
    throw error;
  } finally {
    URL.revokeObjectURL(address);
  }
  const free = [...workers], waiting = [];
  const work = (signal, ...request) => new Promise((resolve, reject) => {
    waiting.push({signal, request, resolve, reject});
    next();
  });
  function next() {
    while (free.length && waiting.length) {
      const {signal, request, resolve, reject} = waiting.shift();
      if (signal?.aborted) {
        reject(signal.reason);
        continue;
      }
      const worker = free.pop();
      worker.call(...request).then(resolve, reject).finally(() => {
        free.push(worker);
        next();
      });
    }
  }
  return {...loaded[0], workers: workers.length, stop, ...methods(work)};
}

/** The engine's methods. `work(signal, name, ...values)` lets a free worker do something. */
function methods(work) {
  const inputs = (feature) => [feature.inputIds, feature.tokenTypeIds];
  return {
    async read(features, onProgress = () => {}, signal = undefined) {
      let done = 0;
      onProgress(done, features.length);
      const windows = await Promise.all(features.map(async (feature) => {
        const output = await work(signal, "forward", ...inputs(feature));
        onProgress(++done, features.length);
        return output;
      }));
      return windows[0].startLogits.map((_, layer) => windows.map(
        ({startLogits, endLogits}) => ({start: startLogits[layer], end: endLogits[layer]})));
    },
    async attentions(feature, attentionRows) {
      const options = {attentionRows};
      return (await work(undefined, "forward", ...inputs(feature), options)).attentions;
    },
    async hiddenStates(feature) {
      const options = {hiddenStates: true};
      return (await work(undefined, "forward", ...inputs(feature), options)).hiddenStates;
    },
    embeddingParts(feature) {
      return work(undefined, "embeddingParts", ...inputs(feature));
    },
  };
}

/**
 * A new worker with what it can do (see `CALLS` and `answerCalls`): `call(name, ...values)` -> the
 * promise of the result. `follow(name, values, onProgress, signal)` does the same, and
 * `onProgress` gets what the function tells on its way. After `signal`, the promise fails at once.
 * ArrayBuffers among the values move to the worker, because a copy would need memory.
 */
function caller(address) {
  const worker = new Worker(address), calls = new Map();
  const fail = (error) => {
    for (const {reject} of calls.values()) reject(error);
    calls.clear();
  };
  let number = 0;
  worker.onmessage = ({data: {id, result, error, progress}}) => {
    if (!calls.has(id)) return;  // it was cancelled
    const {resolve, reject, onProgress} = calls.get(id);
    if (progress) return onProgress(...progress);
    calls.delete(id);
    if (error) reject(new Error(error));
    else resolve(result);
  };
  worker.onerror = (event) => {
    event.preventDefault();
    fail(new Error(`The browser could not start the model: ${event.message || "no worker"}.`));
  };
  const follow = (name, values, onProgress, signal) => new Promise((resolve, reject) => {
    const id = ++number;
    calls.set(id, {resolve, reject, onProgress});
    worker.postMessage({id, name, values}, values.filter((value) => value instanceof ArrayBuffer));
    signal?.addEventListener("abort", () => {
      if (calls.delete(id)) worker.postMessage({cancel: id});
      reject(signal.reason);
    });
  });
  return {
    follow,
    call: (name, ...values) => follow(name, values, () => {}),
    stop() {
      worker.terminate();
      fail(new Error("The model was replaced."));
    },
  };
}

// --- in the worker

let model;

/** What a page or a worker can call: name -> function of the values, and of {onProgress, signal}. */
const CALLS = {
  load([config, weights, plain]) {
    model = makeBert(config, readSafetensors(weights), plain);
    weights.transfer?.(0);  // frees them at once; garbage collection would come much later
    return {config: model.config, kernel: model.kernel};
  },
  forward: (values) => model.forward(...values),
  embeddingParts: (values) => model.bert.embeddings.parts(...values),
};

/** Answers the calls of `caller`. */
function answerCalls() {
  const running = new Map();
  onmessage = async ({data: {id, name, values, cancel}}) => {
    if (cancel) return running.get(cancel)?.abort();
    const stop = new AbortController();
    running.set(id, stop);
    const onProgress = (...progress) => postMessage({id, progress});
    try {
      postMessage({id, result: await CALLS[name](values, {onProgress, signal: stop.signal})});
    } catch (error) {
      postMessage({id, error: error.message});
    }
    running.delete(id);
  };
}

if (typeof document === "undefined") answerCalls();
