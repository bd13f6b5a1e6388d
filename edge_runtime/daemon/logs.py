"""The daemon's log on stderr: plain lines, or one JSON object a line. Prompts and answers only with `log_prompts`."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

from qwen3vl_edge.edge_runtime.daemon.chat import Progress
from qwen3vl_edge.edge_runtime.daemon.openai_request import ChatRequest
from qwen3vl_edge.edge_runtime.edge import EncodedPrompt

logger = logging.getLogger("edge")


class JsonLines(logging.Formatter):
    """`{"time", "level", "logger", "message", …}`; a record's `fields` are added to them."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def log_to_stderr(log_format: str) -> None:
    """Configure the root logger, unless it is configured already."""
    if not logging.getLogger().handlers:
        handler = logging.StreamHandler(sys.stderr)
        plain = logging.Formatter("%(levelname)s %(name)s: %(message)s")
        handler.setFormatter(JsonLines() if log_format == "json" else plain)
        logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logger.setLevel(logging.INFO)


def log_request(encoded: EncodedPrompt, progress: Progress, chat: ChatRequest, prompts: bool) -> None:
    """One line with the cost of a request; `prompts` adds prompt and answer, never a picture."""
    timings = encoded.timings
    fields: dict[str, Any] = {
        "request_id": encoded.request.request_id,
        "media": [{"kind": item.kind, "grid": str(item.grid), **item.origin} for item in encoded.request.media],
        "prompt_tokens": len(encoded.request.input_ids),
        "tokens": progress.tokens,
        "finish_reason": progress.finish_reason,
        "sent_bytes": progress.sent_bytes,
        "preprocess_s": round(timings.preprocess, 6),
        "encode_s": round(sum(timings.encode), 6),
        "first_token_s": None if progress.first_token_s is None else round(progress.first_token_s, 6),
        "generate_s": round(progress.generate_s, 6),
    }
    if prompts:
        fields |= {"prompt": [_text_of(message) for message in chat.messages], "answer": "".join(progress.pieces)}
    logger.info(
        "request %s: %d media, %d prompt tokens, %d tokens, %d bytes sent, "
        "preprocess %.3f s, encode %.3f s, generate %.3f s%s",
        fields["request_id"],
        len(fields["media"]),
        fields["prompt_tokens"],
        progress.tokens,
        progress.sent_bytes,
        timings.preprocess,
        fields["encode_s"],
        progress.generate_s,
        f", prompt {fields['prompt']}, answer {fields['answer']!r}" if prompts else "",
        extra={"fields": fields},
    )


def _text_of(message: Any) -> dict[str, str]:
    parts = message.content if isinstance(message.content, list) else []
    text = "".join(part.text or f"<{part.type}>" for part in parts) or message.content
    return {"role": message.role, "text": text}
