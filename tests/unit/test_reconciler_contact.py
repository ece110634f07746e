"""When leases may be called run out: not before their holders had a chance to renew them."""

from __future__ import annotations

import pytest

from classifleet.worker.reconciler.leases import Contact

LEASE_SECONDS = 60.0  # renewed every 20 s, so quiet for 30 s; a gap is more than 20 s


def settled(contact: Contact, *seconds: float) -> list[bool]:
    return [contact.settled(1000 * each) for each in seconds]


def test_a_process_that_starts_waits_since_it_knows_nothing() -> None:
    contact = Contact(LEASE_SECONDS)
    assert settled(contact, 1000, 1010, 1029.9, 1030, 1049) == [False, False, False, True, True]


def test_a_clock_that_was_set_back_is_a_gap_and_not_a_wait_until_it_has_caught_up() -> None:
    assert settled(Contact(LEASE_SECONDS), 9000, 9015, 9030, 60, 75, 90) == [False, False, True, False, False, True]


@pytest.mark.parametrize("how", ["a call failed", "the clock jumped"])
def test_after_a_gap_it_waits_again(how: str) -> None:
    contact = Contact(LEASE_SECONDS)
    assert settled(contact, 0, 15, 30) == [False, False, True]
    if how == "a call failed":
        contact.lost()
        assert settled(contact, 31, 45, 60.9, 61) == [False, False, False, True]
    else:  # this machine slept, or Redis was away between two rounds
        assert settled(contact, 51, 70, 80.9, 81) == [False, False, False, True]


def test_a_short_pause_is_no_gap() -> None:
    """Shorter than the time between two renewals: a lease outlives the one renewal that may have failed."""
    contact = Contact(LEASE_SECONDS)
    assert settled(contact, 0, 15, 30, 49, 68) == [False, False, True, True, True]


def test_short_leases_do_not_make_every_round_a_gap() -> None:
    assert settled(Contact(1.0), 0, 1, 2, 4) == [False, True, True, True]
