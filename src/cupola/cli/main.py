"""The command line: `cupola`. Each noun has a module; what a command needs is imported when it runs."""

from __future__ import annotations

import sys

from cyclopts import App

from cupola import __version__
from cupola.domain.errors import CupolaError

app = App(
    name="cupola",
    help="Hosted agents on machines you own.",
    version=__version__,
    help_epilogue='Start with `cupola up --detach`, then `eval "$(cupola env)"`.',
)
app.command("cupola.cli.server:up", help="Start the platform.")
app.command("cupola.cli.server:down", help="Stop the platform; sandboxes end, files stay.")
app.command("cupola.cli.server:env", help="Print what a shell needs to use the platform.")
app.command("cupola.cli.server:config", help="Print every setting and where it comes from.")
app.command("cupola.cli.doctor:doctor", help="Check what this machine has and lacks for running agents.")
app.command("cupola.cli.logs:logs", help="Show what a session's container printed, or the server's own log.")
versions = App(name="versions", help="Versions of agents.")
versions.command("cupola.cli.versions:show", help="Show a version and how its provisioning went.")
app.command(versions)
egress = App(name="egress", help="What sandboxes may reach outside.")
egress.command("cupola.cli.egress:show", help="Show the policy: everything public, a list of names, or nothing.")
egress.command("cupola.cli.egress:replace", name="set", help="Replace the policy.")
app.command(egress)


def main() -> None:
    """Run the command line; errors meant for people are one message and exit code 1."""
    try:
        app()
    except CupolaError as error:
        print(f"cupola: {error.message}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output has gone, as `head` does. Nothing more can be said to it.
        sys.stderr.close()
        sys.exit(0)
