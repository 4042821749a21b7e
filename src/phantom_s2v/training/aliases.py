"""Names of options as other trainers have them, in a TOML file for --config: each with the field that it sets here.

Those of musubi-tuner and its kin keep their meaning: network_alpha is 1 where network_dim is given alone.
"""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from phantom_s2v.errors import InputError
from phantom_s2v.training.config import Lora, OwnConfig, TrainConfig

Path = tuple[str, ...]  # of a field, table by table
FIELDS: dict[str, Path] = {
    "network_dim": ("lora", "rank"),
    "network_alpha": ("lora", "alpha"),
    "network_weights": ("init_from",),
    "gradient_checkpointing_cpu_offload": ("activation_offload",),
    "torch_compile": ("compile",),
    "discrete_flow_shift": ("t_shift",),
    "sigmoid_scale": ("t_scale",),
    "caption_dropout_rate": ("drop_text",),
    "sample_prompts": ("samples",),
    "learning_rate": ("train", "adam_lr"),
    "max_train_steps": ("train", "steps"),
    "lr_warmup_steps": ("train", "warmup"),
    "max_grad_norm": ("train", "clip_norm"),
    "gradient_accumulation_steps": ("train", "gradient_accumulation_steps"),
    "save_every_n_steps": ("train", "save_steps"),
    "eval_every_n_steps": ("train", "validate_steps"),
    "seed": ("train", "seed"),
}
MODEL, RATES, STEPS = (
    "use --model",
    "rates are constant after warmup, and fall over the last decay_share of the steps",
    "count in steps",
)
ELSEWHERE = {
    "trigger_word": "captions are encoded already; use phantom data import --trigger-word",
    "resume_from_checkpoint": "a run resumes by itself where --out is the same",
    "dataset_config": "use phantom data import with that file, then phantom encode",
    "resolution": "use phantom encode --size",
    "optimizer_type": "the optimizer is AdamW",
    "lr_scheduler": RATES,
    "max_train_epochs": f"{STEPS}; phantom train says how many an epoch has",
    "save_every_n_epochs": f"{STEPS}, by save_every_n_steps",
    "epochs": f"{STEPS}; phantom train says how many an epoch has",
    "network_module": "presets that end in -lora train a LoRA",
    "fp8_base": "use quantization",
    "output_dir": "use --out",
    "output_name": "use --out",
    "logging_dir": "logs are written to --out",
    "dit": MODEL,
    "vae": MODEL,
    "t5": MODEL,
    "task": "use --preset",
}
ADAMW = ("adamw", "torch.optim.AdamW")
PRECISIONS = {"bf16": "bfloat16", "no": "float32"}
SAMPLING = ("uniform", "sigmoid", "shift")


def known(table: dict[str, Any], notify: Callable[[str], object]) -> dict[str, Any]:
    """The table with its aliases as fields of OwnConfig. Raises InputError for an option whose place is another command."""
    own = {*FIELDS, "timestep_sampling", "mixed_precision"}
    out = {name: value for name, value in table.items() if name not in own}
    for name, reason in ELSEWHERE.items():
        needless = {"resume_from_checkpoint": (True, "latest"), "optimizer_type": ADAMW}.get(name, ())
        if name in table and table[name] not in needless:
            raise InputError(f"{name} is no field of the configuration: {reason}")
        out.pop(name, None)
    _check_places(out)
    for name, place in FIELDS.items():
        if name in table:
            _set(out, place, table[name])
    if "network_dim" in table and "network_alpha" not in table:
        notify("network_alpha is 1, as it is elsewhere where network_dim is given alone")
        _set(out, FIELDS["network_alpha"], 1.0)
    if "mixed_precision" in table:
        _set(out, ("train", "precision"), PRECISIONS.get(str(table["mixed_precision"]), table["mixed_precision"]))
    if "timestep_sampling" in table:
        _sampling(out, table["timestep_sampling"])
    return out


def _check_places(table: dict[str, Any]) -> None:
    """Raise InputError for a field outside its table."""
    own = {field.name for field in fields(OwnConfig)}
    for name in sorted(set(table) - own):
        if place := next((place for place, kind in (("train", TrainConfig), ("lora", Lora)) if name in kind.__annotations__), ""):
            raise InputError(f"{name} is a field of [{place}]; write it below a line [{place}]")


def _sampling(out: dict[str, Any], how: Any) -> None:
    """A density without our shift by size; with "sigmoid" and "uniform", discrete_flow_shift has no effect elsewhere either."""
    if how not in SAMPLING:
        raise InputError(f"timestep_sampling must be {', '.join(SAMPLING[:-1])} or {SAMPLING[-1]} (got {how!r})")
    out |= {"t_density": "uniform" if how == "uniform" else "logit-normal", "t_mean": 0.0, "t_tokens": 0}
    if how != "shift":
        out["t_shift"] = 1.0


def _set(out: dict[str, Any], place: Path, value: Any) -> None:
    """Set a field. Raises InputError where it is set by its own name too."""
    *tables, name = place
    for each in tables:
        out[each] = dict(out.get(each) or {})
        out = out[each]
    if name in out:
        raise InputError(f"{'.'.join(place)} is set twice, by its name and by an alias")
    out[name] = value
