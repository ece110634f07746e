"""Policy: which versions are here, and which one answers."""

from __future__ import annotations

import math

import pytest

from classifleet.config import Settings, SettingsError
from classifleet.config.setting_sources import Shares
from classifleet.ledger import Offer
from classifleet.worker import versions
from classifleet.worker.versions import Loaded, Residence

HERE = ["imagenet@1", "imagenet@2", "imagenet@10", "nsfw@3"]
PRE: Residence = "preloaded"


@pytest.mark.parametrize(
    ("named", "lazy", "canary", "shadow", "models", "missing"),
    [
        ([], [], {}, {}, {"imagenet@10": PRE, "nsfw@3": PRE}, ()),
        (["imagenet"], [], {}, {}, {"imagenet@10": PRE}, ()),
        (["imagenet@1", "imagenet@2"], [], {}, {}, {"imagenet@1": PRE, "imagenet@2": PRE}, ()),
        ([], ["nsfw"], {}, {}, {"imagenet@10": PRE, "nsfw@3": "lazy"}, ()),
        ([], ["nsfw@3", "imagenet@9"], {}, {}, {"imagenet@10": PRE, "nsfw@3": "lazy"}, ()),
        ([], ["*"], {}, {}, {"imagenet@10": "lazy", "nsfw@3": "lazy"}, ()),
        (["nsfw"], [], {"imagenet": {"1": 9, "2": 1}}, {}, {"nsfw@3": PRE, "imagenet@1": PRE, "imagenet@2": PRE}, ()),
        (["imagenet"], [], {}, {"imagenet": {"10": 5}}, {"imagenet@2": PRE, "imagenet@10": PRE}, ()),
        (["nsfw"], [], {}, {"nsfw": {"3": 5}}, {"nsfw@3": PRE}, ()),
        (["imagenet"], ["*"], {}, {"imagenet": {"10": 5}}, {"imagenet@2": "lazy", "imagenet@10": PRE}, ()),
        (["imagenet"], ["imagenet@10"], {}, {"imagenet": {"10": 5}}, {"imagenet@2": PRE, "imagenet@10": PRE}, ()),
        (["nsfw"], ["nsfw"], {}, {"nsfw": {"3": 5}}, {"nsfw@3": "lazy"}, ()),  # it answers: there is no other
        (["pets", "imagenet@7", "nsfw"], [], {}, {}, {"nsfw@3": PRE}, ("pets", "imagenet@7")),
    ],
)
def test_plan(
    named: list[str],
    lazy: list[str],
    canary: dict[str, Shares],
    shadow: dict[str, Shares],
    models: dict[str, Residence],
    missing: tuple[str, ...],
) -> None:
    assert versions.plan(HERE, named, lazy, canary, shadow) == versions.Plan(models, missing)


@pytest.mark.parametrize(
    ("key", "named", "wanted"),
    [
        ("imagenet@1", [], True),
        ("imagenet@1", ["imagenet"], True),
        ("imagenet@1", ["imagenet@1"], True),
        ("imagenet@1", ["imagenet@2"], False),
        ("imagenet@1", ["nsfw"], False),
    ],
)
def test_what_may_be_loaded_for_a_job_that_asks_for_it(key: str, named: list[str], wanted: bool) -> None:
    assert versions.allowed(key, named) is wanted


@pytest.mark.parametrize(
    ("usable", "planned", "canary", "shadow", "offers"),
    [
        (["m@1", "m@2"], ["m@2"], {}, {}, {"m": "2"}),
        (["m@9", "m@10"], ["m@10"], {}, {}, {"m": "10"}),
        (["m@1"], ["m@2"], {}, {}, {"m": "1"}),  # 2 is being loaded, or failed
        (["m@1", "m@2"], ["m@1"], {}, {}, {"m": "1"}),  # 2 was taken out
        (["m@1", "m@2"], ["m@1", "m@2"], {"m": {"1": 95, "2": 5}}, {}, {"m": [("1", 95), ("2", 5)]}),
        (["m@1"], ["m@1", "m@2"], {"m": {"1": 95, "2": 5}}, {}, {"m": "1"}),
        (["m@1", "m@2"], ["m@1", "m@2"], {"m": {"1": 1, "2": 0}}, {}, {"m": "1"}),
        (["m@3"], ["m@3"], {"m": {"1": 95, "2": 5}}, {}, {"m": "3"}),
        (["m@1", "m@2"], ["m@1", "m@2"], {}, {"m": {"2": 5}}, {"m": "1"}),
        (["m@2"], ["m@2"], {}, {"m": {"2": 5}}, {"m": "2"}),
        ([], ["m@2"], {}, {}, {}),
    ],
)
def test_offers(
    usable: list[str],
    planned: list[str],
    canary: dict[str, Shares],
    shadow: dict[str, Shares],
    offers: dict[str, Offer],
) -> None:
    found = versions.offers(usable, planned, canary, shadow)
    assert found == offers
    assert versions.offered(found) <= set(usable)


@pytest.mark.parametrize("shares", [{"1": 95, "2": 5}, {"1": 50, "2": 50}, {"1": 1, "2": 1, "3": 2}, {"4": 0.5}])
def test_the_split_of_a_canary_is_as_weighted(shares: Shares) -> None:
    jobs = 10_000
    offer = list(shares.items())
    got = [versions.chosen(f"job-{number}", "imagenet", offer) for number in range(jobs)]
    for version, weight in shares.items():
        share = weight / sum(shares.values())
        bound = 4 * math.sqrt(jobs * share * (1 - share))
        assert abs(got.count(version) - jobs * share) <= bound


def test_models_are_split_apart_from_each_other() -> None:
    """A job in the canary of one model is not for that reason in another's."""
    offer = [("1", 50.0), ("2", 50.0)]
    both = [(versions.chosen(str(n), "a", offer), versions.chosen(str(n), "b", offer)) for n in range(4000)]
    assert all(900 < both.count(pair) < 1100 for pair in (("1", "1"), ("1", "2"), ("2", "1"), ("2", "2")))


def loaded(*models: tuple[str, Residence, int, float, bool]) -> list[Loaded]:
    return [Loaded(*model) for model in models]


@pytest.mark.parametrize(
    ("models", "need", "gone"),
    [
        ([], 100, []),
        ([], 101, None),
        ([("a", "lazy", 60, 1, False)], 40, []),
        ([("a", "lazy", 60, 1, False)], 41, ["a"]),
        ([("a", "lazy", 60, 1, True)], 41, None),
        ([("a", "lazy", 30, 2, False), ("b", "lazy", 30, 1, False)], 50, ["b"]),
        ([("a", "lazy", 30, 2, False), ("b", "lazy", 30, 1, True)], 50, ["a"]),
        ([("a", PRE, 30, 1, False), ("b", "lazy", 30, 9, False)], 50, ["b"]),
        ([("a", PRE, 30, 1, False), ("b", "lazy", 30, 9, False), ("c", "passing", 30, 99, False)], 30, ["c"]),
        (
            [("a", PRE, 50, 1, False), ("b", "lazy", 30, 9, False), ("c", "passing", 20, 99, False)],
            60,
            ["c", "b", "a"],
        ),
    ],
)
def test_evictions(models: list[tuple[str, Residence, int, float, bool]], need: int, gone: list[str] | None) -> None:
    assert versions.evictions(loaded(*models), need, 100) == gone


def test_without_a_limit_nothing_goes() -> None:
    models = loaded(("a", "lazy", 60, 1, False), ("b", "lazy", 60, 2, False))
    assert (versions.evictions(models, 1000, 0), versions.surplus(models, 0)) == ([], [])


@pytest.mark.parametrize(
    ("models", "gone"),
    [
        ([], []),
        ([("a", "lazy", 40, 1, False), ("b", "lazy", 60, 2, False)], []),
        ([("a", "lazy", 20, 1, False), ("b", "lazy", 20, 2, False), ("c", "lazy", 70, 3, False)], ["a"]),
        ([("a", PRE, 20, 1, False), ("b", "lazy", 20, 2, False), ("c", "passing", 70, 3, False)], ["b"]),
        ([("a", "lazy", 20, 1, True), ("b", "lazy", 20, 2, False), ("c", "lazy", 70, 3, False)], ["b"]),
        ([("a", "lazy", 60, 1, True), ("b", "lazy", 20, 2, False), ("c", "lazy", 60, 3, True)], ["b"]),  # what can go
        ([("a", "lazy", 10, 1, False), ("b", "lazy", 150, 2, False)], ["a"]),
        ([("b", "lazy", 150, 2, False)], []),
    ],
)
def test_surplus(models: list[tuple[str, Residence, int, float, bool]], gone: list[str]) -> None:
    assert versions.surplus(loaded(*models), 100) == gone


def test_only_what_nobody_planned_and_nobody_has_used_for_a_while_is_superfluous() -> None:
    models = loaded(
        ("old", "passing", 1, 100, False),
        ("used", "passing", 1, 195, False),
        ("at work", "passing", 1, 100, True),
        ("lazy", "lazy", 1, 0, False),
        ("preloaded", PRE, 1, 0, False),
    )
    assert versions.superfluous(models, 200, 60) == ["old"]


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("CANARY", "imagenet=1:95,2:5", {"imagenet": {"1": 95, "2": 5}}),
        (
            "CANARY",
            " imagenet = 1:95, 2:5 , nsfw=3:1,4:0.5",
            {"imagenet": {"1": 95, "2": 5}, "nsfw": {"3": 1, "4": 0.5}},
        ),
        ("CANARY", '{"imagenet": {"1": 95}}', {"imagenet": {"1": 95}}),
        ("SHADOW", "imagenet=2:10", {"imagenet": {"2": 10}}),
    ],
)
def test_shares_in_a_variable(monkeypatch: pytest.MonkeyPatch, name: str, text: str, wanted: object) -> None:
    monkeypatch.setenv(f"CLASSIFLEET_{name}", text)
    assert getattr(Settings.load(), name.lower()) == wanted


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("CANARY", "1:95", "is not model=version:number"),
        ("CANARY", "imagenet=1", "is not model=version:number"),
        ("CANARY", "imagenet=latest:5", "pattern"),
        ("CANARY", "imagenet=1:-5", "greater than or equal to 0"),
        ("CANARY", "imagenet=1:0", "none of its versions has any weight"),
        ("SHADOW", "imagenet=1:5,2:5", "takes one version"),
        ("SHADOW", "imagenet=2:101", "takes one version"),
    ],
)
def test_shares_that_are_refused(monkeypatch: pytest.MonkeyPatch, name: str, text: str, why: str) -> None:
    monkeypatch.setenv(f"CLASSIFLEET_{name}", text)
    with pytest.raises(SettingsError, match=why):
        Settings.load()
