"use strict";
// Asks a question and shows the answer. This is the last file, so it also starts the page.

let running = null;  // the AbortController of the current request

/**
 * Sends a question to the transport. `tell` gets each line of the answer. Returns true, false after an
 * error, which the page shows, or null if a newer question replaced this one.
 */
async function send(asked, tell) {
  running?.abort();
  const own = running = new AbortController();
  $("message").textContent = "Reading …";
  try {
    await transport.ask(asked, (line) => own.signal.aborted || tell(line), own.signal);
    return true;
  } catch (error) {
    if (own.signal.aborted) return null;
    $("message").textContent = error.message;
    return false;
  } finally {
    if (running === own) $("progress").hidden = true;
  }
}

/**
 * Asks what is in the form. `before` is compared with the answer, and `left` is `undo` of strike.js. `shown` is
 * called as soon as the page shows the answer. The transport may end later: a visitor may do something in between.
 */
function ask({before = data, left = [], shown = () => {}} = {}) {
  return send({...formValues(), attribution: false}, (line) => {
    if (!line.explanation) return take(line);
    undo = left;
    $("message").textContent = "";
    $("welcome").hidden = true;
    show(line.explanation);
    compare(before);
    shown();
  });
}

/** Asks for the attribution of the explanation that is shown, whatever is in the form now. */
async function askAttribution() {
  const {question, context, no_answer} = data, shown = data;
  $("pending").textContent = "Reading the text again: without each part, and for the integrated gradients …";
  const asked = {question, context, no_answer, top_k: Number($("ask-top").value), attribution: true};
  const answered = await send(asked, (line) => {
    if (line.progress) {
      $("message").textContent = "";
      [$("progress").value, $("progress").max] = line.progress;
      $("progress").hidden = false;
    } else if (line.attribution) {
      shown.attribution = line.attribution;
      showAttribution();
    } else if (!line.explanation) {
      take(line);
    }
  });
  if (!answered && data === shown) offerAttribution();
}

/** Shows the lines that every question can get. */
function take(line) {
  if (line.reading) {
    $("message").textContent = `${line.reading[0]} of ${line.reading[1]} windows read …`;
  } else if ("waiting" in line) {
    $("message").textContent = !line.waiting ? "Reading …"
      : `Waiting behind ${line.waiting} other question${line.waiting > 1 ? "s" : ""} …`;
  } else if (line.skipped) {
    offerAttribution(line.skipped);
  } else if (line.error) {
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

/** The attribution takes much longer than the answer, so the visitor starts it. */
function offerAttribution(seconds) {
  const time = seconds ? `, which takes about ${Math.ceil(seconds)} s` : "";
  $("pending").replaceChildren(`This part reads the text again hundreds of times${time}. `,
    el("button", {type: "button", class: "small", click: askAttribution}, "Compute it"));
}

/** Asks again what a link or the page before a reload has asked. */
function askAgain(kept) {
  fillForm(kept);
  ask({before: null});
}

const kept = live ? inAddress() ?? stored() : null;  // read before `show` stores the page's example

if (live) {
  if (data) fillForm(data);
  $("ask").hidden = false;
  onShow.push(() => {
    if (transport.attributes) {
      if (!data.attribution) offerAttribution();
    } else {
      $("pending").textContent = "This page cannot compute this part. "
        + "The commands `minibert explain` and `minibert serve` do.";
    }
  });
  addEventListener("hashchange", () => inAddress() && askAgain(inAddress()));
  $("ask").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
  $("ask-context").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) ask();
  });
  addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("drop"); });
  addEventListener("dragleave", () => document.body.classList.remove("drop"));
  addEventListener("drop", async (event) => {
    event.preventDefault();
    document.body.classList.remove("drop");
    const {files} = event.dataTransfer, file = files[0];
    if (!file) return;
    const text = /\.(txt|md)$/i.test(file.name) && file.size < 1e7;
    if (transport.drop && (!text || files.length > 1)) return transport.drop(event.dataTransfer);
    if (text) $("ask-context").value = await file.text();
    $("message").textContent = text ? "" : `${file.name}: expected a .txt or .md file of less than 10 MB`;
  });
}
if (data) show(data);
if (kept) {
  askAgain(kept);
} else if (live && !data) {
  $("welcome").hidden = false;
  $("ask-question").select();  // the first key replaces the example
}
