"""Relay: what workers print, shown without Ray's prefix; their progress moves a bar."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from typing import Any

from neurofleet import progress

# Pages of a dead raylet's inner state, which Ray shows everybody; that its node is dead it says elsewhere.
NOISE = re.compile(r"\[state-dump\]|Raylet is terminated\. Termination is unexpected|grpc_client_manager\.h")
PREFIX = re.compile(r"\((?:[\w.]+ )?pid=\d+(?:, ip=[\w.:]+)?\) ?")


@contextlib.contextmanager
def relayed(bar: progress.Bar) -> Iterator[None]:
    """While this lasts, stdout and stderr pass through relays."""
    out, err = Relay(sys.stdout, bar), Relay(sys.stderr, bar)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            yield
        finally:
            out.close()
            err.close()


class Relay:
    """A text stream that hands whole lines on to another one, cleaned of Ray's prefix, progress to the bar."""

    def __init__(self, stream: Any, bar: progress.Bar) -> None:
        # Rich looks for this and draws past the relay.
        self.rich_proxied_file = getattr(stream, "rich_proxied_file", stream)
        self._stream = stream
        self._bar = bar
        self._pending = ""

    def write(self, text: str) -> int:
        self._pending += text
        *lines, self._pending = self._pending.split("\n")
        for line in lines:
            self._show(line)
        return len(text)

    def _show(self, line: str) -> None:
        if NOISE.search(line):
            return
        prefix = PREFIX.match(line)
        seen = progress.parse(line) if prefix else None
        if seen is not None:
            self._bar.update(seen)
        else:
            self._stream.write(line[prefix.end() if prefix else 0 :] + "\n")

    def close(self) -> None:
        """Hand on what has no end of line yet."""
        self._stream.write(self._pending)
        self._pending = ""
        self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
