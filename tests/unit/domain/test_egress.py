from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cupola.domain.egress import (
    NEVER_REACHED,
    NO_EGRESS,
    PRIVATE,
    AllowedName,
    EgressMode,
    EgressPolicy,
    parse_egress,
    parse_name,
)
from cupola.domain.errors import CupolaError


def refused(value: dict[str, Any]) -> dict[str, str]:
    """The fields at fault, with what is said about each."""
    with pytest.raises(CupolaError) as caught:
        parse_egress(value)
    assert (caught.value.code, caught.value.status) == ("bad_request", 400)
    assert caught.value.param == caught.value.problems[0].field
    return {problem.field: problem.message for problem in caught.value.problems}


def allow(*names: str) -> EgressPolicy:
    return parse_egress({"mode": "allow-list", "names": list(names)})


def test_a_policy_is_read_and_written_in_one_form() -> None:
    value = {
        "mode": "allow-list",
        "names": ["api.example.com:443", "*.storage.example.com", "*.example.org:80", "example.com"],
        "private_ranges": ["10.20.0.0/16", "192.168.1.1/32"],
    }
    assert parse_egress(value).to_json() == value
    assert parse_egress(value).private_ranges == (IPv4Network("10.20.0.0/16"), IPv4Network("192.168.1.1/32"))
    for mode in EgressMode:
        assert parse_egress({"mode": mode.value}) == EgressPolicy(mode)
    assert NO_EGRESS.to_json() == {"mode": "none", "names": [], "private_ranges": []}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("example.com", AllowedName("example.com")),
        (" Example.COM. \n", AllowedName("example.com")),
        ("*.example.com", AllowedName("example.com", wildcard=True)),
        ("*.example.com:443", AllowedName("example.com", wildcard=True, port=443)),
        ("example.com:1", AllowedName("example.com", port=1)),
        ("example.com:65535", AllowedName("example.com", port=65535)),
        ("bücher.example", AllowedName("xn--bcher-kva.example")),
        ("*.BÜCHER.example", AllowedName("xn--bcher-kva.example", wildcard=True)),
        ("_dmarc.example.com", AllowedName("_dmarc.example.com")),
        ("intranet", AllowedName("intranet")),
        ("*.com", AllowedName("com", wildcard=True)),
        ("1.example", AllowedName("1.example")),
        ("example。com", AllowedName("example.com")),
        (f"{'a' * 63}.example", AllowedName(f"{'a' * 63}.example")),
    ],
)
def test_names_that_are_taken(text: str, expected: AllowedName) -> None:
    assert parse_name(text) == expected
    assert parse_name(str(expected)) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is not a name"), ("*", "is not a name"), ("*.", "is not a name"), ("*.*.com", "is not a name"),
        ("api.*.com", "is not a name"), ("a*.example.com", "is not a name"), ("*example.com", "is not a name"),
        (".", "is not a name"), ("..", "is not a DNS name"), ("a..b", "is not a DNS name"),
        (".example.com", "is not a DNS name"), ("example.com..", "is not a DNS name"),
        ("https://example.com", "has no port"), ("example.com:https", "has no port"), ("example.com:", "has no port"),
        ("example.com:0", "has no port"), ("example.com:65536", "has no port"), ("example.com:443:443", "has no port"),
        ("example.com:-1", "has no port"), ("example.com:٤٤٣", "has no port"), ("::1", "has no port"),
        ("example.com/path", "is not a DNS name"), ("user@example.com", "is not a DNS name"),
        ("exa mple.com", "is not a DNS name"), ("exam\nple.com", "is not a DNS name"),
        ("example.com\x00", "is not a DNS name"), ('example.com" accept', "is not a DNS name"),
        ("-a.example", "is not a DNS name"), ("a-.example", "is not a DNS name"),
        ("10.1.2.3", "is an address"), ("0x7f.1", "is an address"), ("2852039166", "is an address"),
        ("169.254.169.254:80", "is an address"), ("\uff11\uff12\uff17.0.0.1", "is an address"), ("[::1]", "has no port"),
        (f"{'a' * 64}.example", "is not a DNS name"), ("a." * 127 + "com", "is longer than 253"),
        ("ü" * 60 + ".example", "is not a DNS name"), ("faß.example", "two names"), ("ςa.example", "two names"),
        ("a\u200cb.example", "two names"), ("a\u200db.example", "two names"), ("\ud800.example", "is not a DNS name"),
        (".".join(["ü" * 20] * 12), "is not a DNS name"),
    ],
)  # fmt: skip
def test_names_that_are_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_name(text)


@given(st.text(max_size=80))
def test_any_text_is_a_name_or_a_value_error(text: str) -> None:
    try:
        entry = parse_name(text)
    except ValueError:
        return
    assert parse_name(str(entry)) == entry
    assert entry.name.isascii()
    assert set(entry.name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_.")


def test_which_names_a_list_allows() -> None:
    policy = allow("example.com", "*.wild.example", "*.wild.example:80", "api.example:443")
    assert policy.allowed("example.com") == (AllowedName("example.com"),)
    assert policy.allowed("EXAMPLE.com.") == (AllowedName("example.com"),)
    assert [entry.port for entry in policy.allowed("a.b.wild.example")] == [None, 80]
    assert [entry.port for entry in policy.allowed("api.example")] == [443]
    for name in (
        "wild.example", "notexample.com", "a.example.com", "example.com.attacker.net", "xwild.example",
        "example.com..", "", ".", "wild", "example", "a.wild.example.x", "exampleXcom", "example.com\\046",
    ):  # fmt: skip
        assert policy.allowed(name) == ()
    assert allow().allowed("example.com") == ()


@pytest.mark.parametrize("value", [{}, {"mode": "all"}, {"mode": None}, {"mode": 1}, {"mode": ["open"]}, {"mode": ""}])
def test_a_policy_needs_a_mode(value: dict[str, Any]) -> None:
    assert refused(value) == {"mode": "expected open, allow-list or none"}


@pytest.mark.parametrize(
    ("value", "field", "said"),
    [
        ({"mode": "open", "names": ["a.example"]}, "names", "has no meaning with mode open"),
        ({"mode": "none", "names": ["a.example"]}, "names", "has no meaning with mode none"),
        ({"mode": "none", "private_ranges": ["10.0.0.0/8"]}, "private_ranges", "has no meaning with mode none"),
        ({"mode": "allow-list", "names": "a.example"}, "names", "expected a list of strings"),
        ({"mode": "allow-list", "names": [1]}, "names", "expected a list of strings"),
        ({"mode": "allow-list", "names": None}, "names", "expected a list of strings"),
        ({"mode": "allow-list", "names": {"a.example": 1}}, "names", "expected a list of strings"),
        ({"mode": "allow-list", "names": ["a.example"] * 257}, "names", "has 257 entries; keep at most 256"),
        ({"mode": "open", "private_ranges": ["10.0.0.0/8"] * 65}, "private_ranges", "keep at most 64"),
        ({"mode": "open", "private_ranges": "10.0.0.0/8"}, "private_ranges", "expected a list of strings"),
        ({"mode": "open", "name": []}, "name", "is unknown"),
        ({"mode": "open", "x" * 100: []}, "x" * 64, "is unknown"),
        ({"mode": "allow-list", "names": ["a.example", "b/c"]}, "names[1]", "'b/c' is not a DNS name"),
        ({"mode": "allow-list", "names": ["y" * 5000]}, "names[0]", f"'{'y' * 64}' is longer than"),
        ({"mode": "open", "private_ranges": ["10.0.0.1/8"]}, "private_ranges[0]", "is not a range"),
        ({"mode": "open", "private_ranges": ["lan"]}, "private_ranges[0]", "is not a range"),
        ({"mode": "open", "private_ranges": ["fd00::/8"]}, "private_ranges[0]", "is of IPv6"),
        ({"mode": "open", "private_ranges": ["10.0.0.0/7"]}, "private_ranges[0]", "is not private"),
        ({"mode": "open", "private_ranges": ["0.0.0.0/0"]}, "private_ranges[0]", "is not private"),
        ({"mode": "open", "private_ranges": ["127.0.0.1"]}, "private_ranges[0]", "is not private"),
        ({"mode": "open", "private_ranges": ["169.254.169.254"]}, "private_ranges[0]", "is not private"),
        ({"mode": "open", "private_ranges": ["8.8.8.8"]}, "private_ranges[0]", "is not private"),
    ],
)
def test_a_field_at_fault_is_named(value: dict[str, Any], field: str, said: str) -> None:
    found = refused(value)
    assert list(found) == [field]
    assert said in found[field]


def test_every_field_at_fault_is_named_at_once() -> None:
    value = {"mode": "allow-list", "extra": 1, "names": ["*", "ok.example", "a b"], "private_ranges": ["1.1.1.1", "x"]}
    assert set(refused(value)) == {"extra", "names[0]", "names[2]", "private_ranges[0]", "private_ranges[1]"}


def test_entries_that_say_the_same_are_one() -> None:
    assert allow("Example.com", "example.com.", "example.com").names == (AllowedName("example.com"),)


@pytest.mark.parametrize("mode", list(EgressMode))
def test_addresses_that_no_policy_opens(mode: EgressMode) -> None:
    policy = EgressPolicy(mode, private_ranges=PRIVATE)
    never = [address for network in NEVER_REACHED for address in (network[0], network[-1])]
    assert [str(address) for address in never if policy.permits_answer(address)] == []
    metadata = ("169.254.169.254", "168.63.129.16", "100.100.100.200", "192.0.0.192")
    assert not any(policy.permits_answer(IPv4Address(address)) for address in metadata)


def test_private_addresses_need_to_be_listed() -> None:
    listed = parse_egress({"mode": "open", "private_ranges": ["10.1.0.0/16", "100.100.0.0/16"]})
    opened = [address for address in ("10.1.0.0", "10.1.255.255") if listed.permits_answer(IPv4Address(address))]
    assert opened == ["10.1.0.0", "10.1.255.255"]
    for network in PRIVATE:
        for address in (network[0], network[-1]):
            assert not EgressPolicy(EgressMode.OPEN).permits_answer(address)
    assert not listed.permits_answer(IPv4Address("10.2.0.0"))
    # A listed range does not open what is never open within it.
    assert listed.permits_answer(IPv4Address("100.100.100.199"))
    assert not listed.permits_answer(IPv4Address("100.100.100.200"))
    assert EgressPolicy(EgressMode.OPEN).permits_answer(IPv4Address("198.51.100.1"))
