"""Models in transformers' layout, from a folder or the hub: none of them is packaged."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from phantom_s2v.models.bounds import loading
from phantom_s2v.models.finite import check_weights
from phantom_s2v.models.tensors import align


def load_transformers(kind: str, folder: Path) -> tuple[Any, Any]:
    """Processor and model of a folder in transformers' layout. Raises CheckpointError where they cannot be had."""
    import transformers

    def build(place: Path) -> nn.Module:
        config = transformers.AutoConfig.from_pretrained(place, local_files_only=True, trust_remote_code=False)
        return getattr(transformers, kind).from_config(config, trust_remote_code=False)

    processor = "AutoImageProcessor" if kind == "AutoModel" else "AutoProcessor"
    with loading(folder, f"{kind} of transformers", build):
        prepare = getattr(transformers, processor).from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model = getattr(transformers, kind).from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, use_safetensors=True
        )
    model = check_weights(align(model), str(folder)).eval().requires_grad_(False)
    return prepare, model.to("cuda" if torch.cuda.is_available() else "cpu")
