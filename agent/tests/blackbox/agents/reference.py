"""The agent under test on azure-ai-agentserver-responses. See script.py for what it can be told to do."""

from __future__ import annotations

from azure.ai.agentserver.responses import ResponseEventStream, ResponsesAgentServerHost
from azure.ai.agentserver.responses._id_generator import IdGenerator

from agent.tests.blackbox.agents import script

app = ResponsesAgentServerHost(configure_observability=None, access_log=None, log_level="WARNING")


@app.response_handler
async def reply(request, context, cancellation):
    steps = script.parse(await context.get_input_text())
    history = await context.get_history()

    async def events():
        if not steps:
            return
        if steps[0].verb == "raise":
            raise LookupError("a secret detail")
        stream = ResponseEventStream(response_id=context.response_id, request=request)
        message = text = None
        said = []
        yield stream.emit_created()
        yield stream.emit_in_progress()

        def say(piece):
            nonlocal message, text
            if message is None:
                message = stream.add_output_item_message()
                yield message.emit_added()
                text = message.add_text_content()
                yield text.emit_added()
            said.append(piece)
            yield text.emit_delta(piece)

        def end_message():
            nonlocal message, text
            if message is not None:
                yield text.emit_text_done("".join(said))
                yield text.emit_done()
                yield message.emit_done()
            message = text = None
            said.clear()

        for step in steps:
            if step.verb not in ("say", "gate", "hold", "raise", "history", "tell"):
                for event in end_message():
                    yield event
            match step.verb:
                case "say" | "history" | "tell":
                    for event in say(_text(step, context, history)):
                        yield event
                case "gate":
                    if not await script.pass_gate(step.argument, cancellation):
                        return
                case "hold":
                    await script.pass_gate(step.argument)
                case "raise":
                    raise LookupError("a secret detail")
                case "fail":
                    code, _, words = step.argument.partition(" ")
                    yield stream.emit_failed(code=code, message=words)
                    return
                case "incomplete":
                    yield stream.emit_incomplete(reason=step.argument)
                    return
                case "call":
                    for event in stream.output_item_function_call("add", "call_1", '{"a":1}'):
                        yield event
                case "reason":
                    for event in stream.output_item_reasoning_item(step.argument):
                        yield event
                case "refuse":
                    refusing = stream.add_output_item_message()
                    yield refusing.emit_added()
                    refusal = refusing.add_refusal_content()
                    yield refusal.emit_added()
                    yield refusal.emit_delta(step.argument)
                    yield refusal.emit_refusal_done(step.argument)
                    yield refusal.emit_done()
                    yield refusing.emit_done()
                case "cite":
                    for event in stream.output_item_message(step.argument, annotations=[dict(script.CITATION)]):
                        yield event
                case "item":
                    item = dict(script.ITEMS[step.argument])
                    item["id"] = IdGenerator.new_item_id(item, context.response_id)
                    builder = stream.add_output_item(item["id"])
                    yield builder.emit_added(item)
                    yield builder.emit_done(item)
                case _:
                    raise ValueError(f"no such verb: {step.verb}")
        for event in end_message():
            yield event
        yield stream.emit_completed()

    return events()


def _text(step, context, history):
    if step.verb == "say":
        return step.argument
    if step.verb == "history":
        return script.summary(history)
    name, _, key = step.argument.partition(" ")
    match name:
        case "user":
            return context.platform_context.user_id_key or "nobody"
        case "call":
            return context.platform_context.call_id or "none"
        case "response":
            return context.response_id
        case "conversation":
            return context.conversation_id or "none"
        case "header":
            return context.client_headers.get(key, "none")
        case "query":
            return context.query_parameters.get(key, "none")
        case _:
            raise ValueError(f"nothing to tell about {name}")


if __name__ == "__main__":
    app.run()
