"""Whether the kernel takes the rules and what it then holds; that they keep what they promise is tried by tests/system."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network

from hypothesis import given
from hypothesis import strategies as st

from cupola.domain.egress import NO_EGRESS, EgressMode, EgressPolicy
from cupola.sandbox.oci.network import firewall
from cupola.sandbox.oci.network.nftables import Nftables
from tests.unit.sandbox.oci.network.kernel import in_a_namespace, needs_root

SANDBOXES = IPv4Network("10.183.0.0/16")
WIDE = EgressPolicy(
    EgressMode.OPEN,
    private_ranges=tuple(
        IPv4Network(text) for text in ("10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "192.168.1.0/24", "10.0.0.0/8")
    ),
)


def with_rules(work: Callable[[Nftables], None]) -> None:
    def run() -> None:
        rules = Nftables()
        rules.run(firewall.router_rules(SANDBOXES))
        work(rules)
        rules.close()

    in_a_namespace(run)


def elements(rules: Nftables, name: str) -> str:
    """What a set of the router holds, as the kernel lists it."""
    return rules.run(f"list {'map' if name == 'numbers' else 'set'} ip router {name}").partition("elements")[2]


@needs_root
def test_what_is_added_for_a_sandbox_is_all_removed() -> None:
    def work(rules: Nftables) -> None:
        empty = rules.run("list ruleset")
        for number, policy in enumerate((WIDE, EgressPolicy(EgressMode.ALLOW_LIST), NO_EGRESS), 1):
            rules.run(firewall.add_sandbox(f"s{number}", number, policy))
        assert "10.0.0.0/8" in elements(rules, "private")
        assert "192.168.1.0/24" in elements(rules, "private")
        assert [f'"s{number}"' in elements(rules, "open") for number in (1, 2, 3)] == [True, False, False]
        for number, policy in enumerate((WIDE, EgressPolicy(EgressMode.ALLOW_LIST), NO_EGRESS), 1):
            rules.run(firewall.remove_sandbox(f"s{number}", number, policy))
        assert rules.run("list ruleset") == empty

    with_rules(work)


@needs_root
def test_sandboxes_with_the_same_ranges_do_not_disturb_each_other() -> None:
    def work(rules: Nftables) -> None:
        for number in (1, 2):
            rules.run(firewall.add_sandbox(f"s{number}", number, WIDE))
        rules.run(firewall.remove_sandbox("s1", 1, WIDE))
        assert '"s2" . 10.0.0.0/8' in elements(rules, "private")
        assert '"s1"' not in elements(rules, "private")

    with_rules(work)


@needs_root
def test_admitting_an_address_again_gives_it_new_time() -> None:
    def work(rules: Nftables) -> None:
        found = [IPv4Address("198.51.100.1"), IPv4Address("198.51.100.2")]
        rules.run(firewall.admit("s1", found[:1], None, 120))
        rules.run(firewall.admit("s1", found, None, 500))
        assert elements(rules, "hosts").count("timeout 8m20s") == 2
        assert "timeout 2m" not in elements(rules, "hosts")
        rules.run(firewall.admit("s1", found, frozenset({80, 443}), 60))
        assert elements(rules, "ports").count("timeout 1m") == 4

    with_rules(work)


@needs_root
def test_the_addresses_of_the_host_are_replaced_whole() -> None:
    def work(rules: Nftables) -> None:
        rules.run(firewall.set_host_addresses({IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")}))
        rules.run(firewall.set_host_addresses({IPv4Address("192.0.2.3")}))
        assert "192.0.2.3" in elements(rules, "host_addresses")
        assert "192.0.2.1" not in elements(rules, "host_addresses")
        rules.run(firewall.set_host_addresses(()))
        assert elements(rules, "host_addresses") == ""

    with_rules(work)


@needs_root
def test_the_rules_of_the_host() -> None:
    def run() -> None:
        rules = Nftables()
        table = "inet cupola-test"
        rules.run(firewall.host_rules(table, "cup-0123456789a", IPv4Address("10.183.0.3")))
        rules.run(firewall.set_switched_on(table, {"wan", "eth0.100"}))
        listed = rules.run(f"list set {table} switched_on")
        assert '"eth0.100"' in listed
        assert '"wan"' in listed
        rules.run(firewall.set_switched_on(table, ()))
        assert "elements" not in rules.run(f"list set {table} switched_on")
        rules.close()

    in_a_namespace(run)


networks = st.builds(
    lambda address, length: IPv4Network((address >> (32 - length) << (32 - length), length)),
    st.integers(10 << 24, (11 << 24) - 1),
    st.integers(8, 32),
)


@given(st.lists(networks, max_size=20))
def test_ranges_that_hold_each_other_become_the_widest(found: list[IPv4Network]) -> None:
    policy = EgressPolicy(EgressMode.OPEN, private_ranges=tuple(found))
    commands = firewall.add_sandbox("s1", 1, policy)
    kept = [IPv4Network(line.split()[-2]) for line in commands.splitlines() if " private " in line]
    assert all(any(network.subnet_of(wide) for wide in kept) for network in found)
    assert set(kept) <= set(found)
    assert not any(one.overlaps(other) for number, one in enumerate(kept) for other in kept[:number])
