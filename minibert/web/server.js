"use strict";
// The transport of `minibert serve`: sends a question to the server, and reads the lines of its answer.

const UNREACHABLE = "The server does not answer. Is `minibert serve` still running?";
const BROKEN_OFF = "The server stopped before the answer was complete.";

transport = {
  attributes: true,  // it can compute the attribution
  /** `asked` has the fields of `Asked` in serve/page.py. Calls `tell` with each line of the answer. */
  async ask(asked, tell, signal) {
    const response = await fetch("ask", {method: "POST", headers: {"Content-Type": "application/json"},
      signal, body: JSON.stringify(asked)}).catch(inWords(UNREACHABLE));
    if (!response.ok) throw new Error((await response.json()).error);
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    const next = () => reader.read().catch(inWords(BROKEN_OFF));
    for (let rest = "", part = await next(); !part.done; part = await next()) {
      const lines = (rest + part.value).split("\n");
      rest = lines.pop();
      for (const line of lines) tell(JSON.parse(line));
    }
  },
};

/** Replaces the browser's words for a broken connection, such as "Failed to fetch". */
function inWords(message) {
  return (error) => {
    throw error.name === "AbortError" ? error : new Error(message);
  };
}

$("private").hidden = false;
