"""What a fine-tuning writes: a model folder or a LoRA file, of the last and the best state, and a model card."""

import json
import os
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from phantom_s2v.files.io import read_json, read_text, write_json, write_text
from phantom_s2v.models.distributed import is_main
from phantom_s2v.models.tensors import FILE, save_tensors
from phantom_s2v.models.wan.lora import native_name
from phantom_s2v.models.wan.lora_files import lora_metadata
from phantom_s2v.training.checkpoint import step_name
from phantom_s2v.training.config import Lora, OwnConfig
from phantom_s2v.training.encoded import EncodedStore, JoinedStore

LAST, BEST, EARLIER, RANKED = ("model", "lora.safetensors"), ("best", "best.safetensors"), "saves", "best.json"
CARD = "README.md"  # as hubs call a model card
OUTPUTS = (*LAST, *BEST, EARLIER, RANKED, CARD)
State = dict[str, torch.Tensor]


def write_model(folder: Path, weights: State, dtype: torch.dtype, out: Path) -> None:
    """A model folder: that in `folder` with other weights of the transformer, in `dtype`. Other parts are linked if possible."""
    out.mkdir(parents=True, exist_ok=True)
    for file in sorted(folder.rglob("*")):
        target = out / (place := file.relative_to(folder))
        own = place.parts[0] == "transformer" or place.name == CARD
        if not own and file.is_file() and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(file.resolve(), target)
            except OSError:  # another file system
                shutil.copy2(file, target)
    state = {name: value.to(dtype) for name, value in weights.items()}
    (out / "transformer").mkdir(exist_ok=True)
    save_tensors(state, out / "transformer" / FILE, {"format": "pt"})
    write_text(out / "transformer" / "config.json", read_text(folder / "transformer" / "config.json"))


def write_lora(adapters: State, lora: Lora, model: str, file: Path, more: dict[str, str] | None = None) -> None:
    """Adapters of a `model` in the native names with alpha: diffusers, ComfyUI and --lora apply them at one strength.

    `more` is added to the metadata that other programs show.
    """
    alpha = lora.alpha * (lora.rank**0.5 if lora.rank_stabilized else 1.0)
    tensors = {}
    for name, value in adapters.items():
        layer, _, factor = name.partition(".lora_")
        place = "diffusion_model." + native_name(f"{layer}.weight").removesuffix(".weight")
        tensors[f"{place}.lora_{factor[0]}.weight"] = value.half()
        tensors[f"{place}.alpha"] = torch.tensor(alpha)
    save_tensors(tensors, file, {**lora_metadata(model, lora.rank, alpha, file.stem), **(more or {})})


class Result:
    """The outputs of a run in its folder. The first process writes."""

    def __init__(
        self,
        config: OwnConfig,
        folder: Path,
        store: EncodedStore | JoinedStore,
        name: str,
        dtype: torch.dtype,
        out: Path,
        stated: dict[str, Any],
    ) -> None:
        """Of the model `name` in `folder`, trained on `store`; `stated` is what is known of the batches."""
        self.config, self.folder, self.name, self.dtype, self.out = config, folder, name, dtype, out
        self.data, self.stated, self.figures = store.rights(), stated, dict[str, float]()
        self.kind = int(config.lora is not None)

    @property
    def made(self) -> Path:
        """The last state."""
        return self.out / LAST[self.kind]

    def save(self, state: State, step: int) -> None:
        """Write the last state, and of the config's number of earlier ones a copy that stays."""
        self.save_last(state)
        if not is_main():
            return
        if keep := self.config.max_step_saves_to_keep:
            folder = self.out / EARLIER
            folder.mkdir(exist_ok=True)
            self._write(state, folder / f"{step_name(step)}{self.made.suffix}")
            for old in sorted(each for each in folder.iterdir() if re.fullmatch(r"step-\d{8}(\.safetensors)?", each.name))[
                :-keep
            ]:
                shutil.rmtree(old) if old.is_dir() else old.unlink()

    def save_last(self, state: State) -> None:
        """Write the last state."""
        if is_main():
            self._write(state, self.made)

    def compare(self, state: State, step: int, figures: dict[str, float]) -> None:
        """Note what was measured, and keep the state apart where its error on held-out triplets is the lowest so far."""
        self.figures |= {"step": step, **figures}
        if not is_main():
            return
        noted = self.out / RANKED
        if errors := [value for name, value in figures.items() if name.startswith("with_")]:
            error, before = sum(errors) / len(errors), read_json(noted) if noted.is_file() else {}
            if not before or error < before["error"]:
                self._write(state, self.out / BEST[self.kind])
                write_json(noted, {"error": error, "step": step}, sealed=True)
        if self.made.exists():  # a checkpoint of this step was written before
            self._write_card(self.made)

    def _write(self, state: State, target: Path) -> None:
        if self.config.lora is None:
            write_model(self.folder, state, self.dtype, target)
            self._write_card(target)
            return
        last = max(each["since"] for each in self.stated.values())
        known = {
            "ss_learning_rate": str(self.config.train.adam_lr),
            "ss_max_train_steps": str(self.config.train.steps),
            "ss_seed": str(self.config.train.seed),
            "ss_num_train_images": str(sum(each["rows"] for each in self.stated.values() if each["since"] == last)),
            "ss_base_weights": json.dumps(list(self.config.base_weights)),
        }
        write_lora(state, self.config.lora, self.name, target, known)
        self._write_card(target)

    def _write_card(self, target: Path) -> None:
        write_text((self.out if self.config.lora else target) / CARD, self.card(target))

    def card(self, target: Path) -> str:
        """The model card, in Hugging Face's form: what was trained on what, with which rights, how, and what was measured."""
        kind = "LoRA" if self.config.lora else "Fine-tuned weights"
        head = ["---", f"base_model: {self.name}", "library_name: diffusers", "pipeline_tag: text-to-video", "tags:"]
        head += ["- subject-to-video", "- phantom-s2v", *(["- lora"] if self.config.lora else []), "---", ""]
        use = "--lora lora.safetensors" if self.config.lora else "--model ."
        base = f"--model {self.name} " if self.config.lora else ""
        rows = [f"| {license or 'not stated'} | {count} |" for license, count in sorted(self.data.items())]
        figures = [f"| {name} | {value:.5g} |" for name, value in self.figures.items()]
        parts = [f"- {kind_}: {facts['rows']} clips, {facts['share']:.0%} of steps" for kind_, facts in self.stated.items()]
        noted = self.out / RANKED
        shown = noted.is_file() and target == self.made
        best = f"Lowest error with references: step {read_json(noted)['step']} (`{BEST[self.kind]}`)." if shown else ""
        body = [
            f"# {kind} of {self.name}",
            "",
            f'`phantom generate {base}{use} --reference NAME=IMAGE.png --prompt "..."`',
            "",
            "## Data",
            "",
            *parts,
            "",
            "| license of clip and references | triplets |",
            "|---|---|",
            *rows,
            "",
            "## Figures",
            "",
            "`with_t` and `without_t`: error of the predicted clean latent at time t on held-out triplets, with and without the"
            " references.",
            "",
            "| figure | value |",
            "|---|---|",
            *figures,
            "",
            *([best, ""] if best else []),
            "## Configuration",
            "",
            "```json",
            json.dumps(asdict(self.config), indent=1),
            "```",
            "",
        ]
        return "\n".join([*head, *body])
