# `make demo` and `make test` need only Python and a C compiler.
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help setup demo studio pages test test-core slow numerical lint type methods-table pictures docs docs-serve bench gpu-wheels clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 15

setup: $(READY) ## create .venv and install, once

$(READY): pyproject.toml setup.py $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e '.[dev]'
	touch $(READY)

demo: setup ## adapt a model to images by LoRA, restore photographs, write runs/demo/panel.png
	rm -rf runs/demo
	$(BIN)/rad demo --prepare runs/demo/images
	$(BIN)/rad train --config rad_demo.yaml --name demo --data.path runs/demo/images
	$(BIN)/rad demo --adapter runs/demo/checkpoints/step=100-ema --output runs/demo/panel.png

studio: setup ## open the studio: a page to brush masks and watch methods race
	$(BIN)/rad studio --open

pages: setup ## build build/pages, a demo for static hosts; needs npm
	$(BIN)/python -m rad.studio.site --output build/pages

test: setup ## run the tests, on all cores
	$(BIN)/python -m pytest -n auto --dist loadfile -m "not slow"

CORE := diffusion networks sampling images masks inpainting methods/test_methods.py models/test_load.py models/test_lora.py training/test_module.py cli/test_cli.py

test-core: setup ## run the core tests, for other versions of Python and of packages
	$(BIN)/python -m pytest -n auto --dist loadfile -m "not slow" $(CORE:%=tests/%)

slow: setup ## run the tests marked slow
	$(BIN)/python -m pytest -n auto --dist loadfile -m slow

NUMERICAL := models/test_adapters.py networks/test_attention.py networks/test_compile.py training/test_cached_encodings.py data/test_draws.py networks/test_dropout.py training/test_inpainting_metrics.py models/test_lora_variants.py training/test_objectives.py training/test_posthoc.py models/test_autoencoder.py training/test_autoencoder_training.py models/test_codecs.py evaluation/test_compare.py networks/test_conditional.py training/test_ddp.py models/test_edm.py evaluation/test_features.py models/test_flow.py models/test_latent.py training/test_latent_training.py models/test_load.py models/test_lora.py evaluation/test_metrics.py training/test_module.py sampling/test_sampler.py models/test_stable.py networks/test_transformer.py networks/test_unet.py

numerical: setup ## run the tests that compare networks' numbers; the environment sets processor features and RAD_TEST_THREADS
	$(BIN)/python -m pytest -n auto --dist loadfile $(NUMERICAL:%=tests/%)

lint: setup ## check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: setup ## check types
	$(BIN)/pyright

methods-table: setup ## regenerate the stored table of `rad sample --list_methods`
	$(BIN)/python -c "from pathlib import Path; from rad.methods.registry import table; Path('rad/methods/methods.txt').write_text(table() + '\n', encoding='utf-8')"

pictures: setup ## regenerate the pictures of the documentation; RESULTS=DIR, see docs/results/zero-shot.md, adds the race
	rm -rf runs/tutorials
	for script in hero gallery sizes noise_maps mask_sets methods 'models --no_costs' 'tutorials restore remove tune --work runs/tutorials'; do \
		set -- $$script; name=$$1; shift; $(BIN)/python docs/scripts/$$name.py "$$@" || exit 1; done
	$(if $(RESULTS),$(BIN)/python docs/scripts/race.py $(RESULTS) --items box half --metric fd-crop --one_window)

docs docs-serve: export NO_MKDOCS_2_WARNING = 1
docs: setup ## build the documentation site in build/site
	$(BIN)/python -m mkdocs build --strict # with --quiet, warnings do not count

docs-serve: setup ## serve the documentation site, and rebuild it when a page changes
	$(BIN)/python -m mkdocs serve

bench: setup ## measure what benchmarks/results.md reports
	for script in embedding memory perlin loop import_time; do $(BIN)/python benchmarks/$$script.py || exit 1; done

gpu-wheels: setup ## download into .wheels/ what benchmarks/gpu.py needs on a GPU machine that has PyTorch, Lightning and peft but no network
	rm -rf .wheels
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.12 --dest .wheels -c $(CONSTRAINTS) diffusers importlib-metadata lazy-importer jsonargparse docstring-parser typeshed-client

clean: ## remove the outputs of the other targets
	rm -rf $(VENV) runs build *.egg-info .pytest_cache .ruff_cache
