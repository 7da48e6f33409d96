"""Architectures of timm and torchvision as ONNX files, with random weights, for `peers.py`.

    pip install torch torchvision timm onnx
    python benchmarks/architectures.py nets                        # all of the list, about 5 GB
    python benchmarks/architectures.py nets dla34 torchvision/r3d_18
    python benchmarks/peers.py nets/*.onnx --threads 1 --rounds 3

The statistics of batch norms are drawn, too, so that folding them is no idle work. Maps are at most
256 pixels wide, clips of `r3d_18` and the like are 8 frames of 112 x 112. Files that exist stay.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import timm
import torch
from torchvision import models

MOST_PIXELS = 256
CLIPS = ("r3d_18", "r2plus1d_18")
NAMES = """
bat_resnext26ts cspdarknet53 cspresnet50 convmixer_768_32 convnext_atto convnextv2_atto
coatnet_nano_rw_224 darknet53 dla34 dla60 dm_nfnet_f0 dpn68 ecaresnet50d edgenext_xx_small
efficientformer_l1 efficientnet_lite0 efficientvit_b0 ese_vovnet19b_dw ese_vovnet39b fastvit_t8
fbnetc_100 focalnet_tiny_srf gcresnet33ts gernet_s ghostnet_100 ghostnetv3_100 hardcorenas_a
hgnet_tiny hgnetv2_b0 hrnet_w18_small inception_next_atto inception_v4 lcnet_100
legacy_seresnext26_32x4d levit_128 mixnet_s mnasnet_100 mobilenetv3_large_100
mobilenetv4_conv_medium mobilenetv4_conv_small mobileone_s0 mobilevit_xxs mobilevitv2_050
nf_regnet_b0 poolformer_s12 regnetx_008 regnety_008 repvgg_a0 repvit_m0_9 res2net50_26w_4s
resnest14d resnet10t resnet26d resnet50d resnetv2_50 rexnet_100 selecsls42b semnasnet_100
seresnet50 skresnet18 starnet_s1 tf_efficientnetv2_b0 tinynet_a tresnet_m vgg11_bn
visformer_tiny wide_resnet50_2 xception41 torchvision/alexnet torchvision/googlenet
torchvision/deeplabv3_mobilenet_v3_large torchvision/fcn_resnet50
torchvision/lraspp_mobilenet_v3_large torchvision/mnasnet0_5 torchvision/r3d_18
torchvision/r2plus1d_18 torchvision/shufflenet_v2_x0_5 torchvision/squeezenet1_0
torchvision/swin_t torchvision/vit_b_32
""".split()


class First(torch.nn.Module):
    """A network of which the main result counts, where it has several by name."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Any) -> Any:
        """The result, or that called `out`."""
        y = self.network(x)
        return y["out"] if isinstance(y, dict) else y


def make(name: str) -> tuple[torch.nn.Module, tuple[int, ...]]:
    """A network with random weights, and the shape of its input."""
    library, _, own = name.rpartition("/")
    if library == "torchvision":
        known = models.get_model_builder(own).__annotations__
        weights = [key for key in known if key.startswith("weights")]
        network = First(models.get_model(own, **dict.fromkeys(weights)))
        return network, (1, 3, 8, 112, 112) if own in CLIPS else (1, 3, 224, 224)
    network = timm.create_model(name, pretrained=False, exportable=True)
    config = network.default_cfg
    channels, *size = config["input_size"]
    if not config.get("fixed_input_size"):
        size = [min(pixels, MOST_PIXELS) for pixels in size]
    return network, (1, channels, *size)


def export(name: str, path: Path) -> None:
    """Writes the network as an ONNX file."""
    torch.manual_seed(0)
    network, shape = make(name)
    network.eval()
    generator = torch.Generator().manual_seed(1)
    for part in network.modules():
        if isinstance(part, torch.nn.BatchNorm2d | torch.nn.BatchNorm3d):
            assert part.running_mean is not None and part.running_var is not None
            part.running_mean += 0.05 * torch.randn(part.running_mean.shape, generator=generator)
            part.running_var *= 0.75 + 0.5 * torch.rand(part.running_var.shape, generator=generator)
    x = torch.randn(shape, generator=generator)
    partial = path.with_suffix(".partial")
    torch.onnx.export(network, (x,), str(partial), dynamo=False, opset_version=17)
    partial.rename(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", default=NAMES, help="of timm, or torchvision/...")
    args = parser.parse_args()
    args.folder.mkdir(exist_ok=True)
    for name in args.names:
        path = args.folder / f"{name.rpartition('/')[2]}.onnx"
        if not path.exists():
            export(name, path)
        print(path, flush=True)


if __name__ == "__main__":
    main()
