"use strict";
// Tokenizer: text -> pieces. Every piece knows its characters in the text, and its word.
// The twin of tokenization.py and tokenizer_files.py. BERT (arXiv:1810.04805v2) section 3,
// WordPieces (arXiv:1609.08144 section 4.1).
//
// Python leaves the splitting to the `tokenizers` library. Here it is written out: its BertNormalizer,
// BertPreTokenizer and WordPiece. Offsets count code points, but JavaScript's strings count UTF-16 units.
// So a text is a list of letters {char, place}: one code point, and its place in the original text.

const BRACKETS = {pad: "[PAD]", unk: "[UNK]", cls: "[CLS]", sep: "[SEP]", mask: "[MASK]"};
const ANGLES = {pad: "<pad>", unk: "<unk>", cls: "<s>", sep: "</s>", mask: "<mask>"};
const CONTEXT_SEGMENTS = {bert: 1, distilbert: 0, electra: 1};  // by model_type; the question's is 0
const MAX_TOKENS = 10 ** 7;

// Names in tokenizer_config.json -> names in the `tokenizers` library
const NORMALIZER_SETTINGS = {
  do_lower_case: "lowercase",
  strip_accents: "strip_accents",
  tokenize_chinese_chars: "handle_chinese_chars",
};
const CLASSES = ["BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer"];

// The library knows the marks and the punctuation of Unicode 8, and the normal forms of Unicode 9. A
// browser knows newer ones, all in these ranges. They also hold characters without such properties.
// The single characters in MARK and PUNCTUATION have another category in newer versions of Unicode.
const NEWER = String.raw`\u061d\u07fd\u0890-\u08e2\u09fd-\u09fe\u0a76\u0afa-\u0aff\u0b55\u0c04-\u0c3c
  \u0c77\u0c84\u0d00\u0d3b-\u0d3c\u0d81\u0eba\u0ece\u180f-\u1886\u1abf-\u1aeb\u1b4e-\u1b4f\u1b7d-\u1b7f
  \u1df6-\u1dfb\u2e43-\u2e5d\ua82c\ua8c5\ua8ff\ua9bd\u{10d24}-\u{10f89}\u{11070}-\u{11074}
  \u{110c2}-\u{110cd}\u{111c9}\u{111cf}\u{1123e}-\u{11241}\u{1133b}\u{113bb}-\u{1145e}
  \u{11660}-\u{1166c}\u{116b9}\u{1182f}-\u{11fff}\u{12ff1}-\u{1612f}\u{16d6d}-\u{16f4f}
  \u{16fe2}-\u{16fe4}\u{1cf00}-\u{1cf46}\u{1e000}-\u{1e6f5}\u{1e944}-\u{1e95f}`.replace(/\s+/g, "");
const NEWER_FORMS = String.raw`\u07fd\u0897-\u08d3\u09fe\u0c3c\u0d3b-\u0d3c\u0eba\u1715\u1abf-\u1aeb
  \u1df6-\u1dfa\ua82c\u{105c9}-\u{105e4}\u{10d24}-\u{10f85}\u{11070}\u{1133b}\u{11383}-\u{113d0}
  \u{1145e}\u{11839}-\u{11a99}\u{11d42}-\u{1612f}\u{16d68}-\u{16ff1}\u{1e08f}-\u{1e6f5}`.replace(/\s+/g, "");

const LONE_SURROGATE = /\p{Surrogate}/u;
const WHITE = /\p{White_Space}/u;
const CONTROL = new RegExp(`(?![\\t\\n\\r${NEWER}])[\\p{Cc}\\p{Cf}\\p{Co}\\ufffd]`, "u");
const MARK = new RegExp(`[\\u1734\\u{1171e}]|(?![${NEWER}])\\p{Mn}`, "u");
const PUNCTUATION = new RegExp(`[!-/:-@[-\`{-~\\u166d\\u{111c9}]|(?![${NEWER}])\\p{P}`, "u");
const WITH_FORMS = new RegExp(`[^${NEWER_FORMS}]+`, "gu");
const CHINESE = new RegExp(String.raw`[\u4e00-\u9fff\u3400-\u4dbf\u{20000}-\u{2a6df}\u{2a700}-\u{2b73f}
  \u{2b740}-\u{2b81f}\u{2b920}-\u{2ceaf}\uf900-\ufaff\u{2f800}-\u{2fa1f}]`.replace(/\s+/g, ""), "u");
const OF_WORD = /[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]/u;

// --- the files

/**
 * A tokenizer from the texts of its files, by their names: tokenizer.json, or else vocab.txt. These
 * files are read too if they exist: tokenizer_config.json, special_tokens_map.json, added_tokens.json and
 * config.json. Throws an Error with one sentence for a tokenizer that does not have BERT's WordPieces.
 */
function makeTokenizer(files) {
  const read = (name) => (name in files ? parsed(name, files[name]) : {});
  const settings = {...read("special_tokens_map.json"), ...read("tokenizer_config.json")};
  const config = read("config.json");
  let state;  // what a tokenizer.json holds
  if ("tokenizer.json" in files) {
    state = read("tokenizer.json");
  } else if ("vocab.txt" in files) {
    refuseOtherKinds({...config, ...settings});
    // split only at "\n", because U+2028 and similar characters may be tokens
    const tokens = files["vocab.txt"].replace(/^\ufeff/, "").replace(/\n$/, "").split("\n");
    state = wordPieceState(tokens, isUncased(tokens), settings);
  } else {
    throw new Error("no tokenizer: expected tokenizer.json or vocab.txt");
  }
  requireWordPieces(state);
  return new Tokenizer(configured(state, settings), settings, read("added_tokens.json"), config.model_type);
}

function parsed(name, text) {
  let value;
  try {
    value = JSON.parse(text);
  } catch {
    throw new Error(`${name}: not readable as JSON`);
  }
  if (value === null || typeof value !== "object" || Array.isArray(value)) {
    throw new Error(`${name}: expected an object`);
  }
  return value;
}

/** Refuses a vocabulary whose class splits text in another way. */
function refuseOtherKinds(settings) {
  const kind = String(settings.tokenizer_class || CLASSES[0]);
  const words = settings.word_tokenizer_type || "basic";
  if (!CLASSES.includes(kind.replace(/Fast$/, "")) || words !== "basic") {
    const name = words === "basic" ? kind : `${kind} with ${words} words`;
    throw new Error(`tokenizer_class ${name}: for a vocab.txt, this page reads ${CLASSES.join(", ")}`);
  }
}

/** Whether a vocabulary has no capital letter. Names such as "[unused1]" and "<S>" are not looked at. */
function isUncased(tokens) {
  return tokens.every((token) => /^\[.*\]$|^<.*>$/su.test(token) || token === token.toLowerCase());
}

/** BERT's tokenizer in the form of a tokenizer.json, from tokens in the order of their ids. */
function wordPieceState(tokens, lowercase, settings) {
  const vocab = Object.fromEntries(tokens.map((token, id) => [token, id]));
  const unknown = settings.unk_token || ("<unk>" in vocab ? "<unk>" : "[UNK]");
  return {
    normalizer: {
      type: "BertNormalizer", clean_text: true, handle_chinese_chars: true, strip_accents: null, lowercase},
    pre_tokenizer: {type: "BertPreTokenizer"},
    model: {
      type: "WordPiece", vocab, unk_token: unknown.content ?? unknown,
      continuing_subword_prefix: "##", max_input_chars_per_word: 100},
  };
}

function requireWordPieces(state) {
  const kinds = {model: "WordPiece", normalizer: "BertNormalizer", pre_tokenizer: "BertPreTokenizer"};
  for (const [part, kind] of Object.entries(kinds)) {
    const type = state[part]?.type ?? "none";
    if (type !== kind) {
      throw new Error(`the tokenizer's ${part} is ${type}; this page reads only BERT's WordPieces (${kind})`);
    }
  }
}

/** The state, with the settings applied: they decide about case, accents and Chinese characters. */
function configured(state, settings) {
  const normalizer = {...state.normalizer};
  for (const [theirs, ours] of Object.entries(NORMALIZER_SETTINGS)) {
    const value = settings[theirs] ?? null;
    if (value !== null && typeof value !== "boolean") {
      throw new Error(`${theirs}=${JSON.stringify(value)}; expected true or false`);
    }
    normalizer[ours] = value ?? normalizer[ours];
  }
  return {...state, normalizer};
}

/** The model's own tokens by their roles: "pad", "unk", "cls", "sep", and others if they exist. */
function specialTokens(ids, unknown, settings, ends) {
  const table = [BRACKETS, ANGLES].find((names) => ids.has(names.cls)) ?? BRACKETS;
  const names = {...table, ...ends};
  for (const role of [...Object.keys(names), "bos", "eos"]) {
    const value = settings[`${role}_token`];
    names[role] = value?.content ?? value ?? names[role];
  }
  names.unk = unknown;
  for (const role of ["pad", "unk", "cls", "sep"]) {
    if (!ids.has(names[role])) {
      throw new Error(`the vocabulary has no ${names[role]}, which is the ${role}_token`);
    }
  }
  return Object.fromEntries(Object.entries(names).filter(([, token]) => ids.has(token)));
}

/** How a tokenizer joins two texts, for example [CLS] question [SEP] context [SEP], or []. */
function pairTemplate(processor) {
  if (!processor) return [];
  const [cls, sep] = [processor.cls?.[0], processor.sep?.[0]];
  if (processor.type === "BertProcessing") return [cls, "question", sep, "context", sep];
  if (processor.type === "RobertaProcessing") return [cls, "question", sep, sep, "context", sep];
  if (processor.type !== "TemplateProcessing") {
    throw new Error(`the tokenizer's post_processor is ${processor.type}; expected TemplateProcessing`);
  }
  return processor.pair.map(
    (part) => part.SpecialToken?.id ?? {A: "question", B: "context"}[part.Sequence.id]);
}

// --- the tokenizer

class Tokenizer {
  /** `state` is what a tokenizer.json holds; `added` are the ids of an added_tokens.json. */
  constructor(state, settings, added, modelType) {
    this.settings = settings;
    this.normalizer = state.normalizer;
    this.model = state.model;
    this.vocabulary = new Map(Object.entries(state.model.vocab));  // token -> id
    this.ids = new Map(this.vocabulary);  // the same, with the added tokens
    this.added = [];
    for (const token of state.added_tokens ?? []) this.addToken(token);
    this.addListed(added);
    const packed = pairTemplate(state.post_processor);
    const ends = packed.length ? {cls: packed[0], sep: packed.at(-1)} : {};
    this.specialTokens = specialTokens(this.ids, this.model.unk_token, settings, ends);
    const {pad, cls, sep} = this.specialTokens;
    [this.padId, this.clsId, this.sepId] = [pad, cls, sep].map((token) => this.ids.get(token));
    this.contextSegment = CONTEXT_SEGMENTS[modelType] ?? 1;
    this.separators = 1;  // between question and context
    if (packed.length) {
      const known = [1, 2].map((n) => [cls, "question", ...Array(n).fill(sep), "context", sep].join(" "));
      if (!known.includes(packed.join(" "))) {
        throw new Error(`it joins a pair as ${packed.join(" ")}; expected ${known[0]}`);
      }
      this.separators = 1 + known.indexOf(packed.join(" "));
    }
    this.maxLength = readLimit(settings);  // in tokens; null: the settings don't say
    this.names = new Map([...this.ids].map(([token, id]) => [id, token]));
    // The highest id plus one, because a file may leave ids out or name a token twice.
    this.vocabSize = 1 + [...this.ids.values()].reduce((highest, id) => Math.max(highest, id));
    if (this.vocabSize > MAX_TOKENS) {
      throw new Error(`the vocabulary has the id ${this.vocabSize - 1}: too large`);
    }
    this.protect();
  }

  /**
   * An added token gets the next free id, if the vocabulary lacks it. `lstrip` and `rstrip` have no effect:
   * they only widen a token by white space, which no offsets include.
   */
  addToken({content, normalized = false, single_word = false}) {
    const next = Math.max(this.vocabulary.size, ...this.added.map(({id}) => id + 1));
    const id = this.ids.get(content) ?? next;
    this.ids.set(content, id);
    this.added.push({content, id, normalized, single_word});
  }

  /** Adds the tokens of an added_tokens.json and of the settings, if their ids are the next. */
  addListed(added) {
    const listed = Object.entries(this.settings.added_tokens_decoder ?? {});
    const tokens = {...Object.fromEntries(listed.map(([id, {content}]) => [content, Number(id)])), ...added};
    for (const [content, id] of Object.entries(tokens).sort((a, b) => a[1] - b[1])) {
      if (!this.ids.has(content)) this.addToken({content});
      if (this.ids.get(content) !== id) {
        throw new Error(`the added token ${content} has id ${this.ids.get(content)}, not ${id}`);
      }
    }
  }

  /** Text never becomes one of the model's own tokens. A token that a user added is always recognised. */
  protect() {
    const own = new Set(Object.values(this.specialTokens));
    const searched = this.added.map((token) => {
      const letters = lettersOf(token.content);
      const chars = (token.normalized ? this.normalize(letters) : letters).map(({char}) => char);
      return {...token, chars, own: own.has(token.content)};
    });
    this.plainTokens = searched.filter((token) => !token.normalized);
    this.normalizedTokens = searched.filter((token) => token.normalized);
    const ids = [this.padId, this.clsId, this.sepId];
    for (const token of own) {
      if (this.encode(token).ids.some((id) => ids.includes(id))) {
        throw new Error(`the special token ${token} is also a word; expected a name such as [PAD]`);
      }
    }
  }

  /**
   * The pieces of a text, without special tokens: "[SEP]" in a text is plain text.
   * {ids, offsets, words, tokens}: T numbers, T places [start, end] in code points, the number of each
   * piece's word, and the strings of the vocabulary. Throws for invalid Unicode.
   */
  encode(text) {
    if (LONE_SURROGATE.test(text)) {
      throw new Error("a text is not valid Unicode: it holds a lone surrogate");
    }
    const pieces = {ids: [], offsets: [], words: [], tokens: []};
    let word = 0;
    const add = (letters, id) => {
      pieces.ids.push(id);
      pieces.offsets.push([letters[0].place, letters.at(-1).place + 1]);
      pieces.words.push(word);
      pieces.tokens.push(this.names.get(id));
    };
    for (const part of this.parts(lettersOf(text))) {
      if (part.id !== null) {
        add(part.letters, part.id);
        word += 1;
        continue;
      }
      for (const letters of preTokenized(part.letters)) {
        for (const [first, end, id] of this.wordPieces(letters)) add(letters.slice(first, end), id);
        word += 1;
      }
    }
    return pieces;
  }

  /** A text, split at its added tokens and normalized: parts {letters, id}; the id is null for text. */
  * parts(letters) {
    for (const part of splitAtTokens(letters, this.plainTokens)) {
      if (part.id === null) yield* splitAtTokens(this.normalize(part.letters), this.normalizedTokens);
      else yield part;
    }
  }

  /** The library's BertNormalizer. */
  normalize(letters) {
    const {clean_text, handle_chinese_chars, strip_accents, lowercase} = this.normalizer;
    if (clean_text) letters = cleaned(letters);
    if (handle_chinese_chars) letters = letters.flatMap(spacedIfChinese);
    if (strip_accents ?? lowercase) letters = decomposed(letters).filter(({char}) => !MARK.test(char));
    return lowercase ? letters.flatMap(lowered) : letters;
  }

  /** The library's WordPiece: the longest pieces of a word from the left, [first, end exclusive, id]. */
  wordPieces(letters) {
    const {unk_token, max_input_chars_per_word, continuing_subword_prefix} = this.model;
    const unknown = [[0, letters.length, this.vocabulary.get(unk_token)]];
    if (letters.length > max_input_chars_per_word) return unknown;
    const id = (first, end) => this.vocabulary.get(
      (first ? continuing_subword_prefix : "") + letters.slice(first, end).map(({char}) => char).join(""));
    const pieces = [];
    for (let first = 0, end; first < letters.length; first = end) {
      end = letters.length;
      while (end > first && id(first, end) === undefined) end -= 1;
      if (end === first) return unknown;
      pieces.push([first, end, id(first, end)]);
    }
    return pieces;
  }

  /** The strings of the vocabulary for these ids. */
  tokens(ids) {
    return ids.map((id) => this.names.get(id));
  }
}

/** `model_max_length`, or null. A huge value means "no limit". */
function readLimit(settings) {
  const limit = settings.model_max_length ?? null;
  if (limit === null) return null;
  if (typeof limit !== "number" || !(limit >= 1)) {
    throw new Error(`model_max_length=${JSON.stringify(limit)}; expected a number of 1 or more`);
  }
  return limit < 10 ** 6 ? Math.floor(limit) : null;
}

// --- letters

const lettersOf = (text) => Array.from(text, (char, place) => ({char, place}));

/** Splits letters at the tokens in them: parts {letters, id}. At each place, the longest token wins. */
function splitAtTokens(letters, tokens) {
  const parts = [];
  let rest = 0;  // the first letter that is in no part yet
  const put = (end, id) => {
    if (end > rest) parts.push({letters: letters.slice(rest, end), id});
    rest = end;
  };
  if (tokens.every(({own}) => own)) tokens = [];  // the model's own tokens are only text
  const isAt = (k) => ({chars}) => chars.every((char, i) => letters[k + i]?.char === char);
  for (let k = 0; k < letters.length && tokens.length; k++) {
    const [token] = tokens.filter(isAt(k)).sort((a, b) => b.chars.length - a.chars.length);
    if (!token) continue;
    const end = k + token.chars.length;
    const inWord = OF_WORD.test(letters[k - 1]?.char ?? "") || OF_WORD.test(letters[end]?.char ?? "");
    if (!token.own && !(token.single_word && inWord)) {
      put(k, null);
      put(end, token.id);
    }
    k = end - 1;
  }
  put(letters.length, null);
  return parts;
}

/** Without control characters; any white space becomes a space. */
function cleaned(letters) {
  return letters
    .filter(({char}) => !CONTROL.test(char))
    .map(({char, place}) => ({char: WHITE.test(char) ? " " : char, place}));
}

/** A Chinese character is a word, so it gets a space on both sides. */
function spacedIfChinese(letter) {
  const space = {char: " ", place: letter.place};
  return CHINESE.test(letter.char) ? [space, letter, space] : [letter];
}

/** Lower case, letter by letter: the end of a word has no special sigma. */
function lowered({char, place}) {
  return Array.from(char.toLowerCase(), (char) => ({char, place}));
}

const normalForm = (text) => text.replace(WITH_FORMS, (run) => run.normalize("NFD"));

/**
 * Unicode's normal form D: "é" becomes "e" and its accent, and the marks of a letter are put in order.
 * The library keeps the places in their order: the k-th letter of the text lends its place to the k-th
 * letter that is not an inserted one, also where marks have changed their order.
 */
function decomposed(letters) {
  const forms = letters.flatMap(({char}) =>
    Array.from(normalForm(char), (char, k) => ({char, inserted: k > 0})));
  let place = -1;
  return Array.from(normalForm(letters.map(({char}) => char).join("")), (char, k) => {
    let from = k;  // this letter's place before the marks were put in order
    while (forms[from].char !== char) from += 1;
    if (from > k) forms.splice(k, 0, ...forms.splice(from, 1));
    if (!forms[k].inserted) place += 1;
    return {char, place: letters[place].place};
  });
}

/** The library's BertPreTokenizer: words without white space; each punctuation mark is a word. */
function preTokenized(letters) {
  const words = [];
  let open = false;  // whether the next letter continues the last word
  for (const letter of letters) {
    const alone = PUNCTUATION.test(letter.char);
    if (WHITE.test(letter.char)) {
      open = false;
    } else if (open && !alone) {
      words.at(-1).push(letter);
    } else {
      words.push([letter]);
      open = !alone;
    }
  }
  return words;
}
