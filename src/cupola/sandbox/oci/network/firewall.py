"""The packet filter as text: what leaves a sandbox, and what the host takes from sandboxes.

There are two filters. The router, a network namespace between the host and its sandboxes, keeps each sandbox to its policy.
The host, on the one interface by which the router is connected, takes nothing that is for itself. Each alone keeps
sandboxes from the host, so that neither a foreign `nft flush ruleset` nor the death of the server opens it.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network

from cupola.domain.egress import NEVER_REACHED, PRIVATE, EgressMode, EgressPolicy

ROUTER_TABLE = "ip router"
UPLINK = "uplink"
"""The router's interface towards the host."""
MOST_CONNECTIONS = 2048
"""That one sandbox may have open to the outside: the kernel has room for so many in all, the host's own among them."""
CONNECTIONS_PER_SECOND = 200
"""Of TCP, and as many for five seconds at once: the kernel remembers each for two minutes after its end."""


def router_rules(sandboxes: IPv4Network) -> str:
    """The rules of the router; `sandboxes` is the network that their addresses are from.

    A connection carries the number of the sandbox that opened it as its mark: what a sandbox had open is of no use to the next
    one that has its address.
    """
    never = _elements((*NEVER_REACHED, sandboxes))
    rate = f"limit rate over {CONNECTIONS_PER_SECOND}/second burst {5 * CONNECTIONS_PER_SECOND} packets"
    return f"""
table {ROUTER_TABLE} {{
    map numbers {{ type ifname : mark; }}
    set connected {{ type ifname . mark; }}
    set open {{ type ifname; }}
    set private {{ type ifname . ipv4_addr; flags interval; }}
    set hosts {{ type ifname . ipv4_addr; flags timeout; }}
    set ports {{ type ifname . ipv4_addr . inet_service; flags timeout; }}
    set host_addresses {{ type ipv4_addr; }}
    set tracked {{ type ifname; flags dynamic; }}
    set opened {{ type ifname; flags dynamic,timeout; timeout 1m; }}
    set never {{ type ipv4_addr; flags interval; elements = {{ {never} }}; }}
    set not_public {{ type ipv4_addr; flags interval; elements = {{ {_elements(PRIVATE)} }}; }}

    chain spoofed {{
        type filter hook prerouting priority raw;
        iifname != "{UPLINK}" fib saddr . iif oif missing drop
    }}
    chain input {{
        type filter hook input priority filter; policy drop;
    }}
    chain forward {{
        type filter hook forward priority filter; policy drop;
        iifname "{UPLINK}" oifname . ct mark @connected jump known
        iifname "{UPLINK}" drop
        oifname != "{UPLINK}" goto refuse
        iifname . ct mark @connected jump known
        ct state invalid drop
        meta l4proto != {{ tcp, udp }} drop
        ip daddr @never goto refuse
        ip daddr @host_addresses goto refuse
        iifname . ip daddr @private goto pass
        ip daddr @not_public goto refuse
        iifname @open goto pass
        iifname . ip daddr @hosts goto pass
        iifname . ip daddr . th dport @ports goto pass
        goto refuse
    }}
    chain known {{
        ct state established accept
        ct state related meta l4proto icmp accept
    }}
    chain pass {{
        ct state new add @tracked {{ iifname ct count over {MOST_CONNECTIONS} }} goto refuse
        meta l4proto tcp ct state new update @opened {{ iifname {rate} }} goto refuse
        ct mark set iifname map @numbers accept
    }}
    chain refuse {{
        reject with icmp type admin-prohibited
    }}
    chain addresses {{
        type nat hook postrouting priority srcnat;
        oifname "{UPLINK}" masquerade
    }}
}}
"""  # noqa: S608


def host_rules(table: str, interface: str, router: IPv4Address) -> str:
    """The rules of the host; `interface` leads to the router, whose address is the only one that comes from there."""
    return f"""
table {table} {{
    flags owner
    set switched_on {{ type ifname; }}

    chain from_sandboxes {{
        type filter hook prerouting priority raw;
        iifname "{interface}" meta nfproto != ipv4 drop
        iifname "{interface}" ip saddr != {router} drop
        iifname "{interface}" fib daddr type != unicast drop
    }}
    chain input {{
        type filter hook input priority filter;
        iifname "{interface}" drop
    }}
    chain forward {{
        type filter hook forward priority filter;
        iifname "{interface}" ct status dnat drop
        oifname "{interface}" ct state != {{ established, related }} drop
        iifname @switched_on oifname != "{interface}" ct state new ct status ! dnat drop
    }}
    chain addresses {{
        type nat hook postrouting priority srcnat;
        ip saddr {router} oifname != "{interface}" masquerade
    }}
}}
"""


def add_sandbox(interface: str, number: int, policy: EgressPolicy) -> str:
    """Commands that let a sandbox, by its interface of the router, reach what its policy says."""
    commands = [
        f'add element {ROUTER_TABLE} numbers {{ "{interface}" : {number} }}',
        f'add element {ROUTER_TABLE} connected {{ "{interface}" . {number} }}',
    ]
    if policy.mode is EgressMode.OPEN:
        commands.append(f'add element {ROUTER_TABLE} open {{ "{interface}" }}')
    commands += [f"add element {ROUTER_TABLE} private {{ {element} }}" for element in _private(interface, policy)]
    return "\n".join(commands)


def remove_sandbox(interface: str, number: int, policy: EgressPolicy) -> str:
    """Commands that undo `add_sandbox`. What names added runs out by itself, and the interface's name is not used again."""
    return add_sandbox(interface, number, policy).replace("add element", "delete element")


def _private(interface: str, policy: EgressPolicy) -> Iterable[str]:
    # The kernel takes no ranges of one set that overlap.
    for network in _collapsed(policy.private_ranges):
        yield f'"{interface}" . {network}'


def _collapsed(networks: Iterable[IPv4Network]) -> Iterable[IPv4Network]:
    kept: list[IPv4Network] = []
    for network in sorted(networks):
        if not kept or not network.subnet_of(kept[-1]):
            kept.append(network)
    return kept


def admit(interface: str, addresses: Iterable[IPv4Address], ports: frozenset[int] | None, seconds: int) -> str:
    """Commands that let a sandbox reach addresses for a while, on any port when `ports` is None."""
    if ports is None:
        name, elements = "hosts", [f'"{interface}" . {address}' for address in addresses]
    else:
        name, elements = "ports", [f'"{interface}" . {address} . {port}' for address in addresses for port in ports]
    # Adding what is there leaves its time as it is: so it is added, deleted for certain, and added again, at once.
    found = ", ".join(elements)
    timed = ", ".join(f"{element} timeout {seconds}s" for element in elements)
    return "\n".join(
        f"{verb} element {ROUTER_TABLE} {name} {{ {what} }}"
        for verb, what in (("add", found), ("delete", found), ("add", timed))
    )


def set_host_addresses(addresses: Iterable[IPv4Address]) -> str:
    """Commands that tell the router which addresses the host has."""
    return _refill(f"{ROUTER_TABLE} host_addresses", map(str, sorted(addresses)))


def set_switched_on(table: str, interfaces: Iterable[str]) -> str:
    """Commands that tell the host which interfaces forward for our sake only."""
    return _refill(f"{table} switched_on", (f'"{interface}"' for interface in sorted(interfaces)))


def _refill(name: str, elements: Iterable[str]) -> str:
    found = ", ".join(elements)
    add = [f"add element {name} {{ {found} }}"] if found else []
    return "\n".join((f"flush set {name}", *add))


def _elements(networks: Iterable[IPv4Network]) -> str:
    return ", ".join(map(str, networks))
