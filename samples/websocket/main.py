"""A game over a WebSocket: guess the number it thinks of."""

import random

from cupola_agent import Agent, CallContext, WebSocket

LOST = 4000

agent = Agent()


@agent.websocket
async def play(socket: WebSocket, context: CallContext) -> None:
    highest = int(socket.query.get("highest", "100"))
    number = random.randint(1, highest)  # noqa: S311
    await socket.send_json({"session": context.session_id, "from": 1, "to": highest})
    guesses = 0
    async for message in socket:
        guesses += 1
        if not isinstance(message, str) or not message.isdecimal():
            await socket.close(LOST, "that was no number")
        elif int(message) == number:
            await socket.send_json({"guesses": guesses, "won": True})
            return
        else:
            await socket.send_json({"guesses": guesses, "hint": "higher" if int(message) < number else "lower"})


if __name__ == "__main__":
    agent.run()
