"""The interface of backbones, and the construction of the one that the settings name."""

from __future__ import annotations

import abc
import itertools
import pkgutil
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from yolact.backbone_registry import BackboneSpec, find_backbone
from yolact.errors import SettingsError, WeightsError
from yolact.settings import ModelConfig
from yolact.transforms import IMAGENET, Normalization


class Structure(NamedTuple):
    """The settings of a backbone that its tensors determine."""

    blocks: tuple[int, ...]
    """Per stage."""
    deformable_blocks: tuple[tuple[int, ...], ...] = ()
    """Per stage; empty for none."""


class Backbone(nn.Module, abc.ABC):
    """A convolutional network without its classifier.

    Subclasses are registered in `yolact.backbone_registry` and built as ``Class(blocks)``; as ``Class(blocks,
    deformable_blocks)`` if the registry entry has ``deformable`` set, and as ``Class(name)`` if it has ``fixed`` set.
    They must also build on the device "meta".
    """

    normalization: Normalization = IMAGENET
    """Normalisation of the input."""

    channels: tuple[int, int, int]
    """Channels of C3, C4 and C5; set by the constructor."""

    @abc.abstractmethod
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map (B, 3, H, W) normalised images to C3, C4 and C5.

        They have ceil(H / s) x ceil(W / s) cells for s = 8, 16 and 32.
        """

    @abc.abstractmethod
    def stem_modules(self) -> Sequence[nn.Module]:
        """Modules with parameters before the first stage: ``train.freeze: stem``."""

    @abc.abstractmethod
    def stage_modules(self) -> Sequence[nn.Module]:
        """The stages in order, one for each entry of ``blocks``: ``train.freeze: stageN``."""

    def conv_norm_pairs(self) -> list[tuple[str, str]]:
        """Names of each convolution and of the batch norm that is the only reader of its output.

        For inference, the batch norm is folded into the convolution. By default there are no pairs, and nothing is
        folded.
        """
        return []

    def imagenet_weights(self, name: str, version: int) -> dict[str, Tensor]:
        """The weights for ``model.backbone_weights: imagenet``, under names that `rename_weights` knows.

        Args:
            name: the registered name.
            version: 1, or 2 for ``imagenet-v2``.

        Raises:
            WeightsError: there are none for this backbone.
            OSError, RuntimeError: the download failed.
        """
        raise WeightsError(f"there are none for {name}; name a file or set it to none")

    def imagenet_address(self, name: str, version: int) -> str:
        """Address of the file that `imagenet_weights` downloads into torch.hub's folder; empty if it downloads none.

        Args and errors: see `imagenet_weights`.
        """
        return ""

    def rename_weights(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights under the names of this backbone, from those of a file or of `imagenet_weights`; extra tensors of
        other programs (a classifier) are left out."""
        return state

    @classmethod
    def infer_structure(cls, names: Collection[str]) -> Structure | None:
        """The structure of a backbone whose tensors have these names (relative to it); None if it is of another class.

        Used only by `yolact import-weights`, which then compares names and shapes with those of the class.
        """
        return None


def build_backbone(config: ModelConfig) -> Backbone:
    """The backbone that ``config`` names, with random weights.

    Raises:
        SettingsError: its class cannot be imported, or a library that it needs is not installed.
    """
    return build_registered(find_backbone(config.backbone), config.blocks, config.deformable_blocks)


def build_registered(
    spec: BackboneSpec, blocks: Sequence[int], deformable_blocks: Sequence[Sequence[int]] = ()
) -> Backbone:
    """A registered backbone with these blocks, unless they are fixed, with random weights; see `build_backbone`."""
    build: Any = backbone_class(spec)
    if spec.fixed:
        arguments: tuple[object, ...] = (spec.name,)
    else:
        arguments = (blocks, deformable_blocks) if spec.deformable else (blocks,)
    backbone: Backbone = build(*arguments)
    return backbone


def backbone_class(spec: BackboneSpec) -> type[Backbone]:
    """The class of a registered backbone.

    Raises:
        SettingsError: it cannot be imported, or is not a `Backbone`.
    """
    try:
        found = pkgutil.resolve_name(spec.implementation)
    except (ImportError, AttributeError, ValueError) as error:
        raise SettingsError(
            f"model.backbone: {spec.name}: {spec.implementation} cannot be imported: {error}; fix it where the "
            "backbone is registered"
        ) from error
    if not (isinstance(found, type) and issubclass(found, Backbone)):
        raise SettingsError(f"model.backbone: {spec.name}: {spec.implementation} is not a {Backbone.__name__} class")
    return found


def sequential_pairs(backbone: nn.Module) -> list[tuple[str, str]]:
    """Pairs for `Backbone.conv_norm_pairs`: a convolution directly before a batch norm in an ``nn.Sequential``.

    Subclasses that only have their own constructor (torchvision's ``Conv2dNormActivation``) are included. Correct for
    a backbone that runs its ``nn.Sequential`` modules as a whole. Modules used in several places, and batch
    norm without statistics or weights of its own, are left out.
    """
    uses = Counter(module for _, module in backbone.named_modules(remove_duplicate=False))
    pairs = []
    for name, module in backbone.named_modules():
        if not isinstance(module, nn.Sequential) or type(module).forward is not nn.Sequential.forward:
            continue  # a subclass with its own forward may run its modules in another way
        children = list(module._modules.items())  # named_children lists a module used twice only once
        for (conv_name, conv), (norm_name, norm) in itertools.pairwise(children):
            foldable = type(conv) is nn.Conv2d and isinstance(norm, nn.BatchNorm2d) and norm.affine
            if foldable and norm.track_running_stats and uses[conv] == uses[norm] == 1:
                prefix = f"{name}." if name else ""
                pairs.append((prefix + conv_name, prefix + norm_name))
    return pairs


def build_with_storage(build: Callable[[], Any]) -> Any:
    """The module that ``build`` makes, on the default device.

    For constructors that compute with tensors, which fails on the device "meta": for it the module is made on the CPU
    and moved, and PyTorch's random state stays as it was.
    """
    device = torch.get_default_device()
    if device.type != "meta":
        return build()
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        return build().to(device)


def draw_weights(weight: Tensor, **how: Any) -> None:
    """`nn.init.kaiming_normal_`, but not on the device "meta": there it draws nothing, and loads PyTorch's compiler."""
    if not weight.is_meta:
        nn.init.kaiming_normal_(weight, **how)
