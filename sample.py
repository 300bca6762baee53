"""Fill holes in images: `python sample.py --checkpoint ADAPTER --image FILE --mask FILE --output FILE`."""

from rad.cli.main import sample

if __name__ == "__main__":
    raise SystemExit(sample())
