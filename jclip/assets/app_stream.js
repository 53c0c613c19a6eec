// Gradio answers questions on one stream at a time, and ends it as soon as none is open. A question that reaches the
// server just then, before the browser has read of the end, would be answered on no stream: the page waits for it for
// ever. What its client gets here is a stream that goes on until every question that was put is answered. Until then the
// page is said to be busy (`aria-busy`).
(() => {
  const ask = window.fetch.bind(window);
  const putting = new Set(), unanswered = new Set(), answered = new Set();

  function tell() { document.documentElement.ariaBusy = String(putting.size + unanswered.size > 0); }

  async function put(what, how) {
    const answer = await ask(what, how);
    if (answer.ok) {
      const event = (await answer.clone().json()).event_id;
      if (!answered.delete(event)) { unanswered.add(event); }
    }
    return answer;
  }

  async function* messages(answer) {
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      const whole = (text + part.value).split("\n\n");
      text = whole.pop();
      yield* whole;
    }
  }

  async function goOn(answer, again, out) {
    const encoder = new TextEncoder();
    for (let close = ""; ; answer = await again()) {
      for await (const line of messages(answer)) {
        const message = JSON.parse(line.replace(/^data: */, ""));
        if (message.msg === "close_stream") { close = line; continue; }
        if (message.msg === "process_completed" && !unanswered.delete(message.event_id)) { answered.add(message.event_id); }
        out.enqueue(encoder.encode(`${line}\n\n`));
        setTimeout(tell);
      }
      await Promise.allSettled([...putting]);
      if (close && unanswered.size) { continue; }
      if (close) { out.enqueue(encoder.encode(`${close}\n\n`)); }
      return out.close();
    }
  }

  window.fetch = async (what, how) => {
    const path = new URL(what instanceof Request ? what.url : what, document.baseURI).pathname;
    if (path.endsWith("/queue/join")) {
      const question = put(what, how);
      putting.add(question);
      tell();
      return question.finally(() => { putting.delete(question); tell(); });
    }
    const answer = await ask(what, how);
    if (!path.endsWith("/queue/data") || !answer.ok) { return answer; }
    const { url, headers, credentials, signal } = what instanceof Request ? what : new Request(what, how);
    const again = () => ask(url, { headers, credentials, signal });
    const start = (out) => { goOn(answer, again, out).catch((error) => out.error(error)); };
    return new Response(new ReadableStream({ start }), { status: answer.status, headers: answer.headers });
  };
})();
