"""The network wall of the `oci` driver, tried from inside real sandboxes against a small internet of the tests' own.

What a sandbox is kept from is really there: the last tests take the rules away, and the same attempts succeed.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import re
import resource
import runpy
import shutil
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import httpx2
import pytest

from cupola.app import RUN_ROOT
from cupola.domain.egress import NO_EGRESS, EgressMode, EgressPolicy, parse_egress
from cupola.sandbox.base import MIB, SandboxError, SandboxSpec
from cupola.sandbox.oci import linux
from cupola.sandbox.oci.driver import OciDriver
from cupola.sandbox.oci.network import firewall
from cupola.sandbox.oci.network.namespace import get_option, set_option
from cupola.sandbox.oci.network.network import Network, NetworkSettings
from cupola.sandbox.oci.network.nftables import Nftables
from tests.system.internet import (
    BRIDGE,
    DNS,
    GATEWAY,
    HOST,
    HOST_ADDRESSES,
    LAN,
    LAN_HOST,
    METADATA,
    OTHER,
    PUBLIC,
    REMOTE_PRIVATE,
    Internet,
    inside,
    small_internet,
)
from tests.system.platform import Platform, traces

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the oci driver needs root")

PROBE = Path(__file__).with_name("network_probe.py")
OPEN = EgressPolicy(EgressMode.OPEN)


def allow(*names: str, private_ranges: tuple[str, ...] = ()) -> EgressPolicy:
    return parse_egress({"mode": "allow-list", "names": list(names), "private_ranges": list(private_ranges)})


@pytest.fixture(scope="module")
def small() -> Iterator[Internet]:
    # The host of its own has a run directory of its own: a server of the machine's real network must not sweep there.
    RUN_ROOT.mkdir(parents=True, exist_ok=True, mode=0o700)
    linux.mount("tmpfs", str(RUN_ROOT), "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "mode=700")
    try:
        with small_internet() as found:
            yield found
    finally:
        linux.unmount(str(RUN_ROOT))


@pytest.fixture
def internet(small: Internet) -> Internet:
    small.visits.clear()
    small.questions.clear()
    small.zone = {
        "allowed.example": [PUBLIC],
        "deep.allowed.example": [OTHER],
        "other.example": [OTHER],
        "secret.attacker.example": [OTHER],
        "large.example": [f"203.0.113.{number}" for number in range(10, 110)],
        "notes.example": ["a note"],
    }
    return small


class Bench:
    """A driver, and what is tried in its sandboxes."""

    def __init__(self, driver: OciDriver, spec: SandboxSpec) -> None:
        self.driver = driver
        self.spec = spec
        self.told: list[str] = []

    async def attempts(self, policy: EgressPolicy, *steps: list[tuple[str, str]], name: str = "trying") -> list[str]:
        """What comes of attempts in a new sandbox; those of one step are made at once."""
        printed: list[bytes] = []

        def take(stream: str, data: bytes) -> None:
            if stream == "stdout":
                printed.append(data)
            else:
                self.told.append(data.decode())

        environment = (*self.spec.environment, ("ATTEMPTS", json.dumps(steps)))
        spec = replace(self.spec, name=name, egress=policy, environment=environment)
        sandbox = await self.driver.start(spec, take)
        ended = await asyncio.wait_for(sandbox.exited, 60)
        await self.driver.stop(name, 0)
        assert ended.code == 0, self.told
        return [json.loads(line) for line in b"".join(printed).decode().splitlines()]

    async def reached(self, policy: EgressPolicy, *targets: tuple[str, str]) -> list[str]:
        """Which of some targets a sandbox reaches, tried at once."""
        outcomes = await self.attempts(policy, list(targets))
        return [target for (_, target), outcome in zip(targets, outcomes, strict=True) if "failed" not in outcome]

    async def serving(self, policy: EgressPolicy, name: str) -> str:
        """The address of a new sandbox that listens on all its addresses, port 8088."""
        found: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        def take(stream: str, data: bytes) -> None:
            if stream == "stdout" and not found.done():
                found.set_result(json.loads(data))

        arguments = (*self.spec.arguments, "serve")
        await self.driver.start(replace(self.spec, name=name, egress=policy, arguments=arguments), take)
        return await asyncio.wait_for(found, 20)


@pytest.fixture
def spec(base_root: Path, tmp_path: Path) -> SandboxSpec:
    (tmp_path / "layer").mkdir()
    shutil.copy(PROBE, tmp_path / "layer" / "probe.py")
    return SandboxSpec(
        name="trying",
        layers=(base_root, tmp_path / "layer"),
        arguments=("python3", "/probe.py"),
        environment=(("PATH", "/usr/bin:/bin"), ("HOME", "/home/session")),
        working_directory="/",
        user="",
        home=tmp_path / "session" / "home",
        files=tmp_path / "session" / "files",
        cpu=1.0,
        memory=256 * MIB,
    )


def left_over() -> list[str]:
    """Interfaces, rules and namespaces that are there now."""
    rules = Nftables()
    tables = rules.run("list tables").splitlines()
    rules.close()
    held = [str(entry.readlink()) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
    interfaces = sorted(name for _, name in socket.if_nameindex())
    return [*interfaces, *tables, *sorted(name for name in held if name.startswith("net:"))]


@contextlib.asynccontextmanager
async def opened(tmp_path: Path, spec: SandboxSpec, runtime: str = "", port: int | None = None) -> AsyncIterator[Bench]:
    """A driver that must leave nothing behind."""
    before = left_over()
    settings = NetworkSettings(port, IPv4Network("10.183.0.0/24"), (DNS,))
    driver = OciDriver(f"net{os.getpid()}", tmp_path / "run", tmp_path / "data", runtime or None, settings)
    await driver.open()
    try:
        yield Bench(driver, spec)
    finally:
        for name in await driver.names():
            await driver.stop(name, 0)
        await driver.close()
    assert left_over() == before
    assert get_option("ipv4/conf/wan/forwarding") == "0"


@pytest.fixture
async def bench(internet: Internet, tmp_path: Path, spec: SandboxSpec) -> AsyncIterator[Bench]:
    async with opened(tmp_path, spec) as made:
        yield made


@contextlib.contextmanager
def host_services(port: int = 4321) -> Iterator[list[tuple[str, int]]]:
    """A service on every address of the host, by TCP and UDP; the list is of who came by TCP."""
    came: list[tuple[str, int]] = []
    loop = asyncio.get_running_loop()
    with socket.create_server(("0.0.0.0", port)) as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        tcp.setblocking(False)
        udp.bind(("0.0.0.0", port))
        udp.setblocking(False)

        def accept() -> None:
            connection, source = tcp.accept()
            came.append(source)
            connection.close()

        def answer() -> None:
            data, source = udp.recvfrom(100)
            came.append(source)
            udp.sendto(data, source)

        loop.add_reader(tcp, accept)
        loop.add_reader(udp, answer)
        try:
            yield came
        finally:
            loop.remove_reader(tcp)
            loop.remove_reader(udp)


@pytest.mark.parametrize("runtime", ["crun", "runc"])
async def test_open_reaches_public_addresses(
    internet: Internet, tmp_path: Path, spec: SandboxSpec, runtime: str
) -> None:
    if shutil.which(runtime) is None:
        pytest.skip(f"{runtime} is not installed")
    async with opened(tmp_path, spec, runtime) as bench:
        outcomes = await bench.attempts(
            OPEN,
            [("http", f"http://{PUBLIC}/"), ("udp", f"{PUBLIC}:9"), ("http", "http://allowed.example/")],
            [("name", "allowed.example"), ("tcp", f"{DNS}:53"), ("interfaces", "")],
        )
    assert outcomes == [
        f"you are {HOST}", "reached", f"you are {HOST}", PUBLIC, "reached", "['eth0', 'lo'] ['lo']",
    ]  # fmt: skip
    assert bench.told == []


@pytest.mark.parametrize("runtime", ["crun", "runc"])
async def test_none_reaches_nothing(internet: Internet, tmp_path: Path, spec: SandboxSpec, runtime: str) -> None:
    if shutil.which(runtime) is None:
        pytest.skip(f"{runtime} is not installed")
    async with opened(tmp_path, spec, runtime) as bench:
        addresses = (PUBLIC, DNS, HOST, LAN, GATEWAY, *METADATA)
        targets = [(kind, f"{address}:80") for address in addresses for kind in ("tcp", "udp", "mapped")]
        reached = await bench.reached(NO_EGRESS, *targets, ("name", "allowed.example"), ("tcp", f"{DNS}:53"))
        outcomes = await bench.attempts(NO_EGRESS, [("interfaces", ""), ("name", "localhost"), ("name", "agent")])
    assert reached == []
    assert internet.visits == []
    assert internet.questions == []
    assert outcomes == ["['lo'] ['lo']", "127.0.0.1", "127.0.0.1"]
    assert bench.told == ["The egress policy (none) does not allow the name allowed.example.\n"]


async def test_an_allow_list_reaches_what_it_names_and_only_there(bench: Bench, internet: Internet) -> None:
    before, resolved, after = (
        [("tcp", f"{PUBLIC}:80"), ("tcp", f"{OTHER}:80"), ("tcp", f"{DNS}:53"), ("udp", f"{DNS}:53")],
        [("name", "allowed.example"), ("name", "other.example")],
        [
            *(("http", "http://allowed.example/"), ("tcp", f"{PUBLIC}:8080"), ("udp", f"{PUBLIC}:9")),
            *(("tcp", f"{OTHER}:80"), ("udp", f"{OTHER}:9"), ("tcp", f"{DNS}:853"), ("name", "deep.allowed.example")),
        ],
    )
    outcomes = await bench.attempts(allow("allowed.example"), before, resolved, after)
    assert all("failed" in outcome for outcome in outcomes[:4])
    assert outcomes[4] == PUBLIC
    assert "failed: gaierror" in outcomes[5]
    assert outcomes[6:9] == [f"you are {HOST}", "reached", "reached"]
    assert all("failed" in outcome for outcome in outcomes[9:])
    assert {to for to, _ in internet.visits} == {PUBLIC, DNS}
    assert set(internet.questions) == {"allowed.example 1"}
    assert sorted(bench.told) == [
        "The egress policy (allow-list) does not allow the name deep.allowed.example.\n",
        "The egress policy (allow-list) does not allow the name other.example.\n",
    ]


async def test_wildcards_and_ports_of_an_allow_list(bench: Bench, internet: Internet) -> None:
    policy = allow("*.allowed.example", "allowed.example:80")
    outcomes = await bench.attempts(
        policy,
        [("name", "deep.allowed.example"), ("name", "ALLOWED.example.")],
        [("tcp", f"{OTHER}:8080"), ("tcp", f"{PUBLIC}:80"), ("tcp", f"{PUBLIC}:8080"), ("udp", f"{PUBLIC}:9")],
    )
    assert outcomes[:4] == [OTHER, PUBLIC, "reached", "reached"]
    assert all("failed" in outcome for outcome in outcomes[4:])


async def test_an_admitted_address_is_forgotten_and_admitted_again(bench: Bench, internet: Internet) -> None:
    """Two names with one address, and a third look after the first: nothing of it disturbs what is admitted."""
    internet.zone["second.example"] = [PUBLIC]
    step = [("http", "http://allowed.example/"), ("http", "http://second.example/")]
    outcomes = await bench.attempts(allow("allowed.example", "second.example"), step, step, step)
    assert outcomes == [f"you are {HOST}"] * 6


SPELLINGS = (
    "169.254.169.254", "2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "0xa9.0xfe.0xa9.0xfe", "169.254.43518",
    "169.16689662", "0251.254.0xa9.254", "::ffff:169.254.169.254", "::ffff:a9fe:a9fe", "[::ffff:169.254.169.254]",
    "localhost.localdomain", "metadata.google.internal", "169.254.169.254.nip.io", "fd00:ec2::254", "fe80::1",
)  # fmt: skip


@pytest.mark.parametrize("policy", [OPEN, allow("*.nip.io", "*.internal", "allowed.example")], ids=["open", "listed"])
async def test_metadata_is_not_reached_in_any_spelling(bench: Bench, internet: Internet, policy: EgressPolicy) -> None:
    internet.zone |= {"metadata.google.internal": ["169.254.169.254"], "169.254.169.254.nip.io": ["169.254.169.254"]}
    targets = [(kind, f"{spelling}:80") for spelling in SPELLINGS for kind in ("tcp", "udp")]
    targets += [(kind, f"{address}:80") for address in METADATA for kind in ("tcp", "mapped", "udp")]
    targets += [("http", f"http://{PUBLIC}/to/169.254.169.254"), ("http", f"http://{PUBLIC}/to/0xa9fea9fe")]
    assert await bench.reached(policy, *targets) == []
    assert not any(internet.visited(address) for address in METADATA)


async def test_the_host_is_not_reached(bench: Bench, internet: Internet) -> None:
    with host_services() as came:
        targets = [
            (kind, f"{address}:4321")
            for address in (*HOST_ADDRESSES, *_host_addresses(), "127.0.0.1", "127.0.0.2", "0.0.0.0", "255.255.255.255")
            for kind in ("tcp", "udp", "mapped")
        ]
        wide = EgressPolicy(
            EgressMode.OPEN, private_ranges=(IPv4Network("192.168.77.0/24"), IPv4Network("172.16.0.0/12"))
        )
        for policy in (OPEN, wide):
            assert await bench.reached(policy, *targets, ("udp", "224.0.0.1:4321")) == []
        assert came == []
    internet.zone["trick.example"] = [HOST]
    with host_services(80) as came:
        assert await bench.reached(allow("trick.example"), ("http", "http://trick.example/")) == []
        assert came == []


def _host_addresses() -> list[str]:
    """Every address of the host that the kernel knows of, those of the driver's own interface too."""
    lines = Path("/proc/net/fib_trie").read_text().splitlines()
    local = [before.split()[-1] for before, line in itertools.pairwise(lines) if "host LOCAL" in line]
    assert HOST in local
    assert any(address.startswith("10.183.") for address in local)
    return sorted(set(local))


def _in_every_spelling(text: str) -> list[str]:
    """An IPv4 address as resolvers and libraries read it."""
    address = IPv4Address(text)
    a, b, c, d = address.packed
    low = f"{a << 8 | b:x}:{c << 8 | d:x}"
    return [
        text, f"{int(address)}", f"{int(address):#x}", f"0{int(address):o}", f"{a}.{b << 16 | c << 8 | d}",
        f"{a}.{b}.{c << 8 | d}", f"0{a:o}.0{b:o}.0{c:o}.0{d:o}", f"{a:#x}.{b:#x}.{c:#x}.{d:#x}", f"{a:#x}.{b}.0{c:o}.{d}",
        f"000{a:o}.{b}.{c}.{d}", f"{text}.",
        f"::ffff:{text}", f"::ffff:{low}", f"::{text}", f"2002:{low}::1", f"64:ff9b::{text}", f"64:ff9b:1::{low}",
        f"::ffff:0:{text}", f"2001:0:{low}::", f"fe80::5efe:{text}%eth0", f"fe80::5efe:{text}%lo", f"{text}.nip.io",
    ]  # fmt: skip


@pytest.mark.parametrize("attacked", [HOST, LAN_HOST, BRIDGE, METADATA[0]])
async def test_no_spelling_leads_inside(bench: Bench, internet: Internet, attacked: str) -> None:
    internet.zone[f"{attacked}.nip.io"] = [attacked]
    spellings = [
        *_in_every_spelling(attacked),
        *("fd00:ec2::254", "fe80::1%eth0", "ff02::1%eth0", "::", "0", "127.1", "0x7f.1"),
    ]
    with host_services(80) as came:
        assert (
            await bench.reached(OPEN, *((kind, f"{spelling}:80") for spelling in spellings for kind in ("tcp", "udp")))
            == []
        )
        assert came == []
    assert not internet.visited(attacked)
    # The spellings are good: with the address of a public server in them the same attempts get there.
    internet.zone[f"{PUBLIC}.nip.io"] = [PUBLIC]
    assert len(await bench.reached(OPEN, *(("tcp", f"{spelling}:80") for spelling in _in_every_spelling(PUBLIC)))) >= 11


async def test_the_router_is_not_reached(bench: Bench, internet: Internet) -> None:
    address = IPv4Address(await bench.serving(OPEN, "neighbour"))
    wide = EgressPolicy(EgressMode.OPEN, private_ranges=(IPv4Network("10.0.0.0/8"),))
    with contextlib.ExitStack() as stack:
        with inside(router_of(bench), internet.host):
            came = stack.enter_context(host_services())
        around = [address - 1, *(IPv4Address("10.183.0.0") + number for number in range(0, 256, 3))]
        for kind in ("tcp", "udp"):
            assert await bench.reached(wide, *((kind, f"{target}:4321") for target in around)) == []
        for known in _host_addresses():
            beside = [IPv4Address(known) + step for step in (0, 1)]
            assert await bench.reached(wide, *(("tcp", f"{target}:4321") for target in beside)) == []
        assert came == []


def router_of(bench: Bench) -> int:
    router = bench.driver.network._router
    assert router is not None
    return router._namespace


CHANGES = [*runpy.run_path(str(PROBE), run_name="probe")["CHANGES"]]


@pytest.mark.parametrize("policy", [OPEN, NO_EGRESS], ids=["open", "none"])
async def test_nothing_of_the_network_can_be_changed_from_inside(bench: Bench, policy: EgressPolicy) -> None:
    before = await bench.attempts(policy, [("interfaces", "")])
    outcomes = await bench.attempts(policy, *([("change", what)] for what in CHANGES), [("interfaces", "")])
    refusals = dict(zip(CHANGES, outcomes, strict=False))
    assert {what: said for what, said in refusals.items() if "failed: " not in said} == {}
    # They are refused, and not just wrong: the one for a device that is not there is named for what it lacks.
    wrong = {what: said for what, said in refusals.items() if not re.search("Permission|not permitted|Read-only", said)}
    assert wrong == {}
    assert outcomes[-1:] == before


async def test_other_protocols_and_source_routes_lead_nowhere(bench: Bench, internet: Internet) -> None:
    address = IPv4Address(await bench.serving(OPEN, "neighbour"))
    wide = EgressPolicy(EgressMode.OPEN, private_ranges=(IPv4Network("10.0.0.0/8"), IPv4Network("192.168.77.0/24")))
    hops = (PUBLIC, GATEWAY, HOST, str(address - 1), LAN)
    ends = (METADATA[0], HOST, PUBLIC, str(address), LAN)
    routed = [("routed", f"{hop}>{end}:9") for hop in hops for end in ends]
    others = [
        ("udplite", f"{PUBLIC}:9"), ("ping", PUBLIC), ("udp", "255.255.255.255:9"), ("udp", "192.168.77.255:9"),
        ("udp", "224.0.0.1:9"), ("udp", "239.255.255.250:9"), ("udp", "0.0.0.0:9"),
    ]  # fmt: skip
    for policy in (OPEN, wide):
        assert await bench.reached(policy, *routed, *others) == []
    assert internet.visits == []


async def test_unix_sockets_of_the_host_are_not_reached(bench: Bench) -> None:
    name = f"cupola-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(f"\0{name}")
        listening.listen()
        for policy in (OPEN, NO_EGRESS):
            assert await bench.reached(policy, ("abstract", name)) == []


async def test_what_one_sandbox_was_admitted_is_of_no_use_to_another(bench: Bench, internet: Internet) -> None:
    policy = allow("allowed.example")
    step = [("http", "http://allowed.example/"), ("tcp", f"{PUBLIC}:80")]
    first, second = await asyncio.gather(
        bench.attempts(policy, step[:1], step[1:], step[1:], name="one"),
        bench.attempts(policy, step[1:], step[1:], [("udp", f"{PUBLIC}:9")], name="two"),
    )
    assert first == [f"you are {HOST}", "reached", "reached"]
    assert all("failed" in outcome for outcome in [*second, *await bench.attempts(policy, step[1:])])


async def test_aliases_that_end_inside_are_refused(bench: Bench, internet: Internet) -> None:
    inward = {"inside": "10.1.2.3", "cloud": "169.254.169.254", "self": "127.0.0.1", "host": HOST, "lan": LAN}
    for name, target in inward.items():
        internet.zone |= {f"{name}.example": [f"@{name}.attacker.net"], f"{name}.attacker.net": [target]}
    internet.zone |= {"good.example": ["@far.attacker.net"], "far.attacker.net": [PUBLIC]}
    tries = [("http", f"http://{name}.example/") for name in inward]
    for policy in (OPEN, allow("*.example")):
        with host_services(80) as came:
            assert await bench.reached(policy, *tries) == []
            assert came == []
        assert await bench.reached(policy, ("http", "http://good.example/")) == ["http://good.example/"]
    assert {to for to, _ in internet.visits} <= {PUBLIC, DNS}


@pytest.mark.parametrize("policy", [NO_EGRESS, OPEN], ids=["none", "open"])
async def test_no_port_of_the_host_but_the_endpoint(
    internet: Internet, tmp_path: Path, spec: SandboxSpec, policy: EgressPolicy
) -> None:
    with host_services() as came, host_services(4322) as endpoint:
        async with opened(tmp_path, spec, port=4322) as bench:
            own = [
                f"{address}:4321"
                for address in ("127.0.0.1", "127.0.0.2", "0.0.0.0", "::1", "localhost", "::ffff:127.0.0.1")
            ]
            others = [f"{address}:4322" for address in (*HOST_ADDRESSES, "127.0.0.2")]
            assert await bench.reached(policy, *(("tcp", target) for target in (*own, *others))) == []
            assert (came, endpoint) == ([], [])
            assert await bench.reached(policy, ("tcp", "127.0.0.1:4322")) == ["127.0.0.1:4322"]


async def test_an_address_that_the_host_gets_later_is_not_reached(bench: Bench, internet: Internet) -> None:
    await bench.attempts(OPEN, [("interfaces", "")])
    with inside(internet.outside, internet.host):
        assert socket.if_nameindex()
    rules = Nftables()
    try:
        # A foreign program throws all rules away that it can.
        rules.run("flush ruleset")
    finally:
        rules.close()
    with host_services() as came:
        assert await bench.reached(OPEN, ("tcp", f"{HOST}:4321"), ("tcp", f"{LAN_HOST}:4321")) == []
        assert came == []
    assert await bench.reached(OPEN, ("tcp", f"{PUBLIC}:80")) == [f"{PUBLIC}:80"]


async def test_private_addresses_are_reached_only_where_they_are_listed(bench: Bench, internet: Internet) -> None:
    targets = [(kind, f"{address}:80") for address in (*REMOTE_PRIVATE, LAN) for kind in ("tcp", "mapped")]
    assert await bench.reached(OPEN, *targets) == []
    assert {to for to, _ in internet.visits} == set()
    for mode in (EgressMode.OPEN, EgressMode.ALLOW_LIST):
        policy = EgressPolicy(mode, private_ranges=(IPv4Network("10.1.2.0/24"), IPv4Network("192.168.77.0/24")))
        assert set(await bench.reached(policy, *targets)) == {"10.1.2.3:80", f"{LAN}:80"}


async def test_a_neighbour_is_not_reached(bench: Bench) -> None:
    address = await bench.serving(OPEN, "neighbour")
    assert address.startswith("10.183.0.")
    wide = EgressPolicy(EgressMode.OPEN, private_ranges=(IPv4Network("10.0.0.0/8"),))
    first = ".".join(address.split(".")[:3])
    near = [f"{first}.{number}:8088" for number in range(32)]
    for policy in (OPEN, wide):
        assert await bench.reached(policy, *(("tcp", target) for target in near)) == []
    assert await bench.reached(wide, ("tcp", "10.1.2.3:80")) == ["10.1.2.3:80"]


async def test_names_that_point_inside_are_refused(bench: Bench, internet: Internet) -> None:
    inward = ["127.0.0.1", "10.1.2.3", "169.254.169.254", "192.168.77.2", "0.0.0.0", "224.0.0.1"]
    internet.zone |= {f"n{number}.example": [PUBLIC, address] for number, address in enumerate(inward)}
    names = [("name", f"n{number}.example") for number in range(len(inward))]
    for policy in (OPEN, allow("*.example")):
        bench.told.clear()
        assert await bench.reached(policy, *names) == []
        assert len(bench.told) == len(inward)
        assert any("n1.example points to 10.1.2.3, which" in line for line in bench.told)
    listed = allow("*.example", private_ranges=("10.0.0.0/8",))
    assert await bench.reached(listed, *names) == ["n1.example"]


async def test_a_name_that_changes_its_address_leads_nowhere_else(bench: Bench, internet: Internet) -> None:
    """Rebinding between the look and the visit: the visit is to an address that was looked at."""
    answers = iter([[PUBLIC], ["10.1.2.3"], ["169.254.169.254"], [HOST]])

    class Changing(dict[str, list[str]]):
        def get(self, name: str, default: object = None) -> list[str]:
            return next(answers, [HOST]) if name == "turning.example" else []

    internet.zone = Changing()
    step = [("http", "http://turning.example/")]
    outcomes = await bench.attempts(allow("turning.example"), step, step, step, step)
    assert outcomes[0] == f"you are {HOST}"
    assert all("failed" in outcome for outcome in outcomes[1:])
    assert {to for to, _ in internet.visits} == {PUBLIC, DNS}


async def test_no_question_about_a_denied_name_leaves(bench: Bench, internet: Internet) -> None:
    denied = "c2VjcmV0.attacker.example"
    messages = [question(denied, kind) for kind in (1, 2, 5, 6, 12, 15, 16, 28, 33, 65, 99, 249, 252, 255, 257, 65535)]
    messages += [question("allowed.example", kind) for kind in (249, 251, 252, 253, 254, 255)]
    messages += [
        question(denied, 1)[:4] + b"\0\2" + question(denied, 1)[6:] + question("allowed.example", 1)[12:],
        question("allowed.example", 1)[:4] + b"\0\2" + question("allowed.example", 1)[6:] + question(denied, 1)[12:],
        question("allowed.example.attacker.example", 1), question("xallowed.example", 1),
        question("allowed.example", 1) + b"secret" * 50, question("allowed.example", 1)[:-2] + b"\0\3",
        question("allowed.example", 1)[:2] + b"\x28\0" + question("allowed.example", 1)[4:],
        question("allowed.example", 1)[:12] + b"\xc0\x0c\0\1\0\1", b"", b"\0", b"\xff" * 4000, bytes(12),
    ]  # fmt: skip
    for policy in (NO_EGRESS, allow("allowed.example:1")):
        internet.questions.clear()
        await bench.attempts(
            policy,
            [(kind, message.hex()) for message in messages for kind in ("raw", "stream") if message or kind == "raw"],
            [("name", denied), ("udp", f"{DNS}:53"), ("tcp", f"{DNS}:53"), ("tcp", f"{DNS}:853")],
            # It still works afterwards.
            [("name", "localhost")],
        )
        assert [asked for asked in internet.questions if asked != "allowed.example 1"] == []
    assert bench.told
    assert all(line.isprintable() for line in "".join(bench.told).splitlines())


def question(name: str, kind: int) -> bytes:
    labels = b"".join(bytes((len(label),)) + label.encode() for label in name.split("."))
    return struct.pack("!HHHHHH", 0xABCD, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!HH", kind, 1)


async def test_other_questions_and_large_answers_pass_for_allowed_names(bench: Bench, internet: Internet) -> None:
    policy = allow("notes.example", "large.example")
    step = [("raw", question("notes.example", 16).hex()), ("stream", question("large.example", 1).hex())]
    note, large, _ = await bench.attempts(policy, [*step, ("name", "large.example")])
    assert b"a note" in bytes.fromhex(note)
    assert int.from_bytes(bytes.fromhex(large)[8:10], "big") == 100
    assert [asked for asked in internet.questions if asked == "large.example 1"]


async def test_a_flood_of_refused_names_stays_a_few_lines(bench: Bench, internet: Internet) -> None:
    step = [("raw", question(f"n{number}\x1b[2J.attacker.example", 1).hex()) for number in range(120)]
    await bench.attempts(NO_EGRESS, step)
    assert 1 <= len(bench.told) <= 40
    assert all("\x1b" not in line and "\\027" in line for line in bench.told)
    assert internet.questions == []


async def test_no_icmp_and_no_foreign_source(bench: Bench, internet: Internet) -> None:
    address = await bench.serving(OPEN, "neighbour")
    sources = [("from", f"{source}>{PUBLIC}:9") for source in (address, HOST, OTHER, "127.0.0.1", "10.183.0.2")]
    outcomes = await bench.attempts(OPEN, [*sources, ("ping", PUBLIC), ("ping", HOST), ("ping", GATEWAY)])
    assert all("failed" in outcome for outcome in outcomes)
    assert internet.visits == []


@pytest.mark.parametrize("policy", [NO_EGRESS, OPEN, allow("allowed.example")], ids=["none", "open", "listed"])
async def test_the_endpoint_is_reached_under_every_policy(
    internet: Internet, tmp_path: Path, spec: SandboxSpec, policy: EgressPolicy
) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.read()).upper())
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with opened(tmp_path, spec, port=port) as bench:
            outcomes = await bench.attempts(policy, [("echo", str(port))] * 150)
            assert outcomes == ["HELLO"] * 150
            sandbox = await bench.driver.start(
                replace(spec, name="listening", arguments=("busybox", "sleep", "100")), lambda *_: None
            )
            assert sandbox.listening_ports() == ()


# What follows looks at the rules by themselves, without a container: sockets are opened in a sandbox's namespace.


@contextlib.asynccontextmanager
async def networks(tmp_path: Path) -> AsyncIterator[Network]:
    before = left_over()
    (tmp_path / "run").mkdir()
    made = Network(f"alone{os.getpid()}", tmp_path / "run", NetworkSettings(None, IPv4Network("10.183.0.0/24"), (DNS,)))
    await made.open()
    try:
        yield made
    finally:
        await made.close()
    assert left_over() == before


def send(namespace: int, back: int, work: Callable[[], object]) -> None:
    with inside(namespace, back):
        work()


def datagram(source_port: int, to: tuple[str, int]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(("", source_port))
        opened.sendto(b"hello", to)


def forged(source: str, to: tuple[str, int]) -> None:
    """A datagram with any source address, as only root with raw sockets can send it."""
    payload = struct.pack("!HHHH", 5555, to[1], 13, 0) + b"hello"
    header = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 1, 0, 64, 17, 0, socket.inet_aton(source), socket.inet_aton(to[0])
    )
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as opened:
        opened.sendto(header + payload, (to[0], 0))


async def visits(internet: Internet, marker: int) -> list[tuple[str, str]]:
    """What was seen outside, once a last datagram by another way has come in after all others."""
    with inside(internet.host, internet.host):
        datagram(marker, (OTHER, 9))
    async with asyncio.timeout(5):
        while not internet.visited(OTHER):
            await asyncio.sleep(0.005)
    return [visit for visit in internet.visits if visit[0] != OTHER]


async def test_a_forged_source_does_not_leave(internet: Internet, tmp_path: Path) -> None:
    async with networks(tmp_path) as made:
        one = await made.attach("one", OPEN, "agent", print)
        two = await made.attach("two", OPEN, "agent", print)
        addresses = []
        for network in (one, two):
            with inside(network.namespace, internet.host), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
                asking.connect((PUBLIC, 9))
                addresses.append(asking.getsockname()[0])
        for source in (addresses[1], HOST, PUBLIC, "10.9.9.9", "127.0.0.1", BRIDGE):
            send(one.namespace, internet.host, lambda source=source: forged(source, (PUBLIC, 9)))  # type: ignore[misc]
        assert await visits(internet, 6001) == []
        internet.visits.clear()
        send(one.namespace, internet.host, lambda: forged(addresses[0], (PUBLIC, 9)))
        assert await visits(internet, 6002) == [(PUBLIC, HOST)]
        await made.detach("one")
        await made.detach("two")


async def test_what_a_sandbox_had_open_is_of_no_use_to_the_next_with_its_address(
    internet: Internet, tmp_path: Path
) -> None:
    async with networks(tmp_path) as made:
        for policy, expected in ((OPEN, [(PUBLIC, HOST)]), (allow("other.example"), [])):
            # Connections are known by their addresses and ports, so the second sandbox needs the first one's address.
            seen: set[str] = set()
            for number in range(300):
                name = f"s{number}"
                chosen = OPEN if not seen else policy
                network = await made.attach(name, chosen, "agent", print)
                with inside(network.namespace, internet.host):
                    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
                        asking.connect((PUBLIC, 9))
                        address = asking.getsockname()[0]
                    if not seen:
                        datagram(7000, (PUBLIC, 9))
                        first = address
                    elif address == first:
                        internet.visits.clear()
                        datagram(7000, (PUBLIC, 9))
                await made.detach(name)
                if seen and address == first:
                    break
                seen.add(address)
            assert address == first
            assert await visits(internet, 6003) == expected
            internet.visits.clear()


async def test_one_sandbox_cannot_use_up_the_connections_of_all(
    internet: Internet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(firewall, "MOST_CONNECTIONS", 20)
    async with networks(tmp_path) as made:
        one = await made.attach("one", OPEN, "agent", print)
        two = await made.attach("two", OPEN, "agent", print)
        with inside(one.namespace, internet.host):
            for number in range(60):
                with contextlib.suppress(OSError):
                    datagram(7100 + number, (PUBLIC, 9))
        assert len(await visits(internet, 6004)) == 20
        internet.visits.clear()
        send(two.namespace, internet.host, lambda: datagram(7100, (PUBLIC, 9)))
        assert await visits(internet, 6005) == [(PUBLIC, HOST)]
        await made.detach("one")
        await made.detach("two")


async def test_connections_are_opened_at_a_rate(
    internet: Internet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(firewall, "CONNECTIONS_PER_SECOND", 1)
    async with networks(tmp_path) as made:
        one = await made.attach("one", OPEN, "agent", print)
        with contextlib.ExitStack() as opening:
            with inside(one.namespace, internet.host):
                for _ in range(40):
                    connecting = opening.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
                    connecting.setblocking(False)
                    connecting.connect_ex((PUBLIC, 80))
            async with asyncio.timeout(5):
                while not internet.visited(PUBLIC):
                    await asyncio.sleep(0.005)
            seen = await visits(internet, 6006)
        assert 1 <= len(seen) <= 20
        await made.detach("one")


async def test_forwarding_is_opened_for_nobody_else(internet: Internet, tmp_path: Path) -> None:
    def ask_the_lan() -> None:
        with inside(internet.outside, internet.host):
            datagram(6100, (LAN, 9))

    async def lan_visits() -> list[tuple[str, str]]:
        with inside(internet.host, internet.host):
            datagram(6101, (LAN, 9))
        async with asyncio.timeout(5):
            while (LAN, LAN_HOST) not in internet.visits:
                await asyncio.sleep(0.005)
        return [visit for visit in internet.visits if visit != (LAN, LAN_HOST)]

    async with networks(tmp_path) as made:
        assert get_option("ipv4/conf/wan/forwarding") == "1"
        ask_the_lan()
        assert await lan_visits() == []
        await made.attach("one", OPEN, "agent", print)
        internet.visits.clear()
        ask_the_lan()
        assert await lan_visits() == []
        await made.detach("one")
    assert get_option("ipv4/conf/wan/forwarding") == "0"
    # Where the host forwarded before, it still does.
    set_option("ipv4/conf/wan/forwarding", "1")
    try:
        (tmp_path / "second").mkdir()
        async with networks(tmp_path / "second"):
            internet.visits.clear()
            ask_the_lan()
            assert (LAN, GATEWAY) in await lan_visits()
        assert get_option("ipv4/conf/wan/forwarding") == "1"
    finally:
        set_option("ipv4/conf/wan/forwarding", "0")


async def test_two_installations_side_by_side(internet: Internet, tmp_path: Path, spec: SandboxSpec) -> None:
    (tmp_path / "other").mkdir()
    async with opened(tmp_path / "other", spec) as one:
        settings = NetworkSettings(None, IPv4Network("10.183.0.0/24"), (DNS,))
        second = OciDriver(f"nex{os.getpid()}", tmp_path / "other" / "run2", tmp_path / "data2", None, settings)
        await second.open()
        two = Bench(second, spec)
        assert await one.reached(OPEN, ("tcp", f"{PUBLIC}:80")) == [f"{PUBLIC}:80"]
        assert await two.reached(OPEN, ("tcp", f"{PUBLIC}:80")) == [f"{PUBLIC}:80"]
        address = await one.serving(OPEN, "neighbour")
        wide = EgressPolicy(EgressMode.OPEN, private_ranges=(IPv4Network("10.0.0.0/8"),))
        assert await two.reached(wide, *(("tcp", f"{known}:8088") for known in (address, *_host_addresses()))) == []
        await second.close()
        assert get_option("ipv4/conf/wan/forwarding") == "1"
        assert await one.reached(OPEN, ("tcp", f"{PUBLIC}:80")) == [f"{PUBLIC}:80"]


async def test_a_network_that_the_host_uses_is_not_taken(internet: Internet, tmp_path: Path, spec: SandboxSpec) -> None:
    settings = NetworkSettings(None, IPv4Network("192.168.0.0/16"), (DNS,))
    driver = OciDriver(f"taken{os.getpid()}", tmp_path / "run", tmp_path / "data", None, settings)
    await driver.open()
    assert driver.network.no_egress is not None
    assert "192.168.77.0/24 by lan" in driver.network.no_egress
    assert "sandbox_network" in driver.network.no_egress
    with pytest.raises(SandboxError, match="egress policy is open, which this host cannot provide"):
        await driver.start(replace(spec, egress=OPEN), lambda *_: None)
    assert await Bench(driver, spec).attempts(NO_EGRESS, [("interfaces", "")]) == ["['lo'] ['lo']"]
    await driver.close()


async def test_beside_a_host_that_drops_what_it_forwards(internet: Internet, tmp_path: Path, spec: SandboxSpec) -> None:
    """As Docker sets it up; the rules that make room are those of the documentation."""
    rules = Nftables()
    rules.run("table ip filter { chain FORWARD { type filter hook forward priority filter; policy drop; }; }")
    try:
        async with opened(tmp_path, spec) as bench:
            assert bench.driver.network.warning is not None
            assert await bench.reached(OPEN, ("tcp", f"{PUBLIC}:80")) == []
            rules.run(
                'add rule ip filter FORWARD iifname "cup-*" accept\n'
                'add rule ip filter FORWARD oifname "cup-*" ct state established,related accept'
            )
            assert await bench.reached(OPEN, ("tcp", f"{PUBLIC}:80")) == [f"{PUBLIC}:80"]
        async with opened(tmp_path, spec) as bench:
            assert bench.driver.network.warning is None
    finally:
        rules.run("delete table ip filter")
        rules.close()


FETCH = """
import asyncio, os, ssl, urllib.request
from cupola_agent import Agent
agent = Agent()
server = os.environ["FOUNDRY_PROJECT_ENDPOINT"].partition("/api/")[0]

def fetch(url):
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with urllib.request.urlopen(url.replace("SERVER", server), timeout=3, context=context) as answer:
            return answer.read().decode()
    except OSError as error:
        return f"failed: {error}"

@agent.responses
async def reply(input: str):
    yield await asyncio.to_thread(fetch, input)

agent.run()
"""


RESPONSES = "/agents/fetch/endpoint/protocols/openai/responses"


def fetched(http: httpx2.Client, session: str | None, url: str, *, tier: str = "") -> str:
    """What an agent got; in a new session of the platform's choice where none is named."""
    named = {} if session is None else {"agent_session_id": session}
    answer = http.post(RESPONSES, json={"input": url, **named})
    assert answer.status_code == 200, answer.text
    assert f'tier;desc="{tier}' in answer.headers["server-timing"]
    text: str = answer.json()["output"][0]["content"][0]["text"]
    return text


HOLD = """
import os, socket, urllib.parse
from cupola_agent import Agent
agent = Agent()
server = urllib.parse.urlsplit(os.environ["FOUNDRY_PROJECT_ENDPOINT"])
held = []

@agent.responses
async def reply(input: str):
    held.extend(socket.create_connection((server.hostname, server.port), 5) for _ in range(int(input)))
    yield str(len(held))

agent.run()
"""


def test_connections_to_the_platform_do_not_use_up_its_files(
    start_platform: Callable[..., Platform], agent_image: Callable[[str, str], str]
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        platform = start_platform(CUPOLA_EGRESS="none")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert platform.deploy("hold", agent_image("hold", HOLD))["status"] == "active"
    with platform.http() as http:
        for session in ("session-one", "session-two", "session-three"):
            answer = http.post(
                "/agents/hold/endpoint/protocols/openai/responses", json={"input": "100", "agent_session_id": session}
            )
            assert answer.json()["output"][0]["content"][0]["text"] == "100"


def test_a_project_has_a_policy(
    internet: Internet, start_platform: Callable[..., Platform], agent_image: Callable[[str, str], str]
) -> None:
    platform = start_platform(CUPOLA_DNS_SERVERS=DNS)
    assert platform.deploy("fetch", agent_image("fetch", FETCH))["status"] == "active"
    with platform.http() as http:
        assert http.get("/egress").json() == {"mode": "open", "names": [], "private_ranges": []}
        assert fetched(http, "session-one", "http://allowed.example/") == f"you are {HOST}"
        assert fetched(http, "session-one", "SERVER/healthz") == '{"status":"healthy"}'
        # By plain HTTP the server is on the host's loopback alone.
        assert "failed" in fetched(http, "session-one", f"{str(http.base_url).partition('/api/')[0]}/healthz")
        listed = {"mode": "allow-list", "names": ["other.example"], "private_ranges": []}
        assert http.put("/egress", json=listed).json() == listed
        assert fetched(http, "session-one", "http://allowed.example/") == f"you are {HOST}"
        assert "failed" in fetched(http, "session-two", "http://allowed.example/")
        assert fetched(http, "session-two", "http://other.example/") == f"you are {HOST}"
        assert fetched(http, "session-two", "SERVER/healthz") == '{"status":"healthy"}'
        shown = platform.run("egress", "set", "none")
        assert (shown.returncode, shown.stdout.split()) == (0, ["Mode", "none"]), shown.stderr
        assert http.get("/egress").json()["mode"] == "none"
        assert "failed" in fetched(http, "session-three", "http://other.example/")
        assert fetched(http, "session-three", "SERVER/healthz") == '{"status":"healthy"}'
        log = http.get("/agents/fetch/sessions/session-three:logstream", params={"follow": "false"}).text
    entries = [json.loads(line.removeprefix("data: ")) for line in log.splitlines() if line.startswith("data: ")]
    told = [entry["message"] for entry in entries if entry["stream"] == "status"]
    refusal = "The egress policy (none) does not allow the name other.example."
    assert told.count(refusal) == 1
    assert f" status {refusal}\n" in platform.run("logs", "fetch", "session-three").stdout
    wrong = platform.run("egress", "set", "allow-list", "https://a.example")
    assert (wrong.returncode, "names[0]: 'https://a.example' has no port" in wrong.stderr) == (1, True)
    assert {asked.partition(" ")[0] for asked in internet.questions} == {"allowed.example", "other.example"}


def test_sandboxes_made_ahead_follow_a_new_policy(
    internet: Internet, start_platform: Callable[..., Platform], agent_image: Callable[[str, str], str]
) -> None:
    platform = start_platform(CUPOLA_DNS_SERVERS=DNS, CUPOLA_POOL_SIZE="2")
    assert platform.deploy("fetch", agent_image("fetch", FETCH))["status"] == "active"

    def ready() -> bool:
        end = time.monotonic() + 30
        while time.monotonic() < end:
            if re.search(r'^cupola_sandboxes\{status="started_ahead"\} [1-9]', http.get(metrics).text, re.MULTILINE):
                return True
            time.sleep(0.02)
        return False

    with platform.http() as http:
        metrics = str(http.base_url).partition("/api/")[0] + "/metrics"
        assert ready()
        assert fetched(http, None, "http://allowed.example/", tier="started") == f"you are {HOST}"
        assert ready()
        assert http.put("/egress", json={"mode": "none"}).status_code == 200
        assert "failed" in fetched(http, None, "http://allowed.example/")
        assert ready()
        assert "failed" in fetched(http, None, "http://allowed.example/", tier="started")
        assert http.put("/egress", json={"mode": "open"}).status_code == 200
        assert fetched(http, None, "http://allowed.example/") == f"you are {HOST}"
        assert ready()
        assert fetched(http, None, "http://allowed.example/", tier="started") == f"you are {HOST}"


def test_nothing_is_left_after_a_kill(
    internet: Internet, start_platform: Callable[..., Platform], agent_image: Callable[[str, str], str]
) -> None:
    before = left_over()
    platform = start_platform(CUPOLA_DNS_SERVERS=DNS)
    assert platform.deploy("fetch", agent_image("fetch", FETCH))["status"] == "active"
    with platform.http() as http:
        assert fetched(http, "session-one", "http://allowed.example/") == f"you are {HOST}"
    assert left_over() != before
    platform.kill()
    # The container outlives the server, and has no way out any more.
    assert any(trace.startswith("process") for trace in traces(platform.data))
    end = time.monotonic() + 20
    while left_over() != before and time.monotonic() < end:
        time.sleep(0.01)
    assert left_over() == before
    # What the kernel does not undo by itself, the next server on this machine does, whatever its data folder.
    assert get_option("ipv4/conf/wan/forwarding") == "1"
    other = start_platform(CUPOLA_EGRESS="none")
    # What the dead one had in its own data folder is for its own next start.
    assert all(trace.startswith(str(platform.data)) for trace in traces(platform.data))
    assert other.stop() == 0
    assert get_option("ipv4/conf/wan/forwarding") == "0"
    again = start_platform(platform.data, CUPOLA_DNS_SERVERS=DNS)
    with again.http() as http:
        assert fetched(http, "session-one", "http://allowed.example/") == f"you are {HOST}"
    assert again.stop() == 0
    assert traces(platform.data) == []


def without_rules_of_the_router(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = (
        'table ip router { chain out { type nat hook postrouting priority srcnat; oifname "uplink" masquerade; }; }'
    )
    monkeypatch.setattr(firewall, "router_rules", lambda sandboxes: nothing)
    for name in ("add_sandbox", "remove_sandbox", "admit", "set_host_addresses"):
        monkeypatch.setattr(firewall, name, lambda *_: "")


def without_rules_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        firewall, "host_rules",
        lambda table, interface, router: f"table {table} {{ flags owner; chain out {{ type nat hook postrouting priority "
        f"srcnat; ip saddr {router} masquerade; }}; }}",
    )  # fmt: skip
    monkeypatch.setattr(firewall, "set_switched_on", lambda *_: "")


@pytest.mark.parametrize("weaken", [without_rules_of_the_router, without_rules_of_the_host], ids=["host", "router"])
async def test_host_and_router_each_keep_sandboxes_from_the_host_alone(
    internet: Internet,
    tmp_path: Path,
    spec: SandboxSpec,
    monkeypatch: pytest.MonkeyPatch,
    weaken: Callable[[pytest.MonkeyPatch], None],
) -> None:
    weaken(monkeypatch)
    async with opened(tmp_path, spec) as bench:
        assert await bench.reached(OPEN, ("tcp", f"{PUBLIC}:80")) == [f"{PUBLIC}:80"]
        with host_services() as came:
            targets = [(kind, f"{known}:4321") for known in _host_addresses() for kind in ("tcp", "udp", "mapped")]
            assert await bench.reached(OPEN, *targets) == []
            assert came == []


async def test_the_rules_are_what_holds(
    internet: Internet, tmp_path: Path, spec: SandboxSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without them, and with everything else as it is, the attempts of the tests above succeed."""
    without_rules_of_the_router(monkeypatch)
    without_rules_of_the_host(monkeypatch)
    async with opened(tmp_path, spec) as bench:
        address = await bench.serving(OPEN, "neighbour")
        router = IPv4Address(address) - 1
        with contextlib.ExitStack() as stack:
            came = stack.enter_context(host_services())
            with inside(router_of(bench), internet.host):
                at_the_router = stack.enter_context(host_services(4322))
            targets = [
                ("tcp", f"{HOST}:4321"), ("mapped", f"{BRIDGE}:4321"), ("tcp", f"{LAN_HOST}:4321"),
                ("tcp", f"{int(IPv4Address(HOST))}:4321"), ("tcp", f"{router}:4322"),
                ("tcp", f"{address}:8088"), ("tcp", f"{LAN}:80"), ("tcp", f"{OTHER}:80"), ("udp", f"{DNS}:9"),
                *(("tcp", f"{known}:80") for known in (*METADATA, *REMOTE_PRIVATE)),
                ("tcp", "0xa9fea9fe:80"), ("http", f"http://{PUBLIC}/to/169.254.169.254"),
            ]  # fmt: skip
            outcomes = await bench.attempts(allow("allowed.example"), targets)
            assert [outcome for outcome in outcomes if "failed" in outcome] == []
            assert (len(came), len(at_the_router)) == (4, 1)
