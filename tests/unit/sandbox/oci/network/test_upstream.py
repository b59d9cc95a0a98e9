from __future__ import annotations

from pathlib import Path

from cupola.sandbox.oci.network.upstream import read_resolvers


def test_the_name_servers_of_a_resolver_file(tmp_path: Path) -> None:
    file = tmp_path / "resolv.conf"
    file.write_bytes(
        b"# nameserver 192.0.2.1\nsearch example.com\nnameserver 192.0.2.53\nnameserver\n"
        b"nameserver   2001:db8::53 \nnameserver not-an-address\nnameserver \xff\noptions edns0\nnameserver fe80::1%eth0\n"
    )
    assert read_resolvers(file) == ("192.0.2.53", "2001:db8::53", "fe80::1%eth0")
    assert read_resolvers(tmp_path / "none") == ()
