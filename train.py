"""Train a RAD adapter or a base model: `python train.py --config rad_ffhq.yaml`."""

from rad.cli.main import train

if __name__ == "__main__":
    raise SystemExit(train())
