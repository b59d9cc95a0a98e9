from __future__ import annotations

import struct
from ipaddress import IPv4Address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cupola.sandbox.oci.network.dns_message import (
    LONGEST_TTL,
    MOST_BYTES,
    MOST_RECORDS,
    UDP_BYTES,
    Code,
    Malformed,
    build_answer,
    build_question,
    own_reply,
    parse_query,
    parse_reply,
)
from tests.unit.sandbox.oci.network import messages
from tests.unit.sandbox.oci.network.messages import address, answer, header, question, record

ASKED = parse_query(question("Example.com"))
BUILT = build_question(7, ASKED)


def refusal(data: bytes) -> bytes | None:
    with pytest.raises(Malformed) as caught:
        parse_query(data)
    return caught.value.reply


# What a sandbox asks


def test_a_question_is_read() -> None:
    query = parse_query(question("Example.COM", messages.TXT, 0xBEEF, space=4096))
    assert (query.id, query.labels, query.type) == (0xBEEF, (b"Example", b"COM"), messages.TXT)
    assert (query.name, query.space) == ("example.com", UDP_BYTES)
    assert query.question == question("Example.COM", messages.TXT)[12:]
    assert parse_query(question("a.example")).space is None
    assert parse_query(question("a.example", space=100)).space == 512
    assert parse_query(question("")).name == ""


def test_characters_that_are_none_of_a_name_are_escaped() -> None:
    body = b"\x07a.b\\\x00\xff \x01c\0" + struct.pack("!HH", 1, 1)
    query = parse_query(question("x")[:12] + body)
    assert query.name == "a\\046b\\092\\000\\255\\032.c"


def test_what_is_no_question_gets_no_answer() -> None:
    for data in (b"", b"\0", bytes(11), question("a.example") + bytes(MOST_BYTES), answer(question("a.example"))):
        assert refusal(data) is None


@pytest.mark.parametrize(
    "counts", [(0, 0, 0, 0), (2, 0, 0, 0), (65535, 0, 0, 0), (1, 1, 0, 0), (1, 0, 1, 0), (1, 0, 0, 2), (1, 0, 0, 1)]
)
def test_wrong_counts_are_a_format_error(counts: tuple[int, int, int, int]) -> None:
    data = struct.pack("!HHHHHH", 5, 0x0100, *counts) + question("a.example")[12:]
    reply = refusal(data)
    assert reply is not None
    assert header(reply) == (5, 0x8181, 0, 0, 0, 0)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"\x05ab", b"\xc0\x0c\0\1\0\1", b"\x01a\xc0\x0c\0\1\0\1", b"\x40" + b"a" * 64 + b"\0\0\1\0\1",
        (b"\x3f" + b"a" * 63) * 4 + b"\0\0\1\0\1", b"\x01a\0\0\1", b"\x01a\0\0\1\0", b"\x01a", b"\x80a\0\0\1\0\1",
    ],
)  # fmt: skip
def test_names_that_are_cut_off_too_long_or_point_somewhere_are_a_format_error(body: bytes) -> None:
    reply = refusal(question("a")[:12] + body)
    assert reply is not None
    assert messages.code(reply) == Code.FORMAT_ERROR


def test_the_longest_name_is_read() -> None:
    body = (b"\x3f" + b"a" * 63) * 3 + b"\x3d" + b"b" * 61 + b"\0\0\1\0\1"
    assert len(parse_query(question("a")[:12] + body).name) == 253


def test_other_operations_and_families_are_refused() -> None:
    update = struct.pack("!HHHHHH", 5, 0x2800, 1, 0, 0, 0) + question("a.example")[12:]
    chaos = question("a.example")[:-2] + b"\0\3"
    codes = [messages.code(refusal(data) or b"") for data in (update, chaos)]
    assert codes == [Code.NOT_IMPLEMENTED, Code.REFUSED]


def test_an_extension_that_is_none_is_a_format_error() -> None:
    plain = question("a.example")
    head = plain[:10] + b"\0\1"
    for extension in (b"\0\0\1\0\0\0\0\0\0\0\0", b"\x01a" + bytes(10), b"\0\0\x29\x10\0\0\0\0\0\0\5ab", b"\0\0\x29"):
        assert messages.code(refusal(head + plain[12:] + extension) or b"") == Code.FORMAT_ERROR


@given(st.binary(max_size=600))
@example(question("a.example", space=1232))
@example(b"\xff" * 600)
def test_any_bytes_are_a_question_or_malformed(data: bytes) -> None:
    reply = None
    try:
        query = parse_query(data)
    except Malformed as error:
        query, reply = None, error.reply
    if query is None:
        assert reply is None or (reply[:2] == data[:2] and len(reply) <= len(data))
        return
    assert query.question in data
    assert len(query.question) <= 255 + 4


@given(st.binary(max_size=80), st.integers(0, 20), st.integers(0, 30))
def test_a_question_with_bytes_changed_is_a_question_or_malformed(noise: bytes, at: int, kept: int) -> None:
    data = question("some.where.example", space=1232)
    try:
        query = parse_query(data[: 12 + at] + noise + data[12 + kept :])
    except Malformed:
        return
    # What is asked of others has nothing of it but name and type.
    built = build_question(1, query)
    assert built[12:].startswith(query.question.lower()[:-4])
    assert len(built) == 12 + len(query.question) + 11


# What is asked of others


def test_only_name_and_type_are_passed_on() -> None:
    secret = struct.pack("!HHHHHH", 0xFFFF, 0x87FF & ~0x8000 & ~0x7800, 1, 0, 0, 1) + question("SeCrEt.Example")[12:]
    options = b"\0" + struct.pack("!HHIH", messages.OPT, 4096, 0xDEADBEEF, 6) + b"secret"
    built = build_question(7, parse_query(secret + options + b"more"))
    assert built == struct.pack("!HHHHHH", 7, 0x0100, 1, 0, 0, 1) + messages.name("secret.example") + b"\0\1\0\1" + (
        b"\0" + struct.pack("!HHIH", messages.OPT, UDP_BYTES, 0, 0)
    )


# What others answer


def test_an_answer_is_read() -> None:
    alias = record(messages.name("other.example"), messages.CNAME, ttl=50)
    data = answer(BUILT, alias, address("198.51.100.1", 300), address("198.51.100.2", 10))
    reply = parse_reply(data, 7, ASKED)
    assert (reply.code, reply.truncated, reply.count, reply.least_ttl) == (0, False, 3, 10)
    assert reply.addresses == (IPv4Address("198.51.100.1"), IPv4Address("198.51.100.2"))
    assert reply.section == data[12 + len(ASKED.question) :]


def test_authorities_and_additional_records_are_left_out() -> None:
    data = answer(BUILT, address("198.51.100.1"))
    more = data[:8] + b"\0\1\0\1" + data[12:] + address("10.0.0.1") + address("10.0.0.2")
    reply = parse_reply(more, 7, ASKED)
    assert reply.addresses == (IPv4Address("198.51.100.1"),)
    assert reply.section == address("198.51.100.1")


def test_a_long_time_to_live_is_shortened() -> None:
    reply = parse_reply(answer(BUILT, address("198.51.100.1", 2**32 - 1)), 7, ASKED)
    assert reply.least_ttl == LONGEST_TTL
    assert reply.section == address("198.51.100.1", LONGEST_TTL)


def test_what_answers_another_question_is_malformed() -> None:
    good = answer(BUILT, address("198.51.100.1"))
    other = answer(build_question(7, parse_query(question("other.com"))), address("198.51.100.1"))
    text = answer(build_question(7, parse_query(question("example.com", messages.TXT))))
    wrong = [
        b"", good[:11], good[:20], b"\0\x08" + good[2:], other, text, good[:2] + b"\x01\x80" + good[4:],
        good[:2] + b"\xa8\x80" + good[4:], good[:4] + b"\0\2" + good[6:], good[:4] + b"\0\0" + good[6:],
    ]  # fmt: skip
    for data in wrong:
        with pytest.raises(Malformed):
            parse_reply(data, 7, ASKED)


def test_records_that_are_cut_off_or_too_many_are_malformed() -> None:
    one = address("198.51.100.1")
    wrong = [
        answer(BUILT, one, count=2), answer(BUILT, one[:-1]), answer(BUILT, one[:5]), answer(BUILT, b"\xc0"),
        answer(BUILT, record(b"abc")), answer(BUILT, record(b"abcde")), answer(BUILT, record(b"")),
        answer(BUILT, count=MOST_RECORDS + 1), answer(BUILT, count=65535), answer(BUILT, b"\x80" + one[2:]),
        answer(BUILT, b"\x05ab"), answer(BUILT, *[one] * (MOST_RECORDS + 1)),
    ]  # fmt: skip
    for data in wrong:
        with pytest.raises(Malformed):
            parse_reply(data, 7, ASKED)
    assert parse_reply(answer(BUILT, *[one] * MOST_RECORDS), 7, ASKED).count == MOST_RECORDS


def test_pointers_in_circles_are_not_followed() -> None:
    at = 12 + len(ASKED.question)
    to_itself = struct.pack("!H", 0xC000 | at) + address("198.51.100.1")[2:]
    data = answer(BUILT, record(struct.pack("!H", 0xC000 | at), messages.CNAME), to_itself)
    assert parse_reply(data, 7, ASKED).addresses == (IPv4Address("198.51.100.1"),)


def test_addresses_of_other_families_are_none() -> None:
    assert parse_reply(answer(BUILT, record(b"\x0a\0\0\1", family=3)), 7, ASKED).addresses == ()


def test_a_truncated_answer_has_nothing_in_it() -> None:
    reply = parse_reply(answer(BUILT, address("198.51.100.1"), flags=0x8380), 7, ASKED)
    assert (reply.truncated, reply.addresses, reply.count, reply.section) == (True, (), 0, b"")


@given(st.binary(max_size=200), st.integers(0, 300))
def test_any_answer_is_read_or_malformed(noise: bytes, count: int) -> None:
    data = answer(BUILT, noise, count=count)
    try:
        reply = parse_reply(data, 7, ASKED)
    except Malformed:
        return
    assert len(reply.section) <= len(noise)
    assert len(reply.addresses) <= reply.count == count
    assert 0 <= reply.least_ttl <= LONGEST_TTL


@given(st.binary(max_size=300))
def test_any_bytes_are_an_answer_or_malformed(data: bytes) -> None:
    with pytest.raises(Malformed):
        parse_reply(data, 7, parse_query(question("a.name.that.does.not.come.up.by.chance.example")))


# What the sandbox is answered


def test_the_sandboxs_own_question_and_number_are_in_its_answer() -> None:
    query = parse_query(question("ExAmPlE.com", number=0xABCD, space=1232))
    reply = parse_reply(answer(BUILT, address("198.51.100.1")), 7, query)
    data = build_answer(query, reply, udp=True)
    assert header(data) == (0xABCD, 0x8180, 1, 1, 0, 1)
    assert data[12:].startswith(query.question + address("198.51.100.1"))


def test_an_answer_too_long_for_udp_is_cut_off_and_says_so() -> None:
    records = [address(f"198.51.100.{number}") for number in range(100)]
    for asked, most in ((question("example.com"), 512), (question("example.com", space=9999), UDP_BYTES)):
        query = parse_query(asked)
        reply = parse_reply(answer(BUILT, *records), 7, query)
        short = build_answer(query, reply, udp=True)
        assert len(short) <= most
        assert header(short)[1] & 0x0200
        assert header(short)[3] == 0
        whole = build_answer(query, reply, udp=False)
        assert (header(whole)[1] & 0x0200, header(whole)[3]) == (0, 100)


def test_an_answer_of_our_own() -> None:
    data = build_answer(ASKED, own_reply(Code.NO_ERROR, (IPv4Address("127.0.0.1"),)), udp=True)
    assert data.endswith(address("127.0.0.1", 60))
    assert header(data)[3] == 1
    refused = build_answer(ASKED, own_reply(Code.NO_SUCH_NAME), udp=True)
    assert (messages.code(refused), header(refused)[3]) == (3, 0)
