"use strict";
// The transport of `minibert serve`: sends a question to the server, and reads the lines of its answer.

transport = {
  /** `asked` has the fields of `Asked` in server.py. Calls `tell` with each line of the answer. */
  async ask(asked, tell, signal) {
    const response = await fetch("ask", {method: "POST", headers: {"Content-Type": "application/json"},
      signal, body: JSON.stringify(asked)});
    if (!response.ok) throw new Error((await response.json()).error);
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let rest = "", part = await reader.read(); !part.done; part = await reader.read()) {
      const lines = (rest + part.value).split("\n");
      rest = lines.pop();
      for (const line of lines) tell(JSON.parse(line));
    }
  },
};
