from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cupola.domain.definition import (
    ENVIRONMENT_LIMIT,
    Definition,
    ProtocolVersion,
    parse_definition,
    parse_metadata,
)
from cupola.domain.errors import CupolaError

IMAGE = "registry.example.com/agent:1"
NEW: dict[str, Any] = {"kind": "hosted", "container_configuration": {"image": IMAGE}}
OLD: dict[str, Any] = {"kind": "hosted", "image": IMAGE}


def refusal(body: object) -> CupolaError:
    with pytest.raises(CupolaError) as caught:
        parse_definition(body)
    assert caught.value.status == 400
    return caught.value


def test_what_is_left_out_has_defaults() -> None:
    definition = parse_definition(NEW)
    assert definition == Definition(
        image=IMAGE,
        protocols=(ProtocolVersion("responses", "2.0.0"),),
        cpu="1",
        memory="2Gi",
        environment=(),
        idle_timeout=900,
        registry_connection_id=None,
        extra={},
    )


@pytest.mark.parametrize(
    "field",
    [
        "cpu",
        "memory",
        "environment_variables",
        "image",
        "container_protocol_versions",
        "protocol_versions",
        "session_configuration",
        "code_configuration",
        "tools",
        "telemetry_config",
        "rai_config",
        "enable_memory_snapshot",
    ],
)
def test_null_is_the_same_as_leaving_a_field_out(field: str) -> None:
    assert parse_definition({**NEW, field: None}) == parse_definition(NEW)


def test_a_null_idle_timeout_is_the_same_as_leaving_it_out() -> None:
    assert parse_definition({**NEW, "session_configuration": {"idle_timeout_seconds": None}}) == parse_definition(NEW)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"image": IMAGE}, {"container_configuration": {"image": IMAGE}}),
        ({"image": IMAGE}, {"image": IMAGE, "container_configuration": {"image": IMAGE}}),
        ({"image": IMAGE, "container_configuration": {}}, {"container_configuration": {"image": IMAGE}}),
        (
            {"image": IMAGE, "container_protocol_versions": [{"protocol": "invocations", "version": "v1"}]},
            {
                "container_configuration": {"image": IMAGE},
                "protocol_versions": [{"protocol": "invocations", "version": "v1"}],
            },
        ),
        ({"image": IMAGE, "cpu": 1}, {"image": IMAGE, "cpu": "1"}),
        ({"image": IMAGE, "cpu": 0.5}, {"image": IMAGE, "cpu": "0.5"}),
    ],
)
def test_the_spellings_of_all_generations_mean_the_same(old: dict[str, Any], new: dict[str, Any]) -> None:
    assert parse_definition({"kind": "hosted", **old}) == parse_definition({"kind": "hosted", **new})


def test_the_answer_has_the_field_names_of_every_generation() -> None:
    protocols = [{"protocol": "responses", "version": "v1"}, {"protocol": "invocations", "version": "1.0.0"}]
    body = {
        "kind": "hosted",
        "cpu": "0.5",
        "memory": "1Gi",
        "environment_variables": {"A": "b"},
        "container_configuration": {"image": IMAGE, "registry_connection_id": "acr"},
        "protocol_versions": protocols,
        "session_configuration": {"idle_timeout_seconds": 120},
        "tools": [{"type": "web_search"}],
        "telemetry_config": {"endpoints": []},
        "rai_config": {"rai_policy_name": "p"},
        "enable_memory_snapshot": False,
    }
    assert parse_definition(body).to_wire() == {
        **body,
        "image": IMAGE,
        "container_protocol_versions": protocols,
    }


def test_a_protocol_that_is_declared_twice_counts_once() -> None:
    entry = {"protocol": "responses", "version": "2.0.0"}
    definition = parse_definition({**NEW, "protocol_versions": [entry, entry]})
    assert definition.protocols == (ProtocolVersion("responses", "2.0.0"),)
    assert definition.speaks("responses")
    assert not definition.speaks("invocations")


@pytest.mark.parametrize(
    ("cpu", "memory", "cores", "size"),
    [
        ("0.25", "512Mi", 0.25, 512 * 1024**2),
        ("0.5", "0.5Gi", 0.5, 512 * 1024**2),
        ("4", "8Gi", 4.0, 8 * 1024**3),
        (2, "8192Mi", 2.0, 8 * 1024**3),
    ],
)
def test_amounts_are_read_and_kept_as_written(cpu: object, memory: str, cores: float, size: int) -> None:
    definition = parse_definition({**NEW, "cpu": cpu, "memory": memory})
    assert (definition.cpu_cores, definition.memory_bytes) == (cores, size)
    assert (definition.cpu, definition.memory) == (str(cpu), memory)


@pytest.mark.parametrize("seconds", [0, 120, 14400])
def test_the_bounds_of_the_idle_timeout_are_allowed(seconds: int) -> None:
    body = {**NEW, "session_configuration": {"idle_timeout_seconds": seconds}}
    assert parse_definition(body).idle_timeout == seconds


CONTAINER = "definition.container_configuration"
WRONG_CPU: list[object] = ["0.2", "4.1", "two", "1e0", "", 5, True, [], "nan", "\u0661", "9" * 400]
WRONG_MEMORY: list[object] = ["1", "1G", "511Mi", "9Gi", "-1Gi", "", 2, True, {}, "9" * 400 + "Gi"]
WRONG_SESSION_CONFIGURATION: list[object] = [
    [],
    900,
    {"idle_timeout_seconds": 119},
    {"idle_timeout_seconds": 14401},
    {"idle_timeout_seconds": -1},
    {"idle_timeout_seconds": "900"},
    {"idle_timeout_seconds": 900.0},
    {"idle_timeout_seconds": False},
]
WRONG: list[tuple[dict[str, Any], str, str, str]] = [
    # What is changed, the field that is named, the code, the fix.
    (
        {"container_configuration": None},
        f"{CONTAINER}.image",
        "InvalidContainerImage",
        "give a container image such as",
    ),
    (
        {"container_configuration": {"image": ""}},
        f"{CONTAINER}.image",
        "InvalidContainerImage",
        "is missing; give",
    ),
    (
        {"container_configuration": {"image": 7}},
        f"{CONTAINER}.image",
        "InvalidContainerImage",
        "expected a string such as",
    ),
    ({"container_configuration": [IMAGE]}, CONTAINER, "bad_request", 'expected an object such as {"image"'),
    (
        {"container_configuration": {}, "image": 7},
        "definition.image",
        "InvalidContainerImage",
        "expected a string such as",
    ),
    (
        {"image": "other"},
        "definition.image",
        "bad_request",
        "differs from container_configuration.image; give one",
    ),
    (
        {"container_configuration": {"image": IMAGE, "registry_connection_id": 1}},
        f"{CONTAINER}.registry_connection_id",
        "bad_request",
        "expected a string",
    ),
    (
        {"code_configuration": {}},
        "definition.code_configuration",
        "bad_request",
        "give container_configuration.image",
    ),
    *(
        ({"cpu": cpu}, "definition.cpu", "bad_request", 'a number of cores from 0.25 to 4, such as "0.5"')
        for cpu in WRONG_CPU
    ),
    *(
        ({"memory": memory}, "definition.memory", "bad_request", 'an amount from 0.5Gi to 8Gi, such as "1Gi"')
        for memory in WRONG_MEMORY
    ),
    (
        {"environment_variables": ["A=b"]},
        "definition.environment_variables",
        "bad_request",
        'such as {"LOG_LEVEL"',
    ),
    (
        {"environment_variables": {"1A": "b"}},
        "definition.environment_variables.1A",
        "bad_request",
        "use letters, digits and underscores, not starting with a digit",
    ),
    (
        {"environment_variables": {"": "b"}},
        "definition.environment_variables.",
        "bad_request",
        "is not a variable name",
    ),
    (
        {"environment_variables": {"A=B": "b"}},
        "definition.environment_variables.A=B",
        "bad_request",
        "use letters",
    ),
    (
        {"environment_variables": {"A\n": "b"}},
        "definition.environment_variables.A\n",
        "bad_request",
        "use letters",
    ),
    (
        {"environment_variables": {"FOUNDRY_X": "b"}},
        "definition.environment_variables.FOUNDRY_X",
        "bad_request",
        "is reserved: the platform sets names that start with FOUNDRY_ and AGENT_; choose another",
    ),
    (
        {"environment_variables": {"AGENT_X": "b"}},
        "definition.environment_variables.AGENT_X",
        "bad_request",
        "is reserved",
    ),
    (
        {"environment_variables": {"A": 1}},
        "definition.environment_variables.A",
        "bad_request",
        "expected a string",
    ),
    (
        {"environment_variables": {"A": "\0"}},
        "definition.environment_variables.A",
        "bad_request",
        "without NUL",
    ),
    (
        {"environment_variables": {"A": "\ud800"}},
        "definition.environment_variables.A",
        "bad_request",
        "expected a string",
    ),
    (
        {"environment_variables": {"A": "x" * ENVIRONMENT_LIMIT}},
        "definition.environment_variables",
        "bad_request",
        "larger than 128 KiB together; put large values in files",
    ),
    ({"protocol_versions": []}, "definition.protocol_versions", "bad_request", '[{"protocol": "responses"'),
    (
        {"protocol_versions": {}},
        "definition.protocol_versions",
        "bad_request",
        "expected a list with at least one entry",
    ),
    (
        {"container_protocol_versions": "v1"},
        "definition.container_protocol_versions",
        "bad_request",
        "expected a list",
    ),
    (
        {"protocol_versions": ["v1"]},
        "definition.protocol_versions[0]",
        "bad_request",
        "an object with protocol and version",
    ),
    (
        {"protocol_versions": [{"protocol": "responses", "version": 2}]},
        "definition.protocol_versions[0]",
        "bad_request",
        '{"protocol": "responses", "version": "2.0.0"}',
    ),
    (
        {"protocol_versions": [{"protocol": "smtp", "version": "v1"}]},
        "definition.protocol_versions[0].protocol",
        "ProtocolVersionNotSupported",
        "'smtp' is unknown; use one of a2a, activity",
    ),
    (
        {
            "protocol_versions": [
                {"protocol": "a2a", "version": "v1"},
                {"protocol": "responses", "version": "9"},
            ]
        },
        "definition.protocol_versions[1].version",
        "ProtocolVersionNotSupported",
        "'9' is not supported for responses; use one of 1.0.0, 2.0.0, v1",
    ),
    *(
        (
            {"session_configuration": value},
            "definition.session_configuration.idle_timeout_seconds",
            "bad_request",
            "is not a whole number of seconds from 120 to 14400, or 0 for never",
        )
        for value in WRONG_SESSION_CONFIGURATION
    ),
    ({"tools": {}}, "definition.tools", "bad_request", "expected an array"),
    ({"telemetry_config": []}, "definition.telemetry_config", "bad_request", "expected"),
    ({"rai_config": "x"}, "definition.rai_config", "bad_request", "expected"),
    ({"enable_memory_snapshot": "yes"}, "definition.enable_memory_snapshot", "bad_request", "expected bool"),
]


@pytest.mark.parametrize(("change", "field", "code", "fix"), WRONG)
def test_a_wrong_field_is_named_with_its_fix(change: dict[str, Any], field: str, code: str, fix: str) -> None:
    error = refusal({**NEW, **change})
    assert (error.code, error.param) == (code, field)
    assert [problem.field for problem in error.problems] == [field]
    assert fix in error.message
    assert error.message.startswith(f"{field}: ")


def test_every_wrong_field_is_named_in_one_answer() -> None:
    error = refusal({"kind": "hosted", "cpu": "9", "memory": "9", "protocol_versions": []})
    fields = [problem.field for problem in error.problems]
    assert fields == [
        "definition.container_configuration.image",
        "definition.cpu",
        "definition.memory",
        "definition.protocol_versions",
    ]
    assert error.code == "bad_request"
    assert error.message.startswith("4 fields are wrong. ")
    assert all(field in error.message for field in fields)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("prompt", "an agent kind of the cloud service that Cupola does not run"),
        ("workflow", "an agent kind of the cloud service"),
        ("container_app", "an agent kind of the cloud service"),
        ("other", "is unknown"),
        (["hosted"], "is unknown"),
        ("", "is unknown"),
    ],
)
def test_another_kind_of_agent_is_refused_by_its_own_code(kind: object, said: str) -> None:
    error = refusal({**NEW, "kind": kind})
    assert (error.code, error.param) == ("unsupported_agent_kind", "definition.kind")
    assert said in error.message
    assert 'use "hosted"' in error.message


def test_a_missing_kind_is_named() -> None:
    error = refusal(OLD | {"kind": None})
    assert (error.code, error.param) == ("bad_request", "definition.kind")
    assert 'write "kind": "hosted"' in error.message


@pytest.mark.parametrize("body", [None, [], "hosted", 1])
def test_a_definition_that_is_no_object_is_refused(body: object) -> None:
    error = refusal(body)
    assert (error.code, error.param) == ("bad_request", "definition")
    assert '{"kind": "hosted"' in error.message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(), max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
FIELDS = (
    "image",
    "container_configuration",
    "cpu",
    "memory",
    "environment_variables",
    "protocol_versions",
    "container_protocol_versions",
    "session_configuration",
    "code_configuration",
    "tools",
    "rai_config",
    "telemetry_config",
    "enable_memory_snapshot",
)


@given(JSON)
def test_arbitrary_json_gives_a_definition_or_a_refusal(body: object) -> None:
    refusal(body)


@given(st.fixed_dictionaries({"kind": st.just("hosted")}, optional=dict.fromkeys(FIELDS, JSON)))
@example({"kind": "hosted", "image": IMAGE, "memory": "9" * 400 + "Gi"})
@example({"kind": "hosted", "image": IMAGE, "environment_variables": {"A": "\udfff"}})
def test_arbitrary_fields_give_a_definition_or_a_refusal(body: dict[str, Any]) -> None:
    try:
        definition = parse_definition(body)
    except CupolaError as error:
        found: Definition | CupolaError = error
    else:
        found = definition
    assert found.image if isinstance(found, Definition) else found.status == 400 and found.problems


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
NAMES = st.from_regex(r"[A-EG-Za-z_][A-Za-z0-9_]{0,10}", fullmatch=True).filter(
    lambda name: not name.startswith("AGENT_")
)
RIGHT = st.fixed_dictionaries(
    {
        "kind": st.just("hosted"),
        "container_configuration": st.fixed_dictionaries({"image": TEXT.filter(bool)}),
    },
    optional={
        "cpu": st.sampled_from(["0.25", "1", 2, 0.5]),
        "memory": st.sampled_from(["512Mi", "1.5Gi"]),
        "environment_variables": st.dictionaries(NAMES, TEXT, max_size=4),
        "protocol_versions": st.lists(
            st.fixed_dictionaries(
                {
                    "protocol": st.sampled_from(["responses", "invocations", "a2a"]),
                    "version": st.sampled_from(["v1", "1.0.0", "2.0.0"]),
                }
            ),
            min_size=1,
            max_size=4,
        ),
        "session_configuration": st.fixed_dictionaries({"idle_timeout_seconds": st.just(0) | st.integers(120, 14400)}),
        "tools": st.lists(st.dictionaries(TEXT, TEXT, max_size=2), max_size=2),
        "enable_memory_snapshot": st.booleans(),
    },
)


@given(RIGHT)
def test_what_is_shown_can_be_posted_again_and_means_the_same(body: dict[str, Any]) -> None:
    definition = parse_definition(body)
    assert parse_definition(definition.to_wire()) == definition


@pytest.mark.parametrize("value", [None, {}])
def test_no_metadata_is_empty_metadata(value: object) -> None:
    assert parse_metadata(value) == {}


def test_the_largest_metadata_is_allowed() -> None:
    largest = {f"{number:064}": "v" * 512 for number in range(16)}
    assert parse_metadata(largest) == largest


@pytest.mark.parametrize(
    ("value", "field", "fix"),
    [
        ([], "metadata", "expected an object of strings"),
        ({str(number): "" for number in range(17)}, "metadata", "has 17 pairs; keep at most 16"),
        ({"k" * 65: "v"}, "metadata", "has 65 characters; keep at most 64"),
        ({"k": 1}, "metadata.k", "expected a string"),
        ({"k": None}, "metadata.k", "expected a string"),
        ({"k": "v" * 513}, "metadata.k", "has 513 characters; keep at most 512"),
    ],
)
def test_wrong_metadata_is_named_with_its_fix(value: object, field: str, fix: str) -> None:
    with pytest.raises(CupolaError) as caught:
        parse_metadata(value)
    assert (caught.value.code, caught.value.status, caught.value.param) == ("bad_request", 400, field)
    assert fix in caught.value.message
