"""`python -m rad.studio`, the same as `rad studio`."""

from rad.studio.command import main

if __name__ == "__main__":
    raise SystemExit(main())
