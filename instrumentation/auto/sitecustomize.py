"""Run by every Python process that has this folder on PYTHONPATH: arms the instrumentation, then the next sitecustomize.

It may not fail, and costs nothing that can be noticed: frameworks are instrumented when, and if, they are imported.
"""

import sys


def _arm() -> None:
    try:
        from otel_lightning.instrumentation.start import arm
    except ImportError:
        # Another environment's Python, as in a container with the packages on a volume: look beside this very file, last.
        import os

        packages = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
        if not os.path.isdir(os.path.join(packages, "otel_lightning", "instrumentation")):
            return
        sys.path.append(packages)
        try:
            from otel_lightning.instrumentation.start import arm
        except ImportError:
            return
    arm()


def _next() -> None:
    """The sitecustomize that this one hides."""
    import os
    from importlib.machinery import PathFinder
    from importlib.util import module_from_spec

    here = os.path.dirname(os.path.abspath(__file__))
    paths = [path for path in sys.path if os.path.abspath(path or ".") != here]
    spec = PathFinder.find_spec("sitecustomize", paths)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(module_from_spec(spec))


try:
    _arm()
except Exception as error:
    print(f"otel-lightning: not started: {error}", file=sys.stderr)
_next()
