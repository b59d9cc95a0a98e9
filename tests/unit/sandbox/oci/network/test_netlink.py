from __future__ import annotations

import contextlib
import errno
import os
import socket
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import pytest

from cupola.sandbox.oci.network.namespace import (
    LOOPBACK,
    current_namespace,
    disable_ipv6,
    enter,
    get_option,
    is_plain_name,
    make_namespace,
    read_routes,
)
from cupola.sandbox.oci.network.netlink import Netlink
from tests.unit.sandbox.oci.network.kernel import in_a_namespace, needs_root


@needs_root
def test_two_namespaces_are_connected() -> None:
    def work() -> None:
        here = current_namespace()
        there = make_namespace()
        enter(here)
        netlink = Netlink()
        netlink.add_veth("near", "far", there, 1400)
        near = socket.if_nametoindex("near")
        netlink.add_address(near, IPv4Interface("192.0.2.0/31"))
        netlink.set_up(near)
        enter(there)
        with contextlib.closing(Netlink()) as other:
            far = socket.if_nametoindex("far")
            other.add_address(far, IPv4Interface("192.0.2.1/31"))
            other.set_up(far)
            other.add_default_route(IPv4Address("192.0.2.0"))
            assert other.addresses() == {IPv4Address("192.0.2.1")}
            assert set(read_routes()) == {("far", IPv4Network("0.0.0.0/0")), ("far", IPv4Network("192.0.2.0/31"))}
            listening = socket.create_server(("192.0.2.1", 0))
        enter(here)
        assert read_routes() == (("near", IPv4Network("192.0.2.0/31")),)
        with listening, socket.create_connection(listening.getsockname(), 5) as opened:
            assert opened.getsockname()[0] == "192.0.2.0"
        netlink.delete_link(near)
        assert [name for _, name in socket.if_nameindex()] == ["lo"]
        enter(there)
        assert [name for _, name in socket.if_nameindex()] == ["lo"]
        netlink.close()
        for namespace in (here, there):
            os.close(namespace)

    in_a_namespace(work)


@needs_root
def test_a_refusal_of_the_kernel_is_raised_and_the_conversation_goes_on() -> None:
    def work() -> None:
        with contextlib.closing(Netlink()) as netlink:
            with pytest.raises(OSError, match="No such device") as caught:
                netlink.set_up(4711)
            assert caught.value.errno == errno.ENODEV
            with pytest.raises(OSError, match="unreachable"):
                netlink.add_default_route(IPv4Address("192.0.2.1"))
            netlink.set_up(LOOPBACK)
            with pytest.raises(OSError, match="File exists"):
                netlink.add_address(LOOPBACK, IPv4Interface("127.0.0.1/8"))
            assert netlink.addresses() == {IPv4Address("127.0.0.1")}

    in_a_namespace(work)


@needs_root
def test_more_addresses_than_fit_into_one_message_are_all_read() -> None:
    def work() -> None:
        wanted = [IPv4Address("192.0.2.0") + number for number in range(600)]
        with contextlib.closing(Netlink()) as netlink:
            for address in wanted:
                netlink.add_address(LOOPBACK, IPv4Interface(f"{address}/32"))
            assert netlink.addresses() == set(wanted)

    in_a_namespace(work)


@needs_root
def test_an_interface_without_ipv6() -> None:
    def work() -> None:
        disable_ipv6("default")
        disable_ipv6("lo")
        assert get_option("ipv6/conf/lo/disable_ipv6") == "1"
        disable_ipv6("absent")

    in_a_namespace(work)


def test_names_of_interfaces_that_can_be_written_into_rules() -> None:
    for name in ("eth0", "enp0s31f6", "br-0123456789ab", "wlan0.100", "a"):
        assert is_plain_name(name)
    for name in ("", "..", "-eth0", 'a"', "a b", "a/b", "a\nb", "eth0\n", "sixteen-letters1", "ä", "*", "."):
        assert not is_plain_name(name)
