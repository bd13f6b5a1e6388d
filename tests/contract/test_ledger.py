"""The ledger of what requests in flight hold: limits of one request, of one client and of all."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest

from qwen3vl_edge.contract.errors import LimitError
from qwen3vl_edge.contract.http.ledger import InFlightError, Ledger, Resource
from tests.support.waiting import until

BYTES = Resource("bytes", "body", "max_bytes", 10)
OTHER = Resource("values", "body", "max_values", 3)


def ledger(per_client: int = 2, in_all: int = 3, wait_s: float = 60.0) -> Ledger:
    return Ledger([BYTES, OTHER], per_client, in_all, wait_s)


def test_one_request_may_hold_its_limit_and_no_more() -> None:
    with ledger().open("a") as account:
        account.claim("bytes", 4)
        account.claim("bytes", 6)
        account.claim("values", 3)
        with pytest.raises(LimitError, match=r"too many bytes: expected at most 10 \(max_bytes\), got 11") as refused:
            account.claim("bytes", 1)
    assert (refused.value.status, refused.value.field) == (413, "body")


def test_the_requests_of_a_client_hold_a_multiple_and_other_clients_are_not_touched() -> None:
    book = ledger()
    first, second, third, other = (book.open(name) for name in ("a", "a", "a", "b"))
    first.claim("bytes", 10)
    second.claim("bytes", 10)
    with pytest.raises(InFlightError, match=r"this client's.* at most 20 \(max_in_flight_per_client = 2\)") as refused:
        third.claim("bytes", 1)
    assert (refused.value.status, refused.value.code) == (429, "too_much_in_flight")
    other.claim("bytes", 10)
    with pytest.raises(InFlightError, match=r"all requests.* at most 30 \(max_in_flight = 3\)"):
        book.open("c").claim("bytes", 1)
    with first:
        pass
    third.claim("bytes", 10)


def test_what_a_request_held_is_given_back_once_by_whoever_ends_last() -> None:
    book = ledger()
    with book.open("a") as account:
        account.claim("bytes", 7)
        account.claim("values", 2)
        account.give_back("values")
        account.give_back("values")
        release = account.hold()
    assert book.held == {"bytes": 7, "values": 0}
    release("a future")
    assert book.held == {"bytes": 0, "values": 0}


def test_a_claim_waits_for_another_request_to_end() -> None:
    async def scenario() -> None:
        book = ledger()
        holders = [book.open("a"), book.open("a")]
        for holder in holders:
            holder.claim("bytes", 10)
        waiting = asyncio.create_task(book.open("a").wait_for("bytes", 5))
        await asyncio.sleep(0)
        assert not waiting.done()
        with ThreadPoolExecutor(1) as pool:  # a generation ends in the engine's thread
            pool.submit(holders[0].__exit__, None, None, None)
        await asyncio.wait_for(waiting, 30)
        assert book.held["bytes"] == 15

    asyncio.run(scenario())


def test_a_claim_that_never_fits_is_refused_and_forgotten() -> None:
    async def scenario() -> None:
        book = ledger(wait_s=0.05)
        for _ in range(2):
            book.open("a").claim("bytes", 10)
        with pytest.raises(InFlightError):
            await book.open("a").wait_for("bytes", 5)
        with pytest.raises(LimitError) as refused:  # at once: it can never fit
            await book.open("b").wait_for("bytes", 11)
        assert refused.value.status == 413
        left = asyncio.create_task(book.open("a").wait_for("bytes", 5))
        await asyncio.sleep(0)
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left
        assert not book._waiting

    asyncio.run(scenario())


def test_claims_of_many_threads_add_up() -> None:
    book = Ledger([Resource("bytes", "body", "max_bytes", 1000)], 1000, 1000)

    def one(number: int) -> None:
        for _ in range(200):
            with book.open(f"client {number % 3}") as account:
                account.claim("bytes", 1)
                account.claim("bytes", 2)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(8)))
    until(lambda: book.held["bytes"] == 0)
    assert not book._clients
