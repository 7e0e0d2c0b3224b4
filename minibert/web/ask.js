"use strict";
// Asks a question and shows the answer. This is the last file, so it also starts the page.

let running = null;  // the AbortController of the current request

async function ask(attribution = false) {
  running?.abort();
  running = new AbortController();
  const before = data;
  $("message").textContent = "Reading …";
  const asked = {question: $("ask-question").value, context: $("ask-context").value,
    top_k: Number($("ask-top").value), no_answer: $("ask-null").checked, attribution};
  try {
    await transport.ask(asked, (line) => take(line, before), running.signal);
  } catch (error) {
    if (error.name === "AbortError") return;  // a newer question replaced this one
    $("message").textContent = error.message;
  }
  $("progress").hidden = true;
}

/** Shows one line of the transport's answer. */
function take(line, before) {
  if (line.explanation) {
    $("message").textContent = "";
    show(line.explanation);
    compare(before);
  } else if (line.reading) {
    const [done, total] = line.reading;
    $("message").textContent = `${done} of ${total} windows read …`;
  } else if (line.progress) {
    [$("progress").value, $("progress").max] = line.progress;
    $("progress").hidden = false;
    $("pending").textContent = "Reading the text again: without each part, and for the integrated gradients …";
  } else if (line.attribution) {
    data.attribution = line.attribution;
    showAttribution();
  } else if (line.skipped) {
    $("pending").replaceChildren(`This part takes as long as reading the ${data.windows.length} windows hundreds of times. `,
      el("button", {type: "button", click: () => ask(true)}, "Compute it"));
  } else {
    throw new Error(line.error);
  }
}

/** Compares the previous answer with the new one. */
function compare(before) {
  $("before").hidden = !before;
  if (!before) return;
  const [old, now] = [before.answers[0], data.answers[0]];
  const first = quoted(old.answer || "no answer");
  const same = data.answers.findIndex((a) => a.answer === old.answer);
  const cells = [before, data].map((d) => el("td", {class: "words"}, el("bdi", {}, d.question), " ",
    el("b", {}, said(d.answers[0].answer)), ` ${percent(d.answers[0].score)}`));
  const change = old.answer === now.answer
    ? `The answer is the same. Its log p changes by ${signed(Math.log(now.score) - Math.log(old.score))}.`
    : `The answer changes from ${first} to ${quoted(now.answer || "no answer")}. ${first} is now `
      + (same < 0 ? "not in the list of the best answers."
        : `number ${same + 1} in the list, with ${percent(data.answers[same].score)}.`);
  $("changes").replaceChildren(el("table", {}, el("tbody", {},
    el("tr", {}, el("th", {scope: "row"}, "before"), cells[0]),
    el("tr", {}, el("th", {scope: "row"}, "now"), cells[1]))), el("p", {}, change));
}

/** Removes a word or a sentence from the form, and asks again. */
function strike({side, start, end}) {
  const cut = cutter(data[side]);
  $(`ask-${side}`).value = cut(0, start) + cut(end, Infinity).trimStart();
  ask();
}

if (live) {
  if (data) [$("ask-question").value, $("ask-context").value] = [data.question, data.context];
  $("ask").hidden = $("strike").hidden = false;
  $("ask").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
  $("ask-context").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) ask();
  });
  $("strike").addEventListener("click", () => strike(words[word]));
  addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("drop"); });
  addEventListener("dragleave", () => document.body.classList.remove("drop"));
  addEventListener("drop", async (event) => {
    event.preventDefault();
    document.body.classList.remove("drop");
    const {files} = event.dataTransfer, file = files[0];
    if (!file) return;
    const text = /\.(txt|md)$/i.test(file.name) && file.size < 1e7;
    if (!text && transport.drop) return transport.drop(event.dataTransfer);
    if (text) $("ask-context").value = await file.text();
    $("message").textContent = text ? "" : `${file.name}: expected a .txt or .md file of less than 10 MB`;
  });
}
if (data) show(data);
else $("ask-question").focus();
