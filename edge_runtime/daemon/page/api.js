// The daemon's API: JSON, and answers as server-sent events.

export class Refused extends Error {
  // What a refusal says: the sentence names what was expected and the remedy.
  constructor(error, status) {
    super(error.message ?? "the daemon refused the request");
    this.field = error.param ?? null;
    this.code = error.code ?? null;
    this.status = status;
  }
}

async function refusal(answer) {
  let error = {};
  try {
    error = (await answer.json()).error ?? {};
  } catch {
    error = { message: `the daemon answered ${answer.status} without a reason` };
  }
  return new Refused(error, answer.status);
}

async function send(path, options) {
  try {
    return await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused({ message: "The daemon cannot be reached. Is it still running?", code: "unreachable" }, 0);
  }
}

export async function getJson(path) {
  const answer = await send(path, { cache: "no-store" });
  if (!answer.ok) throw await refusal(answer);
  return answer.json();
}

// Asks and calls `onText` with each piece; returns { evidence, usage, reason } once the answer is complete.
export async function streamChat(request, signal, onText) {
  const body = JSON.stringify({ ...request, stream: true, stream_options: { include_usage: true } });
  const headers = { "Content-Type": "application/json" };
  const answer = await send("/v1/chat/completions", { method: "POST", headers, body, signal });
  if (!answer.ok) throw await refusal(answer);
  const summary = { evidence: null, usage: null, reason: null };
  for await (const event of events(answer.body)) {
    if (event === "[DONE]") return summary;
    const chunk = JSON.parse(event);
    if (chunk.error) throw new Refused(chunk.error, answer.status);
    const choice = chunk.choices[0];
    if (choice?.delta.content) onText(choice.delta.content);
    summary.reason = choice?.finish_reason ?? summary.reason;
    summary.evidence = chunk.qwen3vl_edge ?? summary.evidence;
    summary.usage = chunk.usage ?? summary.usage;
  }
  throw new Refused({ message: "The answer broke off before its end.", code: "incomplete" }, answer.status);
}

async function* events(stream) {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  let held = "";
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Refused({ message: "The connection broke in the middle of the answer.", code: "unreachable" }, 0);
    }
    if (part.done) return;
    held += decoder.decode(part.value, { stream: true });
    const blocks = held.split("\n\n");
    held = blocks.pop();
    for (const block of blocks) if (block.startsWith("data: ")) yield block.slice(6);
  }
}
