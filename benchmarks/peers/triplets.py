"""Agent Lightning's adapter over stored spans, run in an environment of its own: one JSON line out.

    python triplets.py FILE    spans as its own model writes them (model_dump_json), one a line, trace after trace

Reads every line into its `Span`, hands each trace to `TracerTraceToTriplet` as documented, and says how many triplets came
out, the CPU seconds of it and a sum over what the triplets hold.
"""

from __future__ import annotations

import json
import resource
import sys
from itertools import groupby
from pathlib import Path


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    from agentlightning.adapter import TracerTraceToTriplet  # type: ignore[import-not-found]
    from agentlightning.types import Span  # type: ignore[import-not-found]

    adapter = TracerTraceToTriplet()
    lines = Path(sys.argv[1]).read_text().splitlines()
    before = _cpu_s()
    spans = [Span.model_validate_json(line) for line in lines]
    read = _cpu_s()
    triplets = [
        triplet for _, trace in groupby(spans, key=lambda span: span.trace_id) for triplet in adapter.adapt(list(trace))
    ]
    done = _cpu_s()
    tokens = sum(len(t.prompt["token_ids"]) + len(t.response["token_ids"]) for t in triplets)
    print(
        json.dumps(
            {
                "spans": len(spans),
                "triplets": len(triplets),
                "tokens": tokens,
                "rewarded": sum(t.reward is not None for t in triplets),
            }
            | {"read_s": read - before, "adapt_s": done - read}
        )
    )


if __name__ == "__main__":
    main()
