from __future__ import annotations

import pytest

from cupola.domain.errors import CupolaError
from cupola.domain.principal import Principal
from cupola.identity.delegation import effective_caller

SERVICE = Principal("service-id", "service", administrator=True)
ADA = Principal("ada-id", "ada", administrator=False)


@pytest.mark.parametrize("principal", [SERVICE, ADA])
def test_without_the_header_callers_act_for_themselves(principal: Principal) -> None:
    assert effective_caller(principal, []) is principal


@pytest.mark.parametrize("identity", ["a", "alice@contoso.com", "8:orgid:7f-A_b.c", "x" * 256])
def test_an_administrator_may_act_for_a_user_and_has_no_more_rights_than_one(identity: str) -> None:
    found = effective_caller(SERVICE, [identity])
    assert found == Principal(id=f"user:{identity}", name=identity, administrator=False)


def test_a_user_that_is_acted_for_is_nobody_who_has_a_token() -> None:
    assert effective_caller(SERVICE, [ADA.id]).id != ADA.id
    assert effective_caller(SERVICE, [f"user:{ADA.id}"]).id != effective_caller(SERVICE, [ADA.id]).id


@pytest.mark.parametrize(
    "values",
    [
        [""],
        [" "],
        ["a b"],
        ["a/b"],
        ["x" * 257],
        ["a\n"],
        ["caf\u00e9"],
        ["\u0661"],
        ["a,b"],
        ["*"],
        ["a", "b"],
        ["a", "a"],
    ],
)
@pytest.mark.parametrize("principal", [SERVICE, ADA])
def test_a_malformed_header_is_refused(principal: Principal, values: list[str]) -> None:
    with pytest.raises(CupolaError) as caught:
        effective_caller(principal, values)
    assert (caught.value.code, caught.value.status) == ("bad_request", 400)
    assert caught.value.param == "x-ms-user-identity"


def test_whoever_is_no_administrator_may_not_act_for_others() -> None:
    for identity in ("bob", ADA.name, ADA.id):
        with pytest.raises(CupolaError) as caught:
            effective_caller(ADA, [identity])
        assert (caught.value.code, caught.value.status) == ("impersonation_not_allowed", 403)
