"""Writes a CLIP text model and tokenizer for a few class names, for a small text-to-image model trained from scratch.

    python benchmarks/class_texts.py --names configs/nature64_names.json --output runs/class_texts

Each word of the names is one token; other words are spelled. The text model is random and stays frozen. It gives every name a
distinct code, which the denoiser learns to read; the codes carry no similarity between names.

Prints the number of names and tokens, and the smallest distance between two codes.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from rad.data.captions import read_captions

START, END = "<|startoftext|>", "<|endoftext|>"
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789,.-'"


def write_tokenizer(texts: list[str], folder: Path, *, tokens: int) -> Any:
    """Byte pairs merged until each word of `texts` is one token."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    alphabet = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    trainer = trainers.BpeTrainer(
        vocab_size=100_000,
        min_frequency=1,
        end_of_word_suffix="</w>",
        special_tokens=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator([text.lower() for text in texts], trainer)
    learned = json.loads(tokenizer.to_str())["model"]
    words = [*learned["vocab"], START, END]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in learned["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    result = CLIPTokenizer(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), model_max_length=tokens)
    result.save_pretrained(folder)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", required=True, help="captions file of the training, .json or .jsonl")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--width", type=int, default=64, help="channels of the text model (default: 64)")
    parser.add_argument("--tokens", type=int, default=8, help="tokens per text, with start and end (default: 8)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    texts = sorted(set((read_captions(options.names).texts or {}).values()))
    if not texts:
        parser.error(f"--names {options.names} lists no texts: give a .json or .jsonl file")
    tokenizer = write_tokenizer(texts, options.output / "tokenizer", tokens=options.tokens)
    longest = max(len(tokenizer(text).input_ids) for text in texts)
    if longest > options.tokens:
        parser.error(f"the longest name has {longest} tokens with start and end: set --tokens to {longest} or more")
    start, end = (tokenizer.convert_tokens_to_ids(word) for word in (START, END))
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=options.width,
        intermediate_size=2 * options.width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=options.tokens,
        bos_token_id=start,
        eos_token_id=end,
        pad_token_id=end,
    )
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        encoder = CLIPTextModel(config).eval()
    encoder.save_pretrained(options.output / "text_encoder")
    with torch.no_grad():
        ids = tokenizer(texts, padding="max_length", return_tensors="pt").input_ids
        codes = encoder(ids).last_hidden_state.flatten(1)
    nearest = torch.cdist(codes, codes).fill_diagonal_(torch.inf).min()
    print(f"{len(texts)} names, {len(tokenizer)} tokens; the nearest two names differ by {float(nearest):.2f}")


if __name__ == "__main__":
    main()
