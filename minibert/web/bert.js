"use strict";
// Token ids -> hidden states -> start and end logits. BERT (arXiv:1810.04805v2), section 3 and 4.2.
//
// The twin of model.py and qa.py, in the same order. It reads one window at a time, so there is no
// batch B and no padding to mask, and it never trains, so there is no dropout. Attention is model.py's "eager".
//
// All scripts share one scope. `Linear`, `LayerNorm`, `softmax`, `gelu` and `add` are in nn.js, `Memory`,
// `pack` and `padded` in product.js, and `floats`, `readConfig` and `mapTensors` in pretrained.js.
//
// Shapes, as in model.py:
//     T tokens   H hidden_size   N heads   D = H / N   L layers   I intermediate_size

/** Word + position + segment, then LayerNorm. BERT section 3, "Input/Output Representations". */
class Embeddings {
  constructor(config, tensors, memory) {
    const table = (name) => {
      const tensor = tensors[`bert.embeddings.${name}.weight`];
      // a copy of this part of the file, because the rest of the file must not stay in memory
      return tensor && {...tensor, bytes: tensor.bytes.slice()};
    };
    this.width = config.embedding_size ?? config.hidden_size;
    this.word = table("word");
    this.position = table("position");
    this.tokenType = table("token_type");  // DistilBERT has no segments
    this.norm = new LayerNorm(tensors, "bert.embeddings.norm", config.layer_norm_eps);
    this.x = memory.result("embedded", padded(config.max_position_embeddings) * padded(this.width));
    // ELECTRA's vectors can be narrower than H; then `project` widens them
    this.project = this.width === config.hidden_size ? null
      : new Linear(tensors, "bert.embeddings.project", memory, config.max_position_embeddings);
  }

  /** The vectors that are added: {word, segment, position}, each (T, width), or segment: null. */
  parts(ids, segments) {
    const width = this.width;
    const rowsOf = (table, rows) => {
      const vectors = new Float32Array(ids.length * width);
      [...rows].forEach(
        (row, t) => readRows(table, row, vectors.subarray(t * width, (t + 1) * width)));
      return vectors;
    };
    return {
      word: rowsOf(this.word, ids),
      segment: this.tokenType ? rowsOf(this.tokenType, segments) : null,
      position: rowsOf(this.position, ids.keys()),
    };
  }

  forward(ids, segments) {
    const T = ids.length, width = this.width;
    const {word, segment, position} = this.parts(ids, segments);  // (T,) -> (T, width)
    // added in the same order as in model.py, because float addition is not associative
    if (segment) add(word, segment);
    add(word, position);
    for (let t = 0; t < T; t++) {  // the model's own matrices have padded rows
      this.x.set(word.subarray(t * width, (t + 1) * width), t * padded(width));
    }
    this.norm.forward(this.x, T);
    return this.project ? this.project.forward(this.x, T) : this.x;  // (T, H)
  }
}

/** softmax(Q K^T / sqrt(D)) V, in N heads. "Attention Is All You Need", section 3.2. */
class SelfAttention {
  constructor(config, tensors, name, memory) {
    const H = config.hidden_size, longest = config.max_position_embeddings;
    this.heads = config.num_attention_heads;
    this.headSize = H / this.heads;
    const linear = (part) => new Linear(tensors, `${name}.${part}`, memory, longest);
    this.query = linear("query");
    this.key = linear("key");
    this.value = linear("value");
    this.output = linear("output");
    this.memory = memory;
    const D = this.headSize;
    this.keys = memory.result("keys", packedSize(longest, D));
    this.values = memory.result("values", packedSize(D, longest));
    this.scores = memory.result("scores", padded(longest) ** 2);
    this.mixedHead = memory.result("mixedHead", padded(longest) * padded(D));
    this.mixed = memory.result("mixed", padded(longest) * padded(H));
  }

  /** (T, H) -> (T, H). `watch(head, probabilities)` sees the probabilities (T, T) of each head. */
  forward(x, T, watch) {
    const q = this.query.forward(x, T);  // (T, H), in which head n has the columns n D to (n + 1) D
    const k = this.key.forward(x, T);
    const v = this.value.forward(x, T);
    return this.output.forward(this.mix(q, k, v, T, watch), T);
  }

  /** Average the values, weighted by how well each key matches the query. */
  mix(q, k, v, T, watch) {
    const D = this.headSize, stride = padded(D * this.heads);
    for (let head = 0; head < this.heads; head++) {
      const [qHead, kHead, vHead] = [q, k, v].map((part) => part.subarray(head * D));  // (T, D), rows `stride` apart
      const keys = pack(this.keys, kHead, T, D, stride, 1);
      this.memory.product(qHead, stride, T, keys, this.scores);  // (T, D) (D, T) -> (T, T)
      const probabilities = softmax(this.scores, T, D ** -0.5);  // scaled by 1 / sqrt(D)
      watch(head, probabilities);
      const values = pack(this.values, vHead, D, T, 1, stride);
      this.memory.product(probabilities, padded(T), T, values, this.mixedHead);  // (T, T) (T, D) -> (T, D)
      for (let t = 0; t < T; t++) {  // this head's columns of the result: the heads are joined
        const row = this.mixedHead.subarray(t * padded(D), t * padded(D) + D);
        this.mixed.set(row, t * stride + head * D);
      }
    }
    return this.mixed;  // (T, H)
  }
}

/** A linear map, a GELU and a linear map, for each token. "Attention Is All You Need", 3.3. */
class FeedForward {
  constructor(config, tensors, name, memory) {
    const longest = config.max_position_embeddings;
    this.expand = new Linear(tensors, `${name}.expand`, memory, longest);
    this.contract = new Linear(tensors, `${name}.contract`, memory, longest);
    this.stride = padded(config.intermediate_size);
  }

  forward(x, T) {
    const expanded = this.expand.forward(x, T);  // (T, H) -> (T, I)
    gelu(expanded.subarray(0, T * this.stride));
    return this.contract.forward(expanded, T);  // (T, I) -> (T, H)
  }
}

/** Attention, then feed-forward. Each is added to its input, then normalised: post-LayerNorm. */
class EncoderLayer {
  constructor(config, tensors, name, memory) {
    this.attention = new SelfAttention(config, tensors, `${name}.attention`, memory);
    this.attentionNorm = new LayerNorm(tensors, `${name}.attention_norm`, config.layer_norm_eps);
    this.feedForward = new FeedForward(config, tensors, `${name}.feed_forward`, memory);
    this.feedForwardNorm =
      new LayerNorm(tensors, `${name}.feed_forward_norm`, config.layer_norm_eps);
    this.stride = padded(config.hidden_size);
  }

  /** Changes x (T, H) in place. */
  forward(x, T, watch) {
    const rows = x.subarray(0, T * this.stride);
    add(rows, this.attention.forward(x, T, watch));
    this.attentionNorm.forward(x, T);
    add(rows, this.feedForward.forward(x, T));
    this.feedForwardNorm.forward(x, T);
  }
}

/** Embeddings and L layers. There is no pooler (it reads only [CLS]): spans need every token. */
class Bert {
  constructor(config, tensors, memory) {
    this.config = config;
    this.embeddings = new Embeddings(config, tensors, memory);
    this.layers = Array.from({length: config.num_hidden_layers},
      (_, layer) => new EncoderLayer(config, tensors, `bert.layers.${layer}`, memory));
  }

  /**
   * Token ids and segments (T,) -> each layer's hidden states. `onStates(layer, x)` sees them:
   * x (T, H), where layer 0 is the embeddings. The next layer changes x in place.
   * `onAttention(layer, head, probabilities)` sees (T, T); here layer 0 is the first layer.
   */
  forward(ids, segments, onStates, onAttention) {
    const T = ids.length, room = this.config.max_position_embeddings;
    if (T > room) throw new Error(`${T} tokens, but this model has ${room} positions.`);
    const x = this.embeddings.forward(ids, segments);  // (T,) -> (T, H)
    onStates(0, x);
    this.layers.forEach((layer, number) => {
      layer.forward(x, T, (head, probabilities) => onAttention(number, head, probabilities));
      onStates(number + 1, x);
    });
  }
}

/** Two vectors mark an answer: the start logit of token i is S . T_i, its end logit is E . T_i. */
class SpanHead {
  constructor(tensors) {
    this.S = floats(tensors["head.S"]);  // (H,)
    this.E = floats(tensors["head.E"]);
    this.bias = floats(tensors["head.bias"]);  // (2,)
  }

  /** x (T, H) -> two arrays of logits (T,). */
  forward(x, T) {
    const logits = (vector, bias) => Float32Array.from({length: T}, (_, t) => {
      const at = t * padded(vector.length);
      let sum = 0;
      for (let c = 0; c < vector.length; c++) sum += vector[c] * x[at + c];
      return sum + bias;
    });
    return [logits(this.S, this.bias[0]), logits(this.E, this.bias[1])];
  }
}

/** The encoder with a span head. The head is applied after every layer, as explanation.py does. */
class BertForQuestionAnswering {
  constructor(config, tensors, memory) {
    this.config = config;
    this.kernel = memory.kernel;  // "WebAssembly" or "JavaScript"
    this.bert = new Bert(config, tensors, memory);
    this.head = new SpanHead(tensors);
  }

  /**
   * Token ids and segments (T,) -> {startLogits, endLogits}: [layer] -> Float32Array (T,), where
   * layer 0 is the embeddings and layer L gives the model's own logits. On request:
   * `hiddenStates: true` gives {hiddenStates}: [layer] -> Float32Array (T * H).
   * `attentionRows`: R positions of tokens. This gives {attentions}: [layer][head] -> Float32Array
   * (R * T), how much each of these tokens reads of each token; layer 0 is the first layer.
   */
  forward(ids, segments, {hiddenStates = false, attentionRows = null} = {}) {
    const T = ids.length, H = this.config.hidden_size;
    const output = {startLogits: [], endLogits: []};
    if (hiddenStates) output.hiddenStates = [];
    if (attentionRows) output.attentions = this.bert.layers.map(() => []);
    this.bert.forward(ids, segments, (layer, x) => {
      [output.startLogits[layer], output.endLogits[layer]] = this.head.forward(x, T);
      if (hiddenStates) output.hiddenStates[layer] = dense(x, ids.keys(), H);
    }, (layer, head, probabilities) => {
      if (attentionRows) output.attentions[layer][head] = dense(probabilities, attentionRows, T);
    });
    return output;
  }
}

/** A copy of some rows of x (T, width), without the numbers between rows. */
function dense(x, rows, width) {
  const chosen = [...rows], copy = new Float32Array(chosen.length * width);
  chosen.forEach((row, k) => {
    copy.set(x.subarray(row * padded(width), row * padded(width) + width), k * width);
  });
  return copy;
}

/**
 * The model of a parsed config.json and of the tensors from `readSafetensors`. `plain`: compute
 * without WebAssembly. Throws an Error whose message is a sentence for the user.
 */
function makeBert(configFile, fileTensors, plain = false) {
  const config = readConfig(configFile);
  const tensors = mapTensors(fileTensors, config);
  return new BertForQuestionAnswering(config, tensors, new Memory(memorySize(config), plain));
}

/** How many numbers the weights of the products and all intermediate results need. */
function memorySize(config) {
  const {hidden_size: H, intermediate_size: I, num_hidden_layers: L} = config;
  const T = padded(config.max_position_embeddings), width = config.embedding_size ?? H;
  const layer = 4 * packedSize(H, H) + packedSize(I, H) + packedSize(H, I);
  const results = T * (padded(width) + 8 * padded(H) + padded(I)) + T * T;
  const heads = packedSize(T, H) + packedSize(H, T) + T * padded(H);
  const matrices = H * H + I * H + H * width;  // before they are packed
  return L * layer + packedSize(H, width) + results + heads + matrices + 1024;
}
