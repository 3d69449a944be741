"""What every command does alike: run a cyclopts app, turn a user's mistake into one line and an exit code.

Exit codes: 0 did what was asked, 1 the user must change something, 2 usage, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from otel_lightning.app.errors import LightningError
from otel_lightning.app.printable import printable

if TYPE_CHECKING:
    from cyclopts import App


def run(app: App, argv: Sequence[str] | None = None) -> int:
    """Run `app` on `argv` (default: the process's own) and return the exit code.

    An int returned by the command is the exit code. Tracebacks are for bugs only: set
    LIGHTNING_TRACEBACK=1 to see one for a user's mistake as well.
    """
    name = app.name[0] if app.name else "lightning"
    return guard(lambda: app(argv, exit_on_error=False, print_error=False, result_action="return_value"), name)


def guard(call: Any, name: str) -> int:
    """Run `call()` and return an exit code; errors a person can act on become `name: line` on stderr."""
    from cyclopts import CycloptsError

    try:
        result = call()
        sys.stdout.flush()
    except LightningError as error:
        if os.environ.get("LIGHTNING_TRACEBACK"):
            raise
        print(_prefixed(name, printable(str(error))), file=sys.stderr)
        return error.exit_code
    except CycloptsError as error:
        line = " ".join(str(error).split())
        print(f"{name}: {line} (see '{name} --help')", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (`| head`) went away; that is its right. Python would complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return result if isinstance(result, int) and not isinstance(result, bool) else 0


def _prefixed(name: str, text: str) -> str:
    return "\n".join(f"{name}: {line}" for line in text.splitlines())
