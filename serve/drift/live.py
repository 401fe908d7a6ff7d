"""Histograms of live traffic, from what Triton or the gateway shows for Prometheus, or from a Prometheus."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.parse
import urllib.request
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from client.errors import InvalidInput

SAMPLE = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? ([^ ]+)(?: -?\d+)?$")
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')
LENGTHS = "tritox_tokenizer_length"
TIMEOUT_S = 10.0


class NoMetrics(InvalidInput):
    """Metrics cannot be read, or the histograms are not among them."""


@dataclass(frozen=True)
class Family:
    """Where scores are counted. :param suffix: of the model's name there."""

    metric: str
    suffix: str


FAMILIES = {
    "cascade": Family("tritox_cascade_score", "_cascade"),
    "encoder": Family("tritox_encoder_score", "_encoder"),
    "gateway": Family("tritox_gateway_score", ""),
}
"""In this order. The encoder counts where Tritox's own backend runs it, not in NVIDIA's container; the gateway counts
what goes through it."""

Buckets = dict[str, dict[str, float]]
"""Comments by label (empty for lengths) and upper bound as it is written; cumulative."""


def read_metrics(urls: Iterable[str]) -> str:
    """The metrics of all replicas, one behind the other.

    :param urls: ``http://`` addresses, or files.
    :raises NoMetrics: when one cannot be read.
    """
    texts = []
    for url in urls:
        try:
            if url.startswith(("http://", "https://")):
                with urllib.request.urlopen(url, timeout=TIMEOUT_S) as reply:
                    texts.append(reply.read().decode("utf-8", "replace"))
            else:
                with open(url, encoding="utf-8", errors="replace") as file:
                    texts.append(file.read())
        except (OSError, ValueError) as error:
            raise NoMetrics(f"{url} cannot be read: {getattr(error, 'reason', error)}") from None
    return "\n".join(texts)


def buckets(text: str, metric: str, model: str, version: str) -> Buckets:
    """A histogram's buckets, summed over replicas."""
    found: Buckets = defaultdict(lambda: defaultdict(float))
    for line in text.splitlines():
        if not line.startswith(metric):
            continue
        match = SAMPLE.match(line)
        if match is None or match[1] != f"{metric}_bucket":
            continue
        labels = dict(LABEL.findall(match[2] or ""))
        if (labels.get("model"), labels.get("version")) == (model, version):
            found[labels.get("label", "")][labels["le"]] += float(match[3])
    return {label: dict(series) for label, series in found.items()}


def versions(text: str, metric: str, model: str) -> set[str]:
    """Of the model that a histogram counts."""
    lines = (SAMPLE.match(line) for line in text.splitlines() if line.startswith(f"{metric}_bucket"))
    labels = (dict(LABEL.findall(match[2] or "")) for match in lines if match)
    return {each.get("version", "") for each in labels if each.get("model") == model}


def ask_prometheus(address: str, metric: str, model: str, version: str, span: str) -> Buckets:
    """What the buckets grew by over a time, replicas that were started anew included.

    :param address: of the Prometheus, such as ``http://prometheus:9090``. :param span: such as ``1d``.
    :raises NoMetrics: when it does not answer.
    """
    chosen = f'{metric}_bucket{{model="{model}",version="{version}"}}'
    query = urllib.parse.urlencode({"query": f"sum by (label, le) (increase({chosen}[{span}]))"})
    url = f"{address.rstrip('/')}/api/v1/query?{query}"
    try:
        with urllib.request.urlopen(url, timeout=6 * TIMEOUT_S) as reply:
            answer = json.load(reply)
        result = answer["data"]["result"]
    except urllib.error.HTTPError as error:
        raise NoMetrics(f"{address} refuses: {error.read(500).decode('utf-8', 'replace')}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NoMetrics(f"{address} does not answer as a Prometheus does: {getattr(error, 'reason', error)}") from None
    found: Buckets = defaultdict(dict)
    for series in result:
        # Prometheus 3 writes le="1.0" where 2 left what was exported
        found[series["metric"].get("label", "")][series["metric"]["le"]] = float(series["value"][1])
    return dict(found)


def grown(before: Buckets, after: Buckets) -> Buckets:
    """What came between; where a counter fell, its server was started anew and all it has came since."""
    found: Buckets = {}
    for label, series in after.items():
        old = before.get(label, {})
        anew = any(count < old.get(le, 0.0) for le, count in series.items())
        found[label] = {le: count - (0.0 if anew else old.get(le, 0.0)) for le, count in series.items()}
    return found


def counts(series: Mapping[str, float], bounds: Sequence[float]) -> np.ndarray:
    """Comments in each bin, and above the last bound.

    :raises NoMetrics: when the histogram has other bounds.
    """
    by_bound = {float(le): count for le, count in series.items()}
    wanted = [*map(float, bounds), float("inf")]
    if not set(by_bound) <= set(wanted):
        raise NoMetrics(
            f"the live histogram has the bounds {sorted(by_bound)}, the reference {wanted}: make the reference anew "
            "with this version of the model's files"
        )
    # a bucket that nothing fell into yet may not be there
    return np.maximum(np.diff([0.0, *(by_bound.get(bound, 0.0) for bound in wanted)]), 0.0)
