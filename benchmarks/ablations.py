"""Trains RAD's ablations at a small scale, and samples and scores them with equal settings.

    python benchmarks/ablations.py --data TRAIN.zip --val_data VAL.zip --images runs/images32 --output runs/ablations

Each variant differs from `rad` in one setting. All have the same steps, batch, data and seed. Rerun the command to resume:
finished variants are skipped.

OUTPUT/compared holds all variants as one scored comparison, for benchmarks/table.py; the first variant is its baseline.
OUTPUT/commands.txt lists the commands that ran.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

MASKS = "--model.masks.class_path=rad.masks.shapes."
SCRATCH = ["--model.lora=null", "--model.base=null"]
V_PREDICTION = ["--model.scratch.prediction=v_prediction", "--model.loss.weight_limit=1"]
VARIANTS: dict[str, list[str]] = {
    "rad": [],
    "no-spatial-embedding": ["--model.process.time_origin=image"],
    "pixel-masks": [f"{MASKS}RandomPixels", "--model.masks.init_args.fraction=[0.02,0.98]"],
    "box-masks": [f"{MASKS}Box"],
    "mixture-masks": ["--model.masks.class_path=rad.masks.photos"],
    "all-weights": ["--model.lora=null"],
    "from-scratch": SCRATCH,
    "from-scratch-v": [*SCRATCH, *V_PREDICTION],
    "from-scratch-v-no-spatial-embedding": [*SCRATCH, *V_PREDICTION, "--model.process.time_origin=image"],
    "rank-4": ["--model.lora.rank=4", "--model.lora.alpha=4"],
    "rank-64": ["--model.lora.rank=64", "--model.lora.alpha=64"],
    "lora-time-layers": ["--model.lora.time_layers=lora"],
    "tdpaint": ["--model.process.kind=tdpaint", "--model.loss.region=moving"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="training photographs: folder or zip")
    parser.add_argument("--val_data", required=True)
    parser.add_argument(
        "--images", type=Path, required=True, help="folder of images to inpaint, see benchmarks/image_set.py"
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--training_steps", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=50, help="sampling steps")
    parser.add_argument("--limit", type=int, default=100, help="number of images")
    parser.add_argument("--mask", nargs="+", default=["box", "wide", "half", "thin"])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    for name in options.variants:
        model = options.output / "runs" / name / "checkpoints" / f"step={options.training_steps}-ema"
        if not (model / "rad_config.json").is_file():
            call(options, training(options, name))
        call(options, sampling(options, name, model))
    call(options, scoring(options))


def training(options: argparse.Namespace, name: str) -> list[str]:
    """The command that trains a variant."""
    steps = options.training_steps
    words = ["train.py", "--config", "rad_nature32.yaml", "--name", name, "--seed_everything=5"]
    words += ["--model.optimizer.lr=2e-3", "--model.schedule.warmup_steps=20"]  # a high learning rate, for short runs
    words += ["--model.lora.rank=16", "--model.lora.alpha=16"] if "--model.lora=null" not in VARIANTS[name] else []
    words += VARIANTS[name]
    if "--model.base=null" in VARIANTS[name]:
        unet = json.loads((ROOT / "checkpoints/base-nature32/unet/config.json").read_text())
        if set(V_PREDICTION) <= set(VARIANTS[name]):
            unet["out_channels"] = 3  # v-prediction has no learned variance
        words.append(f"--model.scratch.unet={json.dumps({key: value for key, value in unet.items() if key[0] != '_'})}")
    words += [f"--trainer.max_steps={steps}", f"--trainer.val_check_interval={steps}", "--data.in_memory=true"]
    words += ["--trainer.enable_progress_bar=false"]
    words += [f"--data.path={Path(options.data).resolve()}", f"--data.val_path={Path(options.val_data).resolve()}"]
    return words


def sampling(options: argparse.Namespace, name: str, model: Path) -> list[str]:
    """The command that inpaints and scores the images with a variant."""
    words = ["sample.py", "--checkpoint", str(model.resolve()), "--image", str(options.images.resolve())]
    words += ["--mask", *options.mask, "--method", method(options, name), "--limit", str(options.limit)]
    words += ["--output", str((options.output / "results" / name).resolve()), "--batch_size", "25", "--report"]
    words += ["--solver", "ddpm", "--spacing", "even"]
    return [*words, "--feature_net", str(ROOT / "checkpoints/features-nature64")]


def scoring(options: argparse.Namespace) -> list[str]:
    """Link the results of all variants as methods of one comparison. Returns the command that scores it."""
    together = options.output / "compared"
    for mask in options.mask:
        (together / mask).mkdir(parents=True, exist_ok=True)
        for name in options.variants:
            results = (options.output / "results" / name / mask).resolve()
            for source, label in (("masks", "masks"), (method(options, name), name)):
                if not (together / mask / label).exists():
                    (together / mask / label).symlink_to(results / source, target_is_directory=True)
    words = ["-m", "rad.evaluation", "--results", str(together.resolve())]
    words += ["--reference", str(options.images.resolve())]
    return [*words, "--baseline", options.variants[0], "--feature_net", str(ROOT / "checkpoints/features-nature64")]


def method(options: argparse.Namespace, name: str) -> str:
    """The method that samples a variant, which is also the name of its result folder."""
    return f"{'tdpaint' if name == 'tdpaint' else 'rad'}@{options.steps}"


def call(options: argparse.Namespace, words: list[str]) -> None:
    """Run a script or module of the project in the output folder."""
    with (options.output / "commands.txt").open("a") as file:
        print("python", shlex.join(words), file=file)
    models = options.output / "checkpoints"
    if not models.exists():
        models.symlink_to(ROOT / "checkpoints")
    program = words if words[0] == "-m" else [str(ROOT / words[0]), *words[1:]]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *program], cwd=options.output, env=environment, check=False)
    if done.returncode not in (0, 3):  # 3: an image or a part of the report is missing
        raise SystemExit(done.returncode)


if __name__ == "__main__":
    main()
