"""Renamed Prometheus metrics, exported under their old names as well for one release."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector


class DeprecatedAliases(Collector):
    """The metrics of a registry, and each renamed one again under its old name.

    Register it in the scraped registry, which must differ from `current`.

    Args:
        current: the registry of the metrics under their new names.
        names: old name to new name, as in a scrape: counters with `_total`. A counter whose old name has no
            `_total` is exported as a gauge, as before.
    """

    def __init__(self, current: CollectorRegistry, names: Mapping[str, str]) -> None:
        self._current = current
        self._old_names = {new.removesuffix("_total"): old for old, new in names.items()}

    def collect(self) -> Iterator[Metric]:
        for family in self._current.collect():
            yield family
            if (old := self._old_names.get(family.name)) is not None:
                yield _renamed(family, old)


def _renamed(family: Metric, old: str) -> Metric:
    new = f"{family.name}_total" if family.type == "counter" else family.name
    as_gauge = family.type == "counter" and not old.endswith("_total")
    name = old.removesuffix("_total")
    renamed = Metric(name, f"Deprecated, use {new}", "gauge" if as_gauge else family.type)
    for sample in family.samples:
        suffix = sample.name.removeprefix(family.name)
        if not as_gauge:
            renamed.add_sample(f"{name}{suffix}", sample.labels, sample.value)
        elif suffix == "_total":
            renamed.add_sample(name, sample.labels, sample.value)
    return renamed
