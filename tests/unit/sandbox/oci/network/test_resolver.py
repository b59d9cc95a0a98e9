from __future__ import annotations

import asyncio
from ipaddress import IPv4Address

import pytest

from cupola.domain.egress import NO_EGRESS, EgressMode, EgressPolicy, parse_egress
from cupola.sandbox.oci.network.dns_message import Code, Query, Reply, build_question, parse_reply
from cupola.sandbox.oci.network.refusals import Refusals
from cupola.sandbox.oci.network.resolver import MOST_ADDRESSES, NoAnswer, Ports, Resolver
from tests.unit.sandbox.oci.network import messages
from tests.unit.sandbox.oci.network.messages import address, answer, code, header, question, record

OPEN = EgressPolicy(EgressMode.OPEN)
TYPES = (1, 2, 5, 6, 12, 15, 16, 28, 33, 64, 65, 99, 249, 250, 251, 252, 253, 254, 255, 256, 257, 65535)


def allow(*names: str, private_ranges: tuple[str, ...] = ()) -> EgressPolicy:
    return parse_egress({"mode": "allow-list", "names": list(names), "private_ranges": list(private_ranges)})


class Around:
    """A resolver with a world of names around it, which notes what leaves the sandbox."""

    def __init__(self, policy: EgressPolicy, **names: list[bytes]) -> None:
        self.records = {name.replace("_", "."): records for name, records in names.items()}
        self.asked: list[str] = []
        self.admitted: list[tuple[tuple[str, ...], Ports, int]] = []
        self.told: list[str] = []
        self.now = 0.0
        self.away = False
        self.refusing = False
        self.resolver = Resolver(policy, "Agent", self, self.admit, Refusals(self.told.append, self.clock), self.clock)

    def clock(self) -> float:
        return self.now

    async def ask(self, query: Query) -> Reply:
        self.asked.append(f"{query.name} {query.type}")
        if self.away:
            raise NoAnswer
        built = build_question(1, query)
        return parse_reply(answer(built, *self.records.get(query.name, [])), 1, query)

    async def admit(self, addresses: tuple[IPv4Address, ...], ports: Ports, seconds: int) -> None:
        await asyncio.sleep(0)
        if self.refusing:
            raise NoAnswer
        self.admitted.append((tuple(map(str, addresses)), ports, seconds))

    async def code(self, name: str, kind: int = messages.A) -> int:
        return code(await self.answer(name, kind))

    async def answer(self, name: str, kind: int = messages.A) -> bytes:
        found = await self.resolver.answer(question(name, kind, space=1232), udp=True)
        assert found is not None
        return found


@pytest.mark.parametrize("policy", [NO_EGRESS, allow("a.example"), OPEN], ids=["none", "listed", "open"])
async def test_the_sandboxs_own_names_are_answered_inside(policy: EgressPolicy) -> None:
    around = Around(policy)
    for name in ("localhost", "LOCALHOST", "deep.localhost", "agent", "AGENT"):
        assert (await around.answer(name)).count(b"\x7f\0\0\1") == 1
        assert header(await around.answer(name, messages.AAAA))[3] == 0
        assert await around.code(name, messages.AAAA) == Code.NO_ERROR
    assert around.asked == []


@pytest.mark.parametrize("kind", TYPES)
async def test_no_question_of_any_type_leaves_for_a_name_that_is_not_allowed(kind: int) -> None:
    for policy in (NO_EGRESS, allow("a.example", "*.b.example:443")):
        around = Around(policy, secret_attacker_example=[address("198.51.100.1")])
        names = ("secret.attacker.example", "b.example", "xa.example", "a.example.attacker.example", "", "notlocalhost")
        for name in names:
            assert await around.code(name, kind) in (Code.NO_SUCH_NAME, Code.REFUSED)
        assert around.asked == []
        assert around.admitted == []


@pytest.mark.parametrize("kind", range(249, 256))
async def test_transfers_and_questions_about_everything_are_refused(kind: int) -> None:
    around = Around(OPEN)
    assert await around.code("a.example", kind) == Code.REFUSED
    assert around.asked == []


@pytest.mark.parametrize("kind", [28, 64, 65])
async def test_what_would_lead_around_the_addresses_is_empty(kind: int) -> None:
    around = Around(OPEN)
    found = await around.answer("a.example", kind)
    assert (code(found), header(found)[3], around.asked) == (Code.NO_ERROR, 0, [])


async def test_open_answers_everything_and_admits_nothing() -> None:
    around = Around(OPEN, a_example=[address("198.51.100.1")])
    assert address("198.51.100.1") in await around.answer("a.example")
    assert around.admitted == []


async def test_what_an_allow_list_answers_is_admitted_before_the_answer() -> None:
    around = Around(allow("a.example", "*.b.example:80", "*.b.example:443"))
    around.records = {
        "a.example": [record(messages.name("x.b.example"), messages.CNAME), address("198.51.100.1", 5)],
        "x.b.example": [address("198.51.100.2", 600), address("198.51.100.3", 900)],
    }
    assert await around.code("a.example") == 0
    assert around.admitted == [(("198.51.100.1",), None, 120)]
    assert await around.code("x.b.example") == 0
    assert around.admitted[1:] == [(("198.51.100.2", "198.51.100.3"), frozenset({80, 443}), 660)]
    assert around.told == []


async def test_a_name_listed_with_and_without_a_port_is_open_on_every_port() -> None:
    around = Around(allow("a.example:80", "a.example"), a_example=[address("198.51.100.1")])
    await around.code("a.example")
    assert around.admitted == [(("198.51.100.1",), None, 360)]


async def test_an_address_is_admitted_again_only_when_its_time_runs_out() -> None:
    around = Around(allow("a.example"), a_example=[address("198.51.100.1", 100)])
    for second in (0, 30, 59, 61, 100):
        around.now = float(second)
        await around.code("a.example")
    assert len(around.admitted) == 2


async def test_questions_at_once_admit_an_address_once() -> None:
    around = Around(allow("a.example"), a_example=[address("198.51.100.1")])
    assert await asyncio.gather(*(around.code("a.example") for _ in range(10))) == [0] * 10
    assert len(around.admitted) == 1


@pytest.mark.parametrize("policy", [OPEN, allow("*.example")], ids=["open", "listed"])
@pytest.mark.parametrize(
    "inward",
    ["127.0.0.1", "0.0.0.0", "10.1.2.3", "169.254.169.254", "192.168.0.1", "172.16.0.1", "100.64.0.1", "224.0.0.1",
     "255.255.255.255", "168.63.129.16", "100.100.100.200", "192.0.0.192"],
)  # fmt: skip
async def test_a_name_that_points_inside_is_refused_whole(policy: EgressPolicy, inward: str) -> None:
    alias = record(messages.name("inside.attacker.example"), messages.CNAME)
    around = Around(policy, a_example=[alias, address("198.51.100.1"), address(inward)])
    found = await around.answer("a.example")
    assert (code(found), header(found)[3]) == (Code.NO_SUCH_NAME, 0)
    assert around.admitted == []
    assert around.told == [f"The name a.example points to {inward}, which the egress policy does not allow."]


async def test_a_name_may_point_into_a_range_that_is_listed() -> None:
    around = Around(allow("a.example", private_ranges=("10.1.0.0/16",)), a_example=[address("10.1.2.3")])
    assert await around.code("a.example") == 0


async def test_addresses_under_another_type_are_looked_at_and_not_admitted() -> None:
    around = Around(allow("*.example"), a_example=[address("10.1.2.3")], b_example=[address("198.51.100.1")])
    assert await around.code("a.example", messages.TXT) == Code.NO_SUCH_NAME
    assert await around.code("b.example", messages.TXT) == 0
    assert around.admitted == []


async def test_a_sandbox_cannot_have_more_and_more_addresses_admitted() -> None:
    around = Around(allow("*.example"))
    for number in range(MOST_ADDRESSES // 64 + 3):
        around.records[f"n{number}.example"] = [address(f"198.51.{number}.{low}") for low in range(64)]
        last = await around.code(f"n{number}.example")
    assert last == Code.SERVER_FAILURE
    assert sum(len(addresses) for addresses, _, _ in around.admitted) == MOST_ADDRESSES
    assert around.told[0].endswith(f"was refused: {MOST_ADDRESSES} addresses are in use already.")
    around.now = 3600.0
    assert await around.code(f"n{number}.example") == 0


async def test_no_answer_is_a_failure() -> None:
    around = Around(allow("a.example"), a_example=[address("198.51.100.1")])
    around.away = True
    assert await around.code("a.example") == Code.SERVER_FAILURE
    around.away, around.refusing = False, True
    assert await around.code("a.example") == Code.SERVER_FAILURE
    around.refusing = False
    assert await around.code("a.example") == 0


async def test_what_is_no_question_gets_what_it_deserves() -> None:
    around = Around(OPEN)
    assert await around.resolver.answer(b"\0", udp=True) is None
    assert code(await around.resolver.answer(question("a")[:-1], udp=False) or b"") == Code.FORMAT_ERROR


async def test_refused_names_are_told_so_that_they_cannot_steer_a_terminal() -> None:
    around = Around(NO_EGRESS)
    body = b"\x08\x1b[2J\n\x00\xff.\x07example\0\0\1\0\1"
    await around.resolver.answer(question("x")[:12] + body, udp=True)
    (line,) = around.told
    assert line == ("The egress policy (none) does not allow the name \\027[2j\\010\\000\\255\\046.example.")
