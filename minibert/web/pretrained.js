"use strict";
// Pretrained weights: config.json -> checked sizes, model.safetensors -> tensors under our names.
//
// The twin of config.py, families.py and pretrained.py, for the families whose tokenizer is
// WordPiece. Every Error here has a message for the user: one sentence.

// --- families.py

const weightAndBias = (modules) => Object.fromEntries(Object.entries(modules).flatMap(
  ([theirs, ours]) => ["weight", "bias"].map((name) => [`${theirs}.${name}`, `${ours}.${name}`])));

const HEAD = {
  "qa_outputs.weight[0]": "head.S",
  "qa_outputs.weight[1]": "head.E",
  "qa_outputs.bias": "head.bias",
};

/** BERT's table of keys, for a family that calls its encoder `prefix`. `{}` is the layer. */
function bertKeys(prefix) {
  const embeddings = `${prefix}.embeddings`, layer = `${prefix}.encoder.layer.{}`;
  return {
    [`${embeddings}.word_embeddings.weight`]: "bert.embeddings.word.weight",
    [`${embeddings}.position_embeddings.weight`]: "bert.embeddings.position.weight",
    [`${embeddings}.token_type_embeddings.weight`]: "bert.embeddings.token_type.weight",
    ...weightAndBias({
      [`${embeddings}.LayerNorm`]: "bert.embeddings.norm",
      [`${layer}.attention.self.query`]: "bert.layers.{}.attention.query",
      [`${layer}.attention.self.key`]: "bert.layers.{}.attention.key",
      [`${layer}.attention.self.value`]: "bert.layers.{}.attention.value",
      [`${layer}.attention.output.dense`]: "bert.layers.{}.attention.output",
      [`${layer}.attention.output.LayerNorm`]: "bert.layers.{}.attention_norm",
      [`${layer}.intermediate.dense`]: "bert.layers.{}.feed_forward.expand",
      [`${layer}.output.dense`]: "bert.layers.{}.feed_forward.contract",
      [`${layer}.output.LayerNorm`]: "bert.layers.{}.feed_forward_norm",
    }),
    ...HEAD,
  };
}

const DISTILBERT_KEYS = {
  "distilbert.embeddings.word_embeddings.weight": "bert.embeddings.word.weight",
  "distilbert.embeddings.position_embeddings.weight": "bert.embeddings.position.weight",
  ...weightAndBias({
    "distilbert.embeddings.LayerNorm": "bert.embeddings.norm",
    "distilbert.transformer.layer.{}.attention.q_lin": "bert.layers.{}.attention.query",
    "distilbert.transformer.layer.{}.attention.k_lin": "bert.layers.{}.attention.key",
    "distilbert.transformer.layer.{}.attention.v_lin": "bert.layers.{}.attention.value",
    "distilbert.transformer.layer.{}.attention.out_lin": "bert.layers.{}.attention.output",
    "distilbert.transformer.layer.{}.sa_layer_norm": "bert.layers.{}.attention_norm",
    "distilbert.transformer.layer.{}.ffn.lin1": "bert.layers.{}.feed_forward.expand",
    "distilbert.transformer.layer.{}.ffn.lin2": "bert.layers.{}.feed_forward.contract",
    "distilbert.transformer.layer.{}.output_layer_norm": "bert.layers.{}.feed_forward_norm",
  }),
  ...HEAD,
};

// names: fields of our config -> their names in config.json; defaults: as in families.py
const FAMILIES = {
  bert: {prefix: "bert", keys: bertKeys("bert"), names: {}, defaults: {}},
  distilbert: {
    prefix: "distilbert",
    keys: DISTILBERT_KEYS,
    names: {
      hidden_size: "dim", num_hidden_layers: "n_layers", num_attention_heads: "n_heads",
      intermediate_size: "hidden_dim", hidden_act: "activation",
    },
    defaults: {num_hidden_layers: 6, type_vocab_size: 0},
  },
  electra: {
    prefix: "electra",
    keys: {
      ...bertKeys("electra"),
      ...weightAndBias({"electra.embeddings_project": "bert.embeddings.project"}),
    },
    names: {},
    defaults: {
      embedding_size: 128, hidden_size: 256, num_attention_heads: 4, intermediate_size: 1024,
    },
  },
};

// --- config.py

const DEFAULTS = {  // BERT-base, uncased
  model_type: "bert", vocab_size: 30522, hidden_size: 768, num_hidden_layers: 12,
  num_attention_heads: 12, intermediate_size: 3072, max_position_embeddings: 512,
  embedding_size: null, type_vocab_size: 2, pad_token_id: 0, layer_norm_eps: 1e-12,
};

/** A parsed config.json -> the sizes under BERT's names. */
function readConfig(file) {
  if (file?.constructor !== Object) throw new Error("config.json does not describe a model.");
  const type = file.model_type ?? "bert";
  if (!Object.hasOwn(FAMILIES, type)) {
    const families = Object.keys(FAMILIES).join(", ");
    throw new Error(`config.json has the model_type "${type}", but this page reads ${families}.`);
  }
  const {names, defaults} = FAMILIES[type];
  const config = {...DEFAULTS, ...defaults, model_type: type};
  const fixed = type === "distilbert" ? ["layer_norm_eps", "type_vocab_size"] : [];
  for (const name of Object.keys(DEFAULTS)) {
    const value = file[names[name] ?? name] ?? file[name];
    if (value !== undefined && !fixed.includes(name)) config[name] = value;
  }
  if (type !== "electra") config.embedding_size = null;  // always hidden_size
  const refuse = (name) => {
    const value = JSON.stringify(config[name] ?? file[name]);
    throw new Error(`config.json has ${names[name] ?? name} = ${value}, which no such model has.`);
  };
  for (const [name, value] of Object.entries(config)) {
    if (name === "model_type" || (name === "embedding_size" && value === null)) continue;
    const least = ["type_vocab_size", "pad_token_id"].includes(name) ? 0 : 1;
    const most = name === "num_hidden_layers" ? 256 : 1e7;  // as in config.py
    const good = name === "layer_norm_eps" ? value > 0 && value < 1
      : Number.isInteger(value) && value >= least && value <= most;
    if (!good) refuse(name);
  }
  if (config.hidden_size % config.num_attention_heads) refuse("hidden_size");
  const act = file[names.hidden_act ?? "hidden_act"] ?? "gelu";
  if (!["gelu", "gelu_python"].includes(act)) refuse(names.hidden_act ?? "hidden_act");
  const positions = file.position_embedding_type ?? "absolute";
  if (positions !== "absolute") refuse("position_embedding_type");
  for (const name of ["is_decoder", "add_cross_attention"]) if (file[name]) refuse(name);
  return config;
}

/** Our names -> the shapes that the model needs. */
function shapesOf(config) {
  const {hidden_size: H, intermediate_size: I} = config, width = config.embedding_size ?? H;
  const shapes = {
    "bert.embeddings.word.weight": [config.vocab_size, width],
    "bert.embeddings.position.weight": [config.max_position_embeddings, width],
    "head.S": [H], "head.E": [H], "head.bias": [2],
  };
  const add = (name, ...shape) => {
    shapes[`${name}.weight`] = shape;
    shapes[`${name}.bias`] = [shape[0]];
  };
  const segments = config.type_vocab_size;
  if (segments) shapes["bert.embeddings.token_type.weight"] = [segments, width];
  add("bert.embeddings.norm", width);
  if (width !== H) add("bert.embeddings.project", H, width);
  for (let layer = 0; layer < config.num_hidden_layers; layer++) {
    const name = `bert.layers.${layer}`;
    for (const part of ["query", "key", "value", "output"]) add(`${name}.attention.${part}`, H, H);
    add(`${name}.feed_forward.expand`, I, H);
    add(`${name}.feed_forward.contract`, H, I);
    add(`${name}.attention_norm`, H);
    add(`${name}.feed_forward_norm`, H);
  }
  return shapes;
}

// --- pretrained.py

const BYTES = {F64: 8, F32: 4, F16: 2, BF16: 2, I8: 1, U8: 1, I16: 2, I32: 4, I64: 8, BOOL: 1};
// Weights have one of these types. Float16 and bfloat16 are read as whole numbers: their bits.
const KINDS = {
  F64: Float64Array, F32: Float32Array, F16: Uint16Array, BF16: Uint16Array, I8: Int8Array,
};

/**
 * The bytes of model.safetensors -> {name: {dtype, shape, bytes}}. The format: 8 bytes with the
 * length of a JSON header, this header, then all numbers. An 8-bit tensor (I8) has one factor for
 * each of its rows, in a second tensor "name.scale"; it becomes {dtype, shape, bytes, scale}.
 */
function readSafetensors(buffer) {
  const broken = (why) => new Error(`model.safetensors ${why}.`);
  if (buffer.byteLength < 8) throw broken("is not a safetensors file");
  const length = Number(new DataView(buffer).getBigUint64(0, true));
  if (length > 1e8) throw broken("is not a safetensors file");
  const whole = (needed) => {
    if (needed <= buffer.byteLength) return;
    const sizes = `it has ${buffer.byteLength} bytes instead of ${needed}`;
    throw broken(`is not complete: ${sizes}`);
  };
  whole(8 + length);
  let header;
  try {
    header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
  } catch {}
  if (header?.constructor !== Object) throw broken("is not a safetensors file");
  const tensors = {};
  const entries = Object.entries(header).filter(([name]) => name !== "__metadata__");
  whole(8 + length + Math.max(0, ...entries.map(([, entry]) => entry?.data_offsets?.[1] || 0)));
  for (const [name, entry] of entries) {
    const {dtype, shape, data_offsets: [start, end] = []} = entry ?? {};
    const size = Array.isArray(shape) && shape.reduce((product, n) => product * n, BYTES[dtype]);
    if (!(start >= 0 && end - start === size)) throw broken(`has a wrong header at "${name}"`);
    tensors[name] = {dtype, shape, bytes: new Uint8Array(buffer, 8 + length + start, size)};
  }
  for (const [name, tensor] of Object.entries(tensors)) {
    const scale = `${name}.scale`;
    if (tensor.dtype !== "I8") continue;
    if (!tensors[scale]) throw broken(`has no "${scale}"`);
    tensor.scale = floats(tensors[scale]);
    delete tensors[scale];
  }
  return tensors;
}

let HALVES;  // the value of each of the 65,536 float16 numbers

function halfToFloat(bits) {
  const sign = bits >> 15 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 25) * (1024 + fraction) : 2 ** -24 * fraction);
}

/** Some rows of a tensor as a new Float32Array; all rows without `first` and `count`. */
function floats(tensor, first = 0, count = tensor.shape[0]) {
  const width = tensor.shape.slice(1).reduce((product, n) => product * n, 1);
  return readRows(tensor, first, new Float32Array(count * width));
}

/** Reads the rows of a tensor from row `first` on, as float32, until `out` is full. */
function readRows({dtype, shape, bytes, scale}, first, out) {
  const Kind = KINDS[dtype];
  if (!Kind) throw new Error(`model.safetensors has weights of the type ${dtype}, not floats.`);
  const width = shape.slice(1).reduce((product, n) => product * n, 1);
  const start = first * width * BYTES[dtype], size = out.length * BYTES[dtype];
  // a view on the file, or a copy if the numbers are not aligned there
  const aligned = (bytes.byteOffset + start) % BYTES[dtype] === 0;
  const numbers = aligned ? new Kind(bytes.buffer, bytes.byteOffset + start, out.length)
    : new Kind(bytes.slice(start, start + size).buffer);
  if (dtype === "F16") {
    HALVES ??= Float32Array.from({length: 65536}, (_, bits) => halfToFloat(bits));
    for (let i = 0; i < out.length; i++) out[i] = HALVES[numbers[i]];
  } else if (dtype === "BF16") {  // the upper half of a float32
    const bits = new Uint32Array(out.buffer, out.byteOffset, out.length);
    for (let i = 0; i < out.length; i++) bits[i] = numbers[i] << 16;
  } else if (dtype === "I8") {
    for (let i = 0; i < out.length; i++) out[i] = numbers[i] * scale[first + Math.floor(i / width)];
  } else {
    out.set(numbers);
  }
  if (!finite(out)) throw new Error("model.safetensors has weights that are not finite.");
  return out;
}

function finite(values) {
  let zero = 0;
  for (let i = 0; i < values.length; i++) zero += 0 * values[i];  // NaN and infinity give NaN
  return zero === 0;
}

/** `readSafetensors`' tensors -> the same tensors under our names, each with the right shape. */
function mapTensors(theirs, config) {
  const {prefix, keys} = FAMILIES[config.model_type];
  const shapes = shapesOf(config), ours = {};
  for (const [original, tensor] of Object.entries(theirs)) {
    for (const [name, part] of targetsOf(standardKey(original, prefix, keys), tensor, keys)) {
      if (!shapes[name]) continue;
      if (`${part.shape}` !== `${shapes[name]}`) {
        throw new Error(`model.safetensors has "${original}" with the shape ${tensor.shape}, `
          + `but config.json says ${shapes[name]}.`);
      }
      ours[name] = part;
    }
  }
  const missing = Object.keys(shapes).filter((name) => !ours[name]);
  if (missing.length) {
    const others = missing.length > 1 ? ` and ${missing.length - 1} more weights` : "";
    throw new Error(`model.safetensors lacks ${missing[0]}${others}.`);
  }
  return ours;
}

/** The key without wrappers, with a missing prefix, and with today's names of LayerNorm. */
function standardKey(key, prefix, keys) {
  key = key.replace(/^(module\.|_orig_mod\.|model\.)+/, "");
  const part = `${prefix}.${key.split(".")[0]}.`;
  if (Object.keys(keys).some((name) => name.startsWith(part))) key = `${prefix}.${key}`;
  key = key.replace("LayerNorm.gamma", "LayerNorm.weight");
  return key.replace("LayerNorm.beta", "LayerNorm.bias");
}

/** Where a tensor goes: pairs of our name and the tensor, or one of its two rows. */
function targetsOf(key, tensor, keys) {
  const layer = /(?<=\.layer\.)\d+(?=\.)/.exec(key)?.[0];
  const template = layer ? key.replace(`.layer.${layer}.`, ".layer.{}.") : key;
  if (keys[template]) return [[keys[template].replace("{}", layer), tensor]];
  return [0, 1].filter((row) => keys[`${template}[${row}]`]).map((row) => {
    const size = tensor.bytes.length / 2;
    const bytes = tensor.bytes.subarray(row * size, (row + 1) * size);
    return [keys[`${template}[${row}]`], {...tensor, shape: tensor.shape.slice(1), bytes}];
  });
}

/** The weight and the bias of a part of the model. */
function named(tensors, name) {
  return {weight: tensors[`${name}.weight`], bias: tensors[`${name}.bias`]};
}
