from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest

from cupola.domain.egress import EgressMode, EgressPolicy
from cupola.sandbox.oci.network.dns_message import MOST_BYTES, Query, Reply, build_question, parse_reply
from cupola.sandbox.oci.network.dns_server import (
    BURST,
    MOST_CONNECTIONS,
    MOST_QUESTIONS,
    QUESTIONS_PER_SECOND,
    DnsServer,
)
from cupola.sandbox.oci.network.refusals import Refusals
from cupola.sandbox.oci.network.resolver import Resolver
from tests.unit.sandbox.oci.network.messages import address, answer, header, question


class Names:
    """A name service on the loopback, whose answers can be held up."""

    def __init__(self) -> None:
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.udp.bind(("127.0.0.1", 0))
        tcp = socket.create_server(("127.0.0.1", 0))
        tcp.setblocking(False)
        self.tcp_address: tuple[str, int] = tcp.getsockname()
        self.asked = 0
        self.going = asyncio.Event()
        self.going.set()
        resolver = Resolver(EgressPolicy(EgressMode.OPEN), "agent", self, self.admit, Refusals(lambda _: None))
        self.server = DnsServer(resolver, self.udp, tcp)

    async def ask(self, query: Query) -> Reply:
        self.asked += 1
        await self.going.wait()
        return parse_reply(answer(build_question(1, query), *[address("198.51.100.1")] * 60), 1, query)

    async def admit(self, *_: object) -> None:
        raise AssertionError

    async def until_asked(self, count: int) -> None:
        async with asyncio.timeout(5):
            while self.asked < count:
                await asyncio.sleep(0.001)


@pytest.fixture
async def names() -> AsyncIterator[Names]:
    made = Names()
    made.server.open()
    yield made
    await made.server.close()


@pytest.fixture
async def client(names: Names) -> AsyncIterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as asking:
        asking.connect(names.udp.getsockname())
        yield asking


async def received(client: socket.socket) -> bytes:
    return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(client, 65536), 5)


async def exchanged(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, message: bytes) -> bytes:
    writer.write(len(message).to_bytes(2, "big") + message)
    size = int.from_bytes(await reader.readexactly(2), "big")
    return await reader.readexactly(size)


async def test_questions_by_udp_and_tcp(names: Names, client: socket.socket) -> None:
    client.send(question("a.example", number=77))
    short = await received(client)
    assert (header(short)[0], header(short)[1] & 0x0200, header(short)[3]) == (77, 0x0200, 0)
    reader, writer = await asyncio.open_connection(*names.tcp_address)
    for number in (1, 2):
        whole = await exchanged(reader, writer, question("a.example", number=number))
        assert (header(whole)[0], header(whole)[3]) == (number, 60)
    writer.close()


async def test_noise_is_not_answered_and_does_no_harm(names: Names, client: socket.socket) -> None:
    for noise in (b"", b"\0", bytes(12), b"\xff" * 9000, question("a.example") + bytes(MOST_BYTES)):
        client.send(noise)
    client.send(question("localhost", number=9))
    while True:
        data = await received(client)
        if header(data)[0] == 9:
            break
        assert header(data)[1] & 0xF == 1


@pytest.mark.parametrize("noise", [b"\xff\xff" + bytes(100), b"\0\1\0", b"\0\0", b"\0\x0c" + b"\xff" * 12])
async def test_noise_by_tcp_ends_its_connection_alone(names: Names, noise: bytes) -> None:
    reader, writer = await asyncio.open_connection(*names.tcp_address)
    writer.write(noise)
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()
    reader, writer = await asyncio.open_connection(*names.tcp_address)
    assert await exchanged(reader, writer, question("localhost"))
    writer.close()


async def test_few_questions_wait_at_a_time(names: Names, client: socket.socket) -> None:
    names.going.clear()
    for number in range(2 * MOST_QUESTIONS):
        client.send(question("a.example", number=number))
    await names.until_asked(MOST_QUESTIONS)
    await asyncio.sleep(0.02)
    assert names.asked == MOST_QUESTIONS
    names.going.set()
    assert len({header(await received(client))[0] for _ in range(MOST_QUESTIONS)}) == MOST_QUESTIONS


async def test_a_flood_is_answered_at_a_rate(names: Names, client: socket.socket) -> None:
    answered = 0
    loop = asyncio.get_running_loop()
    began = loop.time()
    for number in range(3 * BURST):
        client.send(question("localhost", number=number))
        await asyncio.sleep(0)
    await asyncio.sleep(0.05)
    while True:
        try:
            client.recv(1000)
        except BlockingIOError:
            break
        answered += 1
    assert 1 <= answered <= BURST + 1 + QUESTIONS_PER_SECOND * (loop.time() - began)


async def test_few_connections_are_served_at_a_time(names: Names) -> None:
    held = [await asyncio.open_connection(*names.tcp_address) for _ in range(MOST_CONNECTIONS)]
    for reader, writer in held:
        assert await exchanged(reader, writer, question("localhost"))
    reader, writer = await asyncio.open_connection(*names.tcp_address)
    waiting = asyncio.create_task(exchanged(reader, writer, question("localhost")))
    await asyncio.sleep(0.02)
    assert not waiting.done()
    held[0][1].close()
    assert await asyncio.wait_for(waiting, 5)
    for _, opened in (*held, (reader, writer)):
        opened.close()


async def test_closing_ends_everything() -> None:
    names = Names()
    names.server.open()
    names.going.clear()
    reader, writer = await asyncio.open_connection(*names.tcp_address)
    writer.write(len(question("a.example")).to_bytes(2, "big") + question("a.example"))
    await names.until_asked(1)
    await asyncio.wait_for(names.server.close(), 5)
    assert await reader.read() == b""
    writer.close()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*names.tcp_address)
