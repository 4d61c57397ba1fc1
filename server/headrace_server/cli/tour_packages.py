"""The tour's questions to the demo's catalogs of packages: what goes with what, and what a text means."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headrace_client import Client

__all__ = ["HISTORY", "WISH", "also_needed", "by_text"]

HISTORY = ("python3-numpy", "python3-pandas")
WISH = "plotting charts"
_ABSENT = ["(no catalogs of packages here: `headrace demo build` makes them, `headrace demo run` serves them)"]


def also_needed(client: Client) -> list[str]:
    """What packages need that need both of the history, by a recommender that was fitted to Debian's packages."""
    from headrace_client import NotFound, Unimplemented
    from headrace_client.filters import equals

    try:
        events = {item.id: item.payload["history_weight"] for item in client.get("packages", HISTORY)}
    except (NotFound, Unimplemented):
        return _ABSENT
    python = equals("kind", "python")
    together = client.recommend("packages", history=events, k=5, filter=python).results[0]
    user = client.recommend("packages", user=("packages.users", "python3-seaborn"), k=5, filter=python).results[0]
    return [
        "need numpy, pandas     → " + "; ".join(f"{item.id} {item.score:.2f}" for item in together),
        "like python3-seaborn   → " + "; ".join(f"{item.id} {item.score:.2f}" for item in user),
    ]


def by_text(client: Client) -> list[str]:
    """Packages whose names mean the wish: embedded, filtered and ranked in one call."""
    from headrace_client import NotFound, Unimplemented
    from headrace_client.filters import equals

    try:
        found = client.recommend(
            "package-names",
            inputs=WISH,
            k=5,
            filter=equals("needs", "python3-numpy"),
            exclude_ids=["python3-matplotlib"],
        ).results[0]
    except (NotFound, Unimplemented):
        return _ABSENT
    return ["; ".join(f"{item.id} {item.score:.3f}" for item in found)]
