"""versions.toml: what it says, and how it says what is wrong."""

from __future__ import annotations

import pytest

from headrace_server.errors import Reason, ServingError
from headrace_server.serving.traffic import RollbackRule, Shadow, TrafficShare
from headrace_server.serving.version_policy import VersionPolicy
from headrace_server.serving.versions_file import parse_versions_file

WHOLE = b"""
policy = "latest:2"
shadow = { version = "3", sample_rate = 0.25 }
[labels]
stable = "1"
[split]
"1" = 95
"2" = 5
[[rules]]
max_error_rate = 0.05
window_s = 30
[[rules]]
max_p99_latency_s = 0.5
min_requests = 100
"""


def test_every_key_is_read() -> None:
    file = parse_versions_file(WHOLE)
    assert file.policy == VersionPolicy(2)
    assert file.choices.labels == {"stable": "1"}
    assert file.choices.shadow == Shadow("3", 0.25)
    split = file.choices.split
    assert split is not None
    assert split.shares == (TrafficShare("1", 95), TrafficShare("2", 5))
    assert split.rules == (
        RollbackRule(condition="error_rate", limit=0.05, window_s=30),
        RollbackRule(condition="p99_latency", limit=0.5, min_requests=100),
    )
    assert parse_versions_file(b"").choices.split is None
    assert parse_versions_file(b'policy = ["1", "3"]').policy == VersionPolicy(names=("1", "3"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('polcy = "all"', "polcy: unknown key, the nearest valid one is policy"),
        (
            "[[rules]]\nmax_eror_rate = 1",
            "rules[0].max_eror_rate: unknown key, the nearest valid one is rules[0].max_error",
        ),
        ('shadow = { versoin = "1" }', "shadow.versoin: unknown key, the nearest valid one is shadow.version"),
        (
            'policy = "newest"',
            "policy: 'newest', one of all, latest, latest:N (N from 1 to 1000), or a list of versions",
        ),
        ("policy = []", "policy: no version is named"),
        ('[labels]\n"Stable!" = "1"', "labels: 'Stable!', 1 to 64 of a-z"),
        ('[split]\n"1" = -1', "split.shares[0].weight: -1, from 0 to 1000000"),
        ('[split]\n"1" = "2"', "split"),
        ("[[rules]]\nmax_error_rate = 0.1", "split.rollback_rules: rules without shares"),
        ('split = { "1" = 1 }\n[[rules]]\nwindow_s = 5', "rules[0]: 0 of max_error_rate, max_p99_latency_s"),
        ('shadow = { version = "1", sample_rate = 2 }', "shadow.sample_rate: 2.0, from 0 to 1"),
        ("policy = ", "not valid TOML"),
        ("\xff", "not valid TOML"),
    ],
)
def test_what_is_wrong_is_named(text: str, said: str) -> None:
    with pytest.raises(ServingError) as caught:
        parse_versions_file(text.encode("latin-1"))
    assert caught.value.reason is Reason.CONFIG_INVALID
    assert f"versions.toml: {said}" in caught.value.message


@pytest.mark.parametrize(
    ("text", "chosen"),
    [("all", {"10", "9", "2"}), ("latest", {"10"}), ("latest:2", {"10", "9"}), ("latest:1000", {"10", "9", "2"})],
)
def test_policies_choose_the_newest(text: str, chosen: set[str]) -> None:
    assert VersionPolicy.parse(text).chosen(["10", "9", "2"]) == chosen


@pytest.mark.parametrize("text", ["", "latest:", "latest:0", "latest:1001", "latest:x", "latest:²", "oldest", "ALL"])
def test_what_is_no_policy_is_said(text: str) -> None:
    with pytest.raises(ValueError, match="one of all, latest"):
        VersionPolicy.parse(text)


def test_named_versions_are_chosen_where_they_are_there() -> None:
    assert VersionPolicy(names=("2", "7")).chosen(["10", "9", "2"]) == {"2"}
