"""Tunnels shared, waited for, filled up and given up. Real handshakes over loopback."""

import itertools
import socket
from collections.abc import Callable
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import h2.settings
import pytest
import trio
import trio.testing

from agent.tunnel import core, frames, negotiation
from agent.tunnel.pool import WAITING, Shared
from ca import x509
from ca.identity import WorkloadIdentity
from tests.agent.relay.rig import DB, WEB, descriptors, leaf, soon
from tests.agent.tunnel.node import Host, hosts, needs_marks

pytestmark = needs_marks
API = WorkloadIdentity("shop.example", "shop", "api")


@contextmanager
def offering(count: int):
    """What is opened here allows its peers only so many streams."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (core, negotiation):
            patch.setattr(module, "MAX_STREAMS", count)
        yield


async def answered(host: Host, *wanted) -> None:
    await host.news.until(lambda: all(w.status for w in wanted))


async def test_one_tunnel_for_all_of_a_pair_of_identities():
    async with hosts() as (web, db):
        port = db.listen()
        first = [web.want(port) for _ in range(50)]
        await answered(web, *first)
        later = [web.want(port) for _ in range(50)]
        await answered(web, *later)
        assert db.dialled == 1
        assert len({w.link for w in first + later}) == 1
        (link,) = web.pool.links
        assert (link.local, link.peer) == (WEB, DB)
        (arrived,) = db.arrivals.links
        assert (arrived.local, arrived.peer) == (DB, WEB)


async def test_other_keys_have_tunnels_of_their_own():
    async with hosts() as (web, db):
        for host in (web, db):
            for identity in (API, WEB, DB):
                host.credentials.put(str(identity), *leaf(identity))
        one, other = db.listen(), db.listen()
        wanted = [
            web.want(one),
            web.want(other),
            web.want(one, source=API),
            web.want(one, destination=API),
        ]
        await answered(web, *wanted)
        assert len({w.link for w in wanted}) == 4
        assert {(str(k.local), str(k.peer)) for k in db.arrivals.links} == {
            (str(DB), str(WEB)),
            (str(DB), str(API)),
            (str(API), str(WEB)),
        }


@pytest.mark.parametrize("cap", [1, 2, 5])
async def test_a_full_tunnel_stays_and_another_is_dialled_beside_it(cap):
    async with hosts() as (web, db):
        with offering(cap):
            port = db.listen()
            wanted = [web.want(port) for _ in range(11)]
            await answered(web, *wanted)
        assert all(w.code is None for w in wanted)
        links = {w.link for w in wanted}
        assert len(links) == -(-11 // cap)
        assert all(len(link.core.streams) <= cap for link in links)
        # Room that comes back is used again.
        full = wanted[0]
        full.end()
        more = web.want(port)
        await answered(web, more)
        assert len(web.pool.links) == len(links)


async def test_the_next_tunnel_is_dialled_before_the_last_one_is_full():
    async with hosts() as (web, db):
        with offering(8):
            port = db.listen()
            await answered(web, web.want(port))
            await answered(web, *[web.want(port) for _ in range(5)])
            assert len(web.pool.links) == 1
            await answered(web, web.want(port))
            await soon(lambda: len(web.pool.links) == 2)
            await answered(web, *[web.want(port) for _ in range(8)])
            assert db.dialled == 2


async def test_a_tunnel_in_use_that_goes_away_is_replaced_before_anybody_asks():
    async with hosts() as (web, db):
        port = db.listen()
        wanted = web.want(port)
        await answered(web, wanted)
        (old,) = db.arrivals.links
        old.drain()
        await soon(lambda: len(db.arrivals.links) == 2 == len(web.pool.links))
        # The fresh one carried nothing: that it goes as well is no reason for a third.
        (fresh,) = (link for link in db.arrivals.links if link is not old)
        fresh.drain()
        wanted.end()
        await soon(lambda: not web.pool.links)
        assert db.dialled == 2


async def test_a_worker_that_is_to_end_dials_nothing_ahead():
    async with hosts() as (web, db):
        wanted = web.want(db.listen())
        await answered(web, wanted)
        web.pool.ahead = False
        wanted.link.drain()
        wanted.end()
        await soon(lambda: not web.pool.links)
        assert db.dialled == 1


async def test_who_waits_goes_when_a_stream_ends_though_no_tunnel_can_be_dialled():
    async with hosts() as (web, db):
        with offering(1):
            port = db.listen()
            first = web.want(port)
            await answered(web, first)
            web.pool._places[next(iter(web.pool._places))].dialling = True  # one that takes for ever
            second = web.want(port)
            assert second.link is None
            first.end()
            await answered(web, second)
            assert second.link is first.link


async def test_a_failed_dial_fails_all_who_wait_with_the_reason():
    async with hosts() as (web, _):
        with socket.create_server(("127.0.0.1", 0)) as gone:
            port = gone.getsockname()[1]
        wanted = [web.want(port) for _ in range(5)]
        await web.news.until(lambda: all(w.why for w in wanted))
        assert {w.why for w in wanted} == {
            f"cannot connect to node 127.0.0.1 port {port}: Connection refused; is its agent running?"
        }
        assert web.pool._places == {}
        again = web.want(port)
        await web.news.until(lambda: bool(again.why))


async def test_no_certificate_no_tunnel():
    async with hosts() as (web, db):
        wanted = web.want(db.listen(), source=API)
        await web.news.until(lambda: bool(wanted.why))
        assert wanted.why == f"this node holds no certificate for {API}"


async def test_the_wrong_node_is_not_believed():
    async with hosts() as (web, db):
        wanted = web.want(db.listen(), destination=API)  # db has no such identity
        await web.news.until(lambda: bool(wanted.why) and bool(db.refusals))
        assert db.refusals == [("127.0.0.1", f"no local workload is meant by server name {API.sni}")]


async def test_a_client_certificate_that_is_refused_fails_all_who_wait():
    """In TLS 1.3 the dialler has done its part by then, and has opened the first stream."""
    async with hosts() as (web, db):
        db.credentials.trust(stranger())
        port = db.listen()
        wanted = [web.want(port) for _ in range(5)]
        await web.news.until(lambda: all(w.why or w.lost for w in wanted))
        assert {why for _, why in db.refusals} == {
            "TLS: the peer's certificate leads to no root that is trusted here: is the peer of another mesh?"
        }
        assert {w.why or w.lost for w in wanted} <= {wanted[0].why, wanted[0].lost}
        assert len(db.refusals) == 1
        assert db.credentials.answering()._verify_helper._problems == []


async def test_too_many_waiting():
    async with hosts() as (web, _):
        with socket.create_server(("127.0.0.1", 0)) as silent:
            port = silent.getsockname()[1]
            wanted = [web.want(port) for _ in range(WAITING + 3)]
            assert [bool(w.why) for w in wanted[-4:]] == [False, True, True, True]
            assert "already wait" in wanted[-1].why


async def test_a_leaving_tunnel_carries_what_it_has_and_nothing_new():
    async with hosts() as (web, db):
        port = db.listen()
        first = web.want(port)
        await answered(web, first)
        (arrived,) = db.arrivals.links
        arrived.drain()
        await soon(lambda: first.link.core.draining)
        second = web.want(port)
        await answered(web, second)
        assert second.link is not first.link
        assert len(web.pool.links) == 2
        first.end()
        await soon(lambda: web.pool.links == [second.link])
        assert len(db.arrivals.links) == 1


async def test_streams_that_crossed_the_goaway_are_said_to_be_unseen():
    async with hosts() as (web, db):
        port = db.listen()
        first = web.want(port)
        await answered(web, first)
        (arrived,) = db.arrivals.links
        arrived.drain()
        crossing = web.want(port)
        assert crossing.link is first.link
        await web.news.until(lambda: bool(crossing.lost) or crossing.code is not None)
        assert crossing.unseen or crossing.code == frames.REFUSED_STREAM
        assert first.lost == ""


async def test_a_lost_tunnel_is_replaced():
    async with hosts() as (web, db):
        port = db.listen()
        first = web.want(port)
        await answered(web, first)
        for link in list(db.arrivals.links):
            link.close("killed")
        await web.news.until(lambda: bool(first.lost))
        assert web.pool.links == []
        assert web.pool._places == {}
        second = web.want(port)
        await answered(web, second)


async def test_a_peer_may_not_open_streams_towards_the_dialler():
    async with hosts() as (web, db):
        first = web.want(db.listen())
        await answered(web, first)
        (arrived,) = db.arrivals.links
        arrived.core.outgoing += frames.header(frames.HEADERS, frames.END_HEADERS, 2, 1) + b"\x88"
        arrived.touch()
        await web.news.until(lambda: bool(first.lost))
        assert "broke HTTP/2" in first.lost


async def test_settings_that_lower_the_cap_are_obeyed():
    async with hosts() as (web, db):
        port = db.listen()
        first = [web.want(port) for _ in range(3)]
        await answered(web, *first)
        (arrived,) = db.arrivals.links
        arrived.core._negotiation._h2.update_settings({h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: 3})
        arrived.core.outgoing += arrived.core._negotiation.said
        arrived.touch()
        await soon(lambda: first[0].link.core.full)
        other = web.want(port)
        await answered(web, other)
        assert other.link is not first[0].link


async def test_cancelled_dials_close_their_sockets():
    before = descriptors()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        async with trio.open_nursery() as nursery:
            web = Host(nursery, WEB)
            web.want(silent.getsockname()[1])
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        silent.accept()[0].close()
    assert descriptors() == before


class At(trio.abc.Instrument):
    """Calls `act` when the kernel has woken tasks for the nth time, before any of them has run."""

    def __init__(self, nth: int, act: Callable[[], None]) -> None:
        self._left, self._act = nth, act

    def after_io_wait(self, timeout: float) -> None:
        if self._left == 0:
            self._act()
        self._left -= 1


async def test_whenever_dials_and_handshakes_are_cancelled_their_sockets_are_closed():
    """Also those whose last wait is over, though they do not know yet: they make tunnels that nobody closes."""
    before = descriptors()
    for moment in itertools.count():
        async with trio.open_nursery() as nursery:
            web, db = Host(nursery, WEB), Host(nursery, DB)

            def end(both: tuple[Host, Host] = (web, db), scope: trio.CancelScope = nursery.cancel_scope) -> None:
                for host in both:
                    host.close()
                scope.cancel()

            wanted = web.want(db.listen())
            instrument = At(moment, end)
            trio.lowlevel.add_instrument(instrument)
            await web.news.until(lambda wanted=wanted: wanted.status)
            trio.lowlevel.remove_instrument(instrument)
            end()
        assert descriptors() == before, moment
        if wanted.status:
            break
    assert moment > 5


def stranger() -> bytes:
    """The root of another mesh."""
    return x509.pem(x509.new_root("other.example", datetime.now(UTC), timedelta(days=1)).cert)


def test_numbers_name_the_worker():
    shared = Shared()
    assert [shared.number(3), shared.number(3)] == ["t3.1", "t3.2"]
