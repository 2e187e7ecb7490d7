"""``python -m triptych``: the same as the ``triptych`` command."""

from triptych.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
