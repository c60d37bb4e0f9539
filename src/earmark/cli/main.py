"""The entry point: a lazy group of commands and the one place where errors become exit codes."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import click

from earmark.cli.output import error_document
from earmark.errors import EarmarkError

COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("demo", "Run the whole journey on real data, in a few minutes."),
    "protect": ("protect", "Train your model with a mark and register it before release."),
    "settle": ("settle", "Train a network without a mark, to conceal one in later."),
    "stamp": ("stamp", "Put a mark into finished weights, without data, code or training."),
    "register": ("register", "Record further files of a protected model in the ledger."),
    "keys": ("keys", "List your keys, and which model each belongs to."),
    "verify": ("verify", "Say whether a suspect carries your mark, and with what certainty."),
    "attack": ("attack", "Attack a marked model and measure what is left of the mark."),
    "bench": ("bench", "Compare schemes, networks and attacks from a plan."),
    "metrics": ("metrics", "Measure a scheme on your task: the literature's eight requirements."),
    "license": ("license", "Issue, list and revoke licenses of locked copies."),
    "unlock": ("unlock", "Open a locked copy with its license."),
    "trace": ("trace", "Name the customer whose copy leaked."),
    "report": ("report", "Check a dossier and write its report."),
    "ledger": ("ledger", "Show and check the ledger."),
    "claim": ("claim", "Claim a suspect before a community, and read what was decided."),
    "node": ("node", "Keep a ledger and verify claims for others."),
    "schemes": ("schemes", "List the schemes."),
    "attacks": ("attacks", "List the attacks."),
    "locks": ("locks", "List the locks."),
    "explain": ("explain", "Explain an error code."),
    "doctor": ("doctor", "Show versions and extras, and run the self-test."),
}
"""Command to (module, one line of help); the module is loaded when the command is used."""

_NO_ARGUMENTS = getattr(click.exceptions, "NoArgsIsHelpError", ())

BUG = 70
INTERRUPTED = 130


class Commands(click.Group):
    """A group whose commands are imported when they are used, so that help comes at once."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the commands in the order of a newcomer's path."""
        return [name for name in COMMANDS if _exists(name)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import one command."""
        if cmd_name not in COMMANDS or not _exists(cmd_name):
            return None
        module = importlib.import_module(f"earmark.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command, or suggest the nearest."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1)
            if not near:
                raise
            text = f"No such command '{args[0]}'. Did you mean '{near[0]}'?"
            raise click.UsageError(text, ctx) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one line a command without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(ctx)])


def _exists(name: str) -> bool:
    return importlib.util.find_spec(f"earmark.cli.{COMMANDS[name][0]}") is not None


EPILOG = """\
Exit codes: 0 done, or mark shown; 1 mark not shown; 2 usage; 3 inconclusive; 4 something was
changed (ledger, dossier, key); 5 could not run; 70 a bug; 130 interrupted.

Begin with:  earmark demo
"""


@click.group(
    cls=Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=EPILOG,
)
@click.version_option(package_name="earmark", prog_name="earmark")
@click.option("--debug", is_flag=True, expose_value=False, help="Show the stack trace of an error.")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Prove which neural network is yours.

    Puts a mark that only your key can read into a model, records the key before release, and later
    tells, with an exact error rate, whether a suspect bears it.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def run(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code.

    Args:
        arguments: What follows the program's name.

    Returns:
        The exit code; see the epilog of the help.
    """
    as_json = "--json" in arguments
    debug = "--debug" in arguments
    try:
        result: Any = cli.main(  # Any: what the command returns
            args=list(arguments),
            prog_name="earmark",
            standalone_mode=False,
            obj=tuple(arguments),  # for `earmark.cli.options.again`
        )
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.UsageError as error:
        if isinstance(error, _NO_ARGUMENTS) and error.ctx is not None:
            click.echo(error.ctx.get_help())
            return 0
        return _fail(arguments, 2, "E100", error.format_message(), as_json=as_json, usage=error)
    except click.ClickException as error:
        return _fail(arguments, 5, "E400", error.format_message(), as_json=as_json)
    except (click.Abort, KeyboardInterrupt):
        text = "Interrupted. What was written before is whole and stays."
        return _fail(arguments, INTERRUPTED, "E130", text, as_json=as_json)
    except EarmarkError as error:
        if debug:
            traceback.print_exc()
        return _fail(arguments, error.exit_code, error.code, str(error), as_json=as_json)
    except ModuleNotFoundError as error:
        return _missing(arguments, error, as_json=as_json)
    except BrokenPipeError:
        return 5
    except Exception as error:  # noqa: BLE001 - the one boundary
        return _bug(arguments, error, as_json=as_json)
    return result if isinstance(result, int) else 0


def _missing(arguments: Sequence[str], error: ModuleNotFoundError, *, as_json: bool) -> int:
    from earmark.registry import EXTRAS, missing_extra

    needed = (error.name or "").partition(".")[0]
    if not any(needed in some for some in EXTRAS.values()):
        return _bug(arguments, error, as_json=as_json)
    extra = missing_extra(needed, "This command")
    return _fail(arguments, extra.exit_code, extra.code, str(extra), as_json=as_json)


def _bug(arguments: Sequence[str], error: Exception, *, as_json: bool) -> int:
    if "--debug" in arguments:
        traceback.print_exception(error)
    text = (
        f"A bug in earmark: {type(error).__name__}: {error}. "
        "Please report it, with the output of the same command with --debug."
    )
    return _fail(arguments, BUG, "E070", text, as_json=as_json)


def _fail(
    arguments: Sequence[str],
    code: int,
    name: str,
    text: str,
    *,
    as_json: bool,
    usage: click.UsageError | None = None,
) -> int:
    text = "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)
    if as_json:
        command = next((item for item in arguments if not item.startswith("-")), "")
        click.echo(error_document(command, code, name, text))
        return code
    if usage is not None and usage.ctx is not None:
        click.echo(usage.ctx.get_usage(), err=True)
        text = f"Error: {text}"
    click.echo(text, err=True)
    return code


def main() -> None:
    """Run the command line and leave the process with its exit code."""
    sys.exit(run(sys.argv[1:]))
