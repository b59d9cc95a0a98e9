"""The agent of the benchmark on cupola-agent, with its defaults.

python -m cupola_agent run benchmarks.protocol_agents.ours:agent
"""

from __future__ import annotations

from cupola_agent import Agent

from benchmarks.protocol_agents.work import words

agent = Agent()
agent.responses(words)
