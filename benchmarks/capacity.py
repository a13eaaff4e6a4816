"""How many servers a rate of requests needs, from the stage times that one server has measured of itself.

    python benchmarks/capacity.py --metrics http://127.0.0.1:8000/metrics --hardware "2 cores" [--decode-processes 2]
    python benchmarks/capacity.py --metrics run.txt --hardware "..." --prefill-seconds 0.2 ...

The metrics are those of a run that looks like the load to come: its clips, its answers' length, its share of questions
about videos that were asked about before, and as many at once as a server shall have. A stage's time that was measured
elsewhere (on a card) is given as an argument, and then shown as given. Nothing is assumed but:

* a server's engine does one thing at a time: a request keeps it busy for its preprocessing, its prefill, and its
  share of the decode steps (inter-token time over rows in a step). The inter-token time has the others' prefills in
  it, so this counts them twice, and errs towards more servers;
* its decode processes work beside it, one video each; the slower of the two bounds the server;
* servers do not slow each other down, and requests spread over them evenly;
* no server is planned to be busier than ``--utilisation``: above it, waiting times grow without bound.
"""

from __future__ import annotations

import argparse
import math
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

RATES = (10, 100, 1000)
_PREFIX = "tru_vlm_"


@dataclass(frozen=True)
class Stages:
    """What one request takes, in seconds, and how many share a step.

    ``tokens`` counts the steps that give it some, after the first: with drafts a step gives several at once.
    """

    preprocess: float
    prefill: float
    inter_token: float
    batch_size: float
    tokens: float
    video_decode: float

    @property
    def engine_seconds(self) -> float:
        """How long a request keeps the engine busy."""
        return self.preprocess + self.prefill + self.tokens * self.inter_token / self.batch_size

    def server_seconds(self, decode_processes: int) -> float:
        """How long a request keeps the busier part of a server busy."""
        return max(self.engine_seconds, self.video_decode / decode_processes)


def histograms(text: str) -> dict[str, tuple[float, float]]:
    """Sum and count of each histogram, all models together."""
    found: dict[str, tuple[float, float]] = {}
    for family in text_string_to_metric_families(text):
        if family.type == "histogram":
            sums = [math.fsum(s.value for s in family.samples if s.name.endswith(end)) for end in ("_sum", "_count")]
            found[family.name.removeprefix(_PREFIX)] = (sums[0], sums[1])
    return found


def measured(text: str) -> Stages:
    """The stages of a run.

    Raises:
        SystemExit: if the run had none of them.
    """
    found = histograms(text)
    requests = found.get("e2e_request_latency_seconds", (0.0, 0.0))[1]
    if not requests:
        raise SystemExit("These metrics have no request that was answered: run a load first.")

    def mean(name: str) -> float:
        total, count = found[name]
        return total / count if count else 0.0

    return Stages(
        preprocess=found["request_preprocess_time_seconds"][0] / requests,
        prefill=found["request_prefill_time_seconds"][0] / requests,
        inter_token=mean("inter_token_latency_seconds"),
        batch_size=max(1.0, mean("batch_size")),
        tokens=found["inter_token_latency_seconds"][1] / requests,
        video_decode=found["request_video_decode_time_seconds"][0] / requests,
    )


def report(stages: Stages, given: set[str], hardware: str, decode_processes: int, utilisation: float) -> str:
    """The inputs and the servers, as Markdown."""
    names = {
        "preprocess": "preprocess, s",
        "prefill": "prefill, s",
        "inter_token": "between two steps that give it tokens, s",
        "batch_size": "rows in a step",
        "tokens": "such steps after the first",
        "video_decode": "video decode, s",
    }
    lines = [f"| of one request, on {hardware} | mean | |", "|---|---|---|"]
    for name, shown in names.items():
        lines.append(f"| {shown} | {getattr(stages, name):.3g} | {'given' if name in given else 'measured'} |")
    seconds = stages.server_seconds(decode_processes)
    bound = "the engine" if seconds == stages.engine_seconds else f"{decode_processes} decode processes"
    lines += ["", f"One server: {1 / seconds:.3g} requests/s, bound by {bound}.", ""]
    lines += [f"| requests/s | servers, each at most {utilisation:.0%} busy |", "|---|---|"]
    lines += [f"| {rate:,} | {math.ceil(rate * seconds / utilisation):,} |" for rate in RATES]
    return "\n".join(lines)


def main() -> None:
    """Read the run, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--metrics", required=True, help="address or file of a run's /metrics")
    parser.add_argument("--hardware", required=True, help="what it was measured on, and with which model")
    parser.add_argument("--decode-processes", type=int, default=2, help="DECODE_PROCESSES of a server")
    parser.add_argument("--utilisation", type=float, default=0.7)
    for name in Stages.__dataclass_fields__:
        suffix = "" if name in {"batch_size", "tokens"} else "-seconds"
        parser.add_argument(f"--{name.replace('_', '-')}{suffix}", type=float, dest=name)
    arguments = parser.parse_args()
    if "://" in arguments.metrics:
        with urllib.request.urlopen(arguments.metrics, timeout=30) as response:
            text = response.read().decode()
    else:
        text = Path(arguments.metrics).read_text()
    given = {name: value for name in Stages.__dataclass_fields__ if (value := getattr(arguments, name)) is not None}
    stages = Stages(**{**measured(text).__dict__, **given})
    print(report(stages, set(given), arguments.hardware, arguments.decode_processes, arguments.utilisation))


if __name__ == "__main__":
    main()
