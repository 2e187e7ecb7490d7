"""The ``triptych`` command, also as ``python -m triptych``."""

import signal


def main() -> int:
    """Runs the command. Ctrl-C ends it without a traceback from its first moment on, while modules are imported."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from triptych.cli.main import main as run

    return run()


if __name__ == "__main__":
    raise SystemExit(main())
