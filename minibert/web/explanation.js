"use strict";
// Why this span: question and context -> the data of `Explanation.to_dict()`, without the attribution.
// The twin of explanation.py. BERT (arXiv:1810.04805v2) section 4.2. `explain` has two parts here:
// `explanationOf` needs only the logits, which `engine.read` gives (in Python: `layer_logits`). The rule
// "blank" is never broken here, because every WordPiece has text.
//
// An engine is what `explain` needs to know about a model:
//   engine = {
//     tokenizer,    // of makeTokenizer (wordpiece.js)
//     settings,     // of windowSettings (features.js)
//     calibration,  // of storedCalibration (spans.js)
//     read(features, onProgress),  // -> Promise of [layer][window], each {start, end}: Float32Array (T,)
//     attentions, embeddingParts, config,  // of startEngine (worker.js)
//     madeWith,  // {model, computes_with, version}: texts for people
//   };
// `read` sends windows (`Feature`: inputIds, tokenTypeIds) through the model. It gives the logits that S
// and E give to all T tokens of a window, after the embeddings (layer 0) and after each layer.
// onProgress(done, total) counts windows.

// Why a decoder's choice differs from the choice of the exact search.
const RULES = {
  order: "it ends before it starts",
  null: "both its ends are [CLS], which means “no answer”",
  outside: "it reaches outside the passage, into the question or a special token",
  length: "it is longer than {} tokens",
  blank: "it is only white space",
  beam: "the best pair is not among the 20 best starts and the 20 best ends",
  tie: "another span has the same sum of logits, or has the same characters and a higher sum",
};

/** A question about a context, cut into windows, and how its answers are chosen. */
class Asked {
  constructor(engine, question, context, settings, features) {
    this.engine = engine;
    this.question = Array.from(question);  // code points
    this.context = Array.from(context);
    this.settings = settings;  // of answerSettings
    this.features = features;  // the windows; their offsets are widened to whole graphemes
    this.offsets = features[0].context.offsets;  // of all pieces of the context
  }

  /** The best answers by these logits of the windows. */
  best(logits, nBest) {
    const settings = {...this.settings, n_best: nBest};
    return bestSpans(logits, settings, this.offsets, this.engine.calibration).map((span) => this.candidate(span));
  }

  /** A span as an answer, with its window and its tokens there. */
  candidate({tokenStart, tokenEnd, startLogit, endLogit, score, window}) {
    const isNull = tokenStart < 0;
    const feature = this.features[window];
    const shift = feature.contextSlice[0] - feature.tokenStart;
    const [start, end] = isNull ? [0, 0] : [this.offsets[tokenStart][0], this.offsets[tokenEnd][1]];
    return {
      answer: this.context.slice(start, end).join(""), score, start, end,
      start_logit: startLogit, end_logit: endLogit, text_score: null, window,
      token_start: isNull ? 0 : tokenStart + shift, token_end: isNull ? 0 : tokenEnd + shift};
  }

  /** The probability of the answer at this place. */
  probability(logits, place) {
    return Math.exp(logPOf(logits, this.settings, this.offsets, this.engine.calibration, place));
  }

  /** The positions of the question among the tokens of a window, [start, end exclusive]. */
  get questionSlice() {
    return [1, this.features[0].prefix.length - this.engine.tokenizer.separators];
  }

  /** The part of the question that the model does not read, because it is too long. */
  get unread() {
    const {offsets} = this.engine.tokenizer.encode(this.question.join(""));
    const [start, end] = this.questionSlice;
    return end - start < offsets.length ? this.question.slice(offsets[end - start][0]).join("") : "";
  }
}

/**
 * Why the model answers this question in this way: a promise of plain data.
 *
 * `wanted` may have n_best (10), max_answer_len (30) and no_answer (false). `onCut` is called with a
 * sentence when a question is too long and is cut. Rejects with an Error of one sentence for bad input.
 */
async function explain(engine, question, context, wanted = {}, onProgress = () => {}, onCut = () => {}) {
  const settings = answerSettings(wanted);
  const features = makeWindows(question, context, engine.tokenizer, engine.settings, onCut);
  const depths = await engine.read(features, onProgress);
  const asked = new Asked(engine, question, context, settings, features);
  const explanation = explanationOf(asked, question, context, depths);
  const {window} = explanation.answers[0];
  const inside = await insideOf(engine, features[window], asked.questionSlice);
  return {...explanation, ...inside, attribution: null};
}

/** The part of the explanation that needs only the logits of all layers and windows. */
function explanationOf(asked, question, context, depths) {
  const {settings} = asked;
  const byLayer = depths.map((depth) => depth.map((sides, k) => cutToContext(asked.features[k], sides)));
  const best = asked.best(byLayer.at(-1), settings.n_best);
  const answers = best.filter(({answer}, rank) => rank < settings.n_best || !answer);
  const place = [answers[0].start, answers[0].end];
  const layers = byLayer.map((logits, layer) => {
    const [{answer, start, end, score}] = asked.best(logits, 1);
    return {layer, answer, start, end, score, final_score: asked.probability(logits, place)};
  });
  const others = layers.filter(({start, end}) => start !== place[0] || end !== place[1]);
  return {
    question,
    context,
    answers,
    windows: depths.at(-1).map((sides, k) => windowView(asked, k, sides, answers[0])),
    layers,
    stays_from: (others.at(-1)?.layer ?? -1) + 1,
    question_words: wordPlaces(asked.engine.tokenizer.encode(question)),
    context_words: wordPlaces(asked.features[0].context),
    rules: {...RULES, length: RULES.length.replace("{}", settings.max_answer_len)},
    max_answer_len: settings.max_answer_len,
    no_answer: settings.no_answer,
    temperature: asked.engine.calibration.temperature,
    null_threshold: asked.engine.calibration.null_threshold,
    made_with: asked.engine.madeWith,
    question_unread: asked.unread,
  };
}

/** The logits of a whole window -> the logits of its context, and of [CLS]. */
function cutToContext(feature, {start, end}) {
  const [from, to] = feature.contextSlice;
  const {tokenStart} = feature;
  const [startLogits, endLogits] = [start, end].map((logits) => logits.subarray(from, to));
  return {tokenStart, startLogits, endLogits, nullLogits: [start[0], end[0]]};
}

/** One window: its tokens, their logits, and the answer from this window alone. */
function windowView(asked, index, logits, answer) {
  const feature = asked.features[index];
  const {tokenizer} = asked.engine;
  const [from, to] = feature.contextSlice;
  const shown = asked.offsets.slice(feature.tokenStart, feature.tokenEnd + 1);
  const ofQuestion = tokenizer.encode(asked.question.join("")).offsets;
  const places = Array.from(logits.start, (_, k) => {
    if (k >= from && k < to) return shown[k - from];
    return k >= 1 && k < asked.questionSlice[1] ? ofQuestion[k - 1] : [-1, -1];
  });

  // alone, the window is the whole context, and its pieces are counted from 0
  const context = {...feature.context, offsets: shown};
  const single = new Feature(0, feature.prefix, context, 0, shown.length - 1, feature.contextSegment);
  const alone = Object.assign(Object.create(Asked.prototype), asked, {features: [single], offsets: shown});
  const best = alone.best([cutToContext(single, logits)], 1);
  const exact = best.find((candidate) => candidate.token_end);  // not "no answer"

  const source = asked.features[answer.window];
  const shift = source.tokenStart - source.contextSlice[0];  // tokens of the source -> of the whole context
  const left = answer.token_start + shift - feature.tokenStart;
  const right = feature.tokenEnd - (answer.token_end + shift);
  const holds = answer.token_end > 0 && left >= 0 && right >= 0;
  const ids = feature.inputIds;
  return {
    tokens: tokenizer.tokens(ids),
    ids,
    segments: feature.tokenTypeIds,
    starts: places.map(([start]) => start),
    ends: places.map(([, end]) => end),
    start_logits: Array.from(logits.start),
    end_logits: Array.from(logits.end),
    token_start: feature.tokenStart,
    context_start: from,
    context_end: to,
    left: holds ? left : null,
    right: holds ? right : null,
    alone: {...best[0], window: index},
    decoders: decoded(asked, feature, logits, exact, places),
  };
}

/**
 * The spans that the three decoders choose in one window; `exact` is the exact search's. `places` (T, 2)
 * are the characters of the window's tokens in the question or the context.
 */
function decoded(asked, feature, {start: starts, end: ends}, exact, places) {
  const [from, to] = feature.contextSlice;
  const tokens = asked.engine.tokenizer.tokens(feature.inputIds);
  const sides = [[asked.question, asked.questionSlice], [asked.context, feature.contextSlice]];

  function text(i, j) {
    for (const [letters, [first, end]] of sides) {
      if (first <= i && i <= j && j < end) return letters.slice(places[i][0], places[j][1]).join("");
    }
    return tokens.slice(i, j + 1).join(" ");
  }

  function rule(i, j, otherwise) {
    if (i === exact.token_start && j === exact.token_end) return "";
    if (j < i) return "order";
    if (asked.settings.no_answer && j === 0) return "null";
    if (i < from || j >= to) return "outside";
    return j - i >= asked.settings.max_answer_len ? "length" : otherwise;
  }

  const choices = [["argmax", ...argmaxSpan(starts, ends), "tie"]];
  for (const [i, j] of beamSpans(starts, ends).slice(0, 1)) choices.push(["beam", i, j, "beam"]);
  choices.push(["exact", exact.token_start, exact.token_end, ""]);
  return choices.map(([decoder, i, j, otherwise]) => ({
    decoder, token_start: i, token_end: j, text: text(i, j), logit: starts[i] + ends[j], rule: rule(i, j, otherwise)}));
}

/** The characters of each word of a text, [start, end exclusive]. */
function wordPlaces({offsets, words}) {
  const places = new Map();  // by the number of the word
  for (const [k, [start, end]] of offsets.entries()) {
    places.set(words[k], [places.get(words[k])?.[0] ?? start, end]);
  }
  // after widening to whole graphemes, two words may have the same characters
  return [...new Map([...places.values()].map((place) => [place.join(), place])).values()];
}
