"use strict";
// Windows: question + context -> overlapping windows. The twin of features.py, graphemes.py and
// data/examples.py's `validated_example`.
//
// A window is `[CLS] question [SEP] part of the context [SEP]`, as in BERT (arXiv:1810.04805v2)
// section 4.2. A context that is too long for one window is cut into several windows that overlap: an
// answer at the edge of one window is inside another.

// A run of characters in which several may form one letter, with the ASCII characters next to it.
const RUN = /([\0-\x7f]?[^\0-\x7f](?:[\0-\x7f]?[^\0-\x7f])*[\0-\x7f]?)/u;

const MAX_QUESTION_LEN = 64;  // tokens of a question that are read

/** The settings of `QuestionAnswerer`: `positions` is the model's longest window, in tokens. */
function windowSettings(tokenizer, positions) {
  const max_length = Math.min(384, positions, tokenizer.maxLength ?? 384);
  return {max_length, doc_stride: null, max_question_len: MAX_QUESTION_LEN};
}

/** One window, without padding. All windows share the pieces of the question and of the context. */
class Feature {
  constructor(windowIndex, prefix, context, tokenStart, tokenEnd, contextSegment) {
    this.windowIndex = windowIndex;
    this.prefix = prefix;  // ids of [CLS] question [SEP]
    this.context = context;  // the pieces of the whole context
    this.tokenStart = tokenStart;  // first piece of the context in this window
    this.tokenEnd = tokenEnd;  // last piece of the context in this window (inclusive)
    this.contextSegment = contextSegment;  // the question's is 0
  }

  get length() {
    return this.prefix.length + this.tokenEnd - this.tokenStart + 2;
  }

  /** The positions of the context among the tokens of this window, [start, end exclusive]. */
  get contextSlice() {
    return [this.prefix.length, this.length - 1];
  }

  get inputIds() {
    const ids = this.context.ids.slice(this.tokenStart, this.tokenEnd + 1);
    return [...this.prefix, ...ids, this.prefix.at(-1)];  // the prefix and the window both end in [SEP]
  }

  get tokenTypeIds() {
    return this.inputIds.map((_, k) => (k < this.prefix.length ? 0 : this.contextSegment));
  }
}

/**
 * Bounds [first, end exclusive] of windows of `room` pieces that overlap by `docStride`.
 * windowBounds(11, 6, 2) is [[0, 6], [4, 10], [8, 11]]: the last window may be shorter.
 */
function windowBounds(pieces, room, docStride) {
  const bounds = [[0, Math.min(room, pieces)]];
  while (bounds.at(-1)[1] < pieces) {
    const first = bounds.at(-1)[0] + room - docStride;
    bounds.push([first, Math.min(first + room, pieces)]);
  }
  return bounds;
}

/**
 * The windows of a question and a context; the offsets are widened to whole graphemes.
 *
 * `settings` has max_length (all tokens of a window), doc_stride (the overlap of two windows; null: 128, or
 * half of a shorter window) and max_question_len. `onCut` is called with a sentence when a question is
 * cut. Throws an Error with Python's sentence for a text without words, and for a question that leaves no
 * room for the context.
 */
function makeWindows(question, context, tokenizer, settings, onCut = () => {}) {
  requireText("question", question);
  requireText("context", context);
  const asked = tokenizer.encode(question);
  const pieces = tokenizer.encode(context);
  pieces.offsets = wholeGraphemes(context, pieces.offsets);
  for (const [kind, text, {ids}] of [["question", question, asked], ["context", context, pieces]]) {
    if (!ids.length) throw new Error(`no words in the ${kind} ${repr(text, 0, 40)}`);
  }
  const read = asked.ids.slice(0, settings.max_question_len ?? asked.ids.length);
  // [CLS] question [SEP] ... [SEP]
  const room = settings.max_length - read.length - tokenizer.separators - 2;
  const stride = strideFor(question, settings, read.length, room);
  if (read.length < asked.ids.length) {
    const unread = repr(question, asked.offsets[read.length][0], 60);
    onCut(`the question has ${asked.ids.length} tokens, but max_question_len=${read.length}; ` +
      `this part is not read: ${unread}`);
  }
  const prefix = [tokenizer.clsId, ...read, ...Array(tokenizer.separators).fill(tokenizer.sepId)];
  return windowBounds(pieces.ids.length, room, stride).map(([first, end], k) =>
    new Feature(k, prefix, pieces, first, end - 1, tokenizer.contextSegment));
}

function requireText(kind, text) {
  if (typeof text !== "string") throw new Error(`the ${kind} is a ${typeof text}; expected a string`);
  if (LONE_SURROGATE.test(text)) {
    throw new Error(`the ${kind} is not valid Unicode: it holds a lone surrogate`);
  }
}

/** The overlap of the windows, which hold `room` tokens of context. Throws if a window could not advance. */
function strideFor(question, settings, questionTokens, room) {
  let stride = settings.doc_stride ?? Math.min(128, Math.floor(settings.max_length / 2));
  if (settings.doc_stride === null && stride >= room) {
    stride = Math.max(0, Math.floor(room / 2));  // a long question: half of the room that is left
  }
  if (room < stride + 1) {
    throw new Error(`max_length=${settings.max_length} leaves room for ${Math.max(room, 0)} tokens ` +
      `of context, but doc_stride=${stride} needs ${stride + 1}: ` +
      `the question has ${questionTokens} tokens: ${repr(question, 0, 60)}`);
  }
  return stride;
}

/** Python's repr of `length` code points of a text: quoted; what cannot be printed is a number. */
function repr(text, start, length) {
  const letters = Array.from(text).slice(start, start + length);
  const quote = letters.includes("'") && !letters.includes('"') ? '"' : "'";
  const named = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\\": "\\\\", [quote]: `\\${quote}`};
  const escaped = (letter) => {
    if (named[letter]) return named[letter];
    if (letter === " " || !/[\p{C}\p{Z}]/u.test(letter)) return letter;
    const code = letter.codePointAt(0);
    const [sign, digits] = code < 0x100 ? ["x", 2] : code < 0x10000 ? ["u", 4] : ["U", 8];
    return `\\${sign}${code.toString(16).padStart(digits, "0")}`;
  };
  return quote + letters.map(escaped).join("") + quote;
}

/**
 * Widens places [start, end] in a text, in code points, to whole graphemes.
 *
 * A letter and its combining accent are one grapheme, and so are an emoji and its skin tone (Unicode's
 * Standard Annex 29). Python's `regex` has a rule of its own for a virama without a consonant before it.
 */
function wholeGraphemes(text, places) {
  const segmenter = new Intl.Segmenter("en", {granularity: "grapheme"});
  const lengths = (run) => Array.from(segmenter.segment(run), ({segment}) => Array.from(segment).length);
  const [begin, end] = [[], [0]];  // for each place: where its grapheme begins, and where it ends
  for (const [k, part] of text.split(RUN).entries()) {
    // between the runs, each character is a grapheme, except CR LF, and no place is inside it
    for (const length of k % 2 ? lengths(part) : Array(part.length).fill(1)) {
      const first = begin.length;
      begin.push(...Array(length).fill(first));
      end.push(...Array(length).fill(first + length));
    }
  }
  return places.map(([a, b]) => [begin[a], end[b]]);
}
