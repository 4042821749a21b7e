"""The table of docs/phantom-wan.md: computed memory and minutes of the released models. Last line: one JSON object."""

import json
import tempfile
from pathlib import Path

from phantom_s2v.models.memory import Placement
from phantom_s2v.models.registry import load_preset
from phantom_s2v.pipeline.batch import build_request
from phantom_s2v.pipeline.cost.measure import estimate

SHARED = {
    "patch_size": [1, 2, 2],
    "attention_head_dim": 128,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 4096,
    "freq_dim": 256,
}
MODELS = {
    "1.3B": {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
    "14B": {"num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 40},
}
T5 = {
    "model_type": "umt5",
    "vocab_size": 256384,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}
OPTIONS = {
    "default": {},
    "--quantization fp8": {"quantization": "fp8"},
    "--text-on-cpu": {"text_on_cpu": True},
    "--text-on-cpu --offload model": {"text_on_cpu": True, "offload": "model"},
    "--text-on-cpu --offload model --quantization fp8": {"text_on_cpu": True, "offload": "model", "quantization": "fp8"},
    "--text-on-cpu --offload group": {"text_on_cpu": True, "offload": "group"},
}
CARDS = ("rtx-4090", "l40s", "a100-80gb", "h100")


def configured(folder: Path, config: dict) -> Path:
    """A model folder with configurations alone, which is all that an estimate reads."""
    parts = {
        "transformer": {"_class_name": "WanTransformer3DModel", **SHARED, **config},
        "vae": {"base_dim": 96, "z_dim": 16},
        "text_encoder": T5,
    }
    for name, values in parts.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(values))
    return folder


def main() -> None:
    result: dict = {}
    with tempfile.TemporaryDirectory() as root:
        print("| model, 832x480, two references | option | peak GB | " + " | ".join(CARDS) + " |")
        print("|---" * (3 + len(CARDS)) + "|")
        for name, config in MODELS.items():
            folder = configured(Path(root) / name, config)
            preset = load_preset(folder)
            request = build_request({"prompt": "a", "reference": ["a=1.png", "b=2.png"]}, preset)
            for label, options in OPTIONS.items():
                placement = Placement(device="cpu", **options)
                found = {card: estimate(request, preset, folder, placement, card) for card in CARDS}
                peak = found[CARDS[0]].peak / 1e9
                times = [f"{found[card].seconds / 60:.0f} min" for card in CARDS]
                print(f"| {name}, {request.num_frames} frames | {label} | {peak:.0f} | " + " | ".join(times) + " |")
                result[f"{name}, {label}"] = {
                    "gigabytes": round(peak, 1),
                    "minutes": {c: round(found[c].seconds / 60, 1) for c in CARDS},
                }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
