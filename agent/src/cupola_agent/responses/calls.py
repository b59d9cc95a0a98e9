"""Calls of tools as they are written, step by step (contract section 4.5)."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

from cupola_agent.responses.open_item import Deltas, OpenItem, plain_text
from cupola_agent.responses.output import Json, Output
from cupola_agent.responses.shapes import builtins


class Course(NamedTuple):
    """What a call goes through between `added` and `done`.

    `steps` come in this order, each as an event of the item's type; the first when the item is added. `text` is
    the event of the deltas of `field`; `told` names fields that its `done` repeats. A call ends by the step
    `completed`, or the step `failed` where there is one.
    """

    steps: tuple[str, ...] = ()
    text: str = ""
    field: str = ""
    told: tuple[str, ...] = ()
    completes: bool = False
    fails: bool = False
    interrupted: str = "incomplete"


COURSES: Mapping[str, Course] = {
    "code_interpreter_call": Course(
        ("in_progress", "interpreting"), "code_interpreter_call_code", "code", completes=True
    ),
    "custom_tool_call": Course((), "custom_tool_call_input", "input"),
    "file_search_call": Course(("in_progress", "searching"), completes=True),
    "function_call": Course((), "function_call_arguments", "arguments", told=("name",)),
    "image_generation_call": Course(("in_progress", "generating"), completes=True, interrupted="failed"),
    "mcp_call": Course(("in_progress",), "mcp_call_arguments", "arguments", completes=True, fails=True),
    "mcp_list_tools": Course(("in_progress",), completes=True, fails=True),
    "web_search_call": Course(("in_progress", "searching"), completes=True),
}


class CallWriter(OpenItem):
    """Writes one call of a tool. Steps that a handler leaves out are told when something later comes."""

    def __init__(self, output: Output, item: Json) -> None:
        """Takes a whole item, perhaps with `partial_images` to tell, which are no part of it."""
        self._images: Sequence[str] = item.get("partial_images") or ()
        super().__init__(output, {name: value for name, value in item.items() if name != "partial_images"})
        self._course = COURSES[self._item["type"]]
        self._steps_told = 0
        self._images_told = 0
        self._text: Deltas | None = None
        self._text_told = not self._course.text

    def open(self) -> Self:
        super().open()
        if self._course.steps and not self._steps_told:
            self.step(self._course.steps[0])
        return self

    def step(self, step: str) -> None:
        """The next step, by the name of its event."""
        self._ready(step)
        expected = self._course.steps[self._steps_told :]
        if step not in expected:
            self._misused(step, " or ".join(expected) or "no further step")
        if self._text is not None and not self._text_told:
            self._end_text()
        for name in expected[: expected.index(step) + 1]:
            self._steps_told += 1
            self._tell(f"{self._item['type']}.{name}")

    def delta(self, delta: str) -> None:
        """A piece of the arguments, the code or the input."""
        self._ready(self._course.field)
        delta = plain_text(delta)
        if self._text_told:
            self._misused(self._course.field, "the end of the call")
        if self._text is None:
            self._text = self._deltas(f"{self._course.text}.delta")
        if delta:
            self._text.add(delta)

    def partial_image(self, image: str) -> None:
        """A sketch of the image, in base64."""
        self._ready("partial_image")
        self._tell_steps()
        self._tell(
            "image_generation_call.partial_image", partial_image_index=self._images_told, partial_image_b64=image
        )
        self._images_told += 1

    def done(self, **changes: Any) -> None:
        """Ends the call, with these fields in its last state. An `error` says that it has failed."""
        if self.opened and not self.closed:
            self._item = {**self._item, **changes}
            self._tell_rest()
            changes = {}
        super().done(**changes)

    def interrupt(self) -> None:
        course = self._course
        if course.text and self._text is None:
            self._item = {**self._item, course.field: ""}
        self.done(**({"status": course.interrupted} if "status" in self._item else {}))

    def _tell_rest(self) -> None:
        """What was not told of before the end."""
        course, kind = self._course, self._item["type"]
        failed = self._item.get("error") is not None or self._item.get("status") == "failed"
        if failed and "status" in self._item:
            self._item = {**self._item, "status": "failed"}
        completed = not failed and self._item.get("status") != "incomplete"
        if completed:
            self._tell_steps()
        for image in self._images:
            self.partial_image(image)
        if not self._text_told:
            self._end_text()
        if course.completes and completed:
            self._tell(f"{kind}.completed")
        if course.fails and failed:
            self._tell(f"{kind}.failed")

    def _tell_steps(self) -> None:
        if self._steps_told < len(self._course.steps):
            self.step(self._course.steps[-1])

    def _end_text(self) -> None:
        course = self._course
        if self._text is None:
            self.delta(self._item[course.field])
        else:
            self._item = {**self._item, course.field: self._text.joined()}
        self._text_told = True
        self._tell(f"{course.text}.done", **{name: self._item[name] for name in (course.field, *course.told)})

    def _set(self, name: str, value: Any) -> None:
        """A field of the item's last state."""
        self._ready(name)
        self._item = {**self._item, name: builtins(value)}


class FunctionCallWriter(CallWriter):
    """Asks the caller to run a function."""

    def arguments(self, delta: str) -> None:
        """A piece of the arguments, which together are JSON."""
        self.delta(delta)


class CustomToolCallWriter(CallWriter):
    """Asks the caller to run a tool that takes text."""

    def input(self, delta: str) -> None:
        self.delta(delta)


class McpCallWriter(CallWriter):
    """A call that the agent makes to a tool of an MCP server."""

    def arguments(self, delta: str) -> None:
        """A piece of the arguments, which together are JSON."""
        self.delta(delta)

    def output(self, text: str) -> None:
        """What the tool gave."""
        self._set("output", text)

    def error(self, error: str | Mapping[str, Any]) -> None:
        """Why the call failed."""
        self._set("error", error)


class CodeInterpreterWriter(CallWriter):
    """Code that the agent writes and runs."""

    def code(self, delta: str) -> None:
        self.delta(delta)

    def interpreting(self) -> None:
        """The code runs."""
        self.step("interpreting")

    def outputs(self, outputs: Sequence[Mapping[str, Any]]) -> None:
        """`{"type": "logs", "logs": …}` or `{"type": "image", "url": …}`."""
        self._set("outputs", outputs)


class ImageGenerationWriter(CallWriter):
    """An image that the agent makes."""

    def generating(self) -> None:
        self.step("generating")

    def result(self, image: str) -> None:
        """The image, in base64."""
        self._set("result", image)


class FileSearchWriter(CallWriter):
    """A search of the agent in files."""

    def searching(self) -> None:
        self.step("searching")

    def results(self, results: Sequence[Mapping[str, Any]]) -> None:
        """`file_id`, `filename`, `score`, `text`, `attributes` of each."""
        self._set("results", results)


class WebSearchWriter(CallWriter):
    """A search of the agent in the web."""

    def searching(self) -> None:
        self.step("searching")

    def action(self, action: Mapping[str, Any]) -> None:
        """What was done: `{"type": "search", "query": …, "sources": […]}`, `open_page` or `find_in_page`."""
        self._set("action", action)
