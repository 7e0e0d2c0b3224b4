"use strict";
// A slider through the layers: the passage marks the answer after each layer.

function showDepth(depth) {
  const layer = data.layers[depth], last = data.layers.length - 1, best = data.answers[0];
  const {start, end} = layer, whole = Array.from(data.context).length;
  $("depth-passage").replaceChildren(context(0, start),
    ...(start < end ? [el("mark", {class: "chosen", "--p": "100%"}, context(start, end))] : []), context(end, whole));
  reveal($("depth-passage"), "mark");
  const name = depth ? `layer ${depth} of ${last}` : "the embeddings, before the first layer";
  $("depth").value = depth;
  $("depth").setAttribute("aria-valuetext", name);
  $("depth-told").replaceChildren(`After ${name}: `, el("b", {}, said(layer.answer)), ` ${percent(layer.score)}`,
    ...(start === best.start && end === best.end ? [", the final answer"]
      : ["; the final answer “", said(best.answer), `” has ${percent(layer.final_score)} here`]));
  [...$("lens").querySelectorAll("tbody tr")].forEach((node, k) => node.classList.toggle("here", k === depth));
}

onShow.push(() => {
  $("depth").max = data.layers.length - 1;
  showDepth(data.layers.length - 1);
});
$("depth").addEventListener("input", () => showDepth(Number($("depth").value)));
