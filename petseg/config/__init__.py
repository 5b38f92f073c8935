"""RunConfig: a frozen tree of all settings of a run, validated when it is built and never changed afterwards.

It defines the command line (tyro), the axes of a sweep (dotted names such as `model.arch`) and config.json. Fields
marked FREE (names, paths, tracking, threads) do not change the numbers and are left out of the run's identity, which is
a hash of the others and of the shard set.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from petseg.config.distill import DistillConfig
from petseg.config.marks import BY_CONTENT, FREE, INIT_BY_CONTENT, LATER, LATER_GROUP, TARGET_BY_CONTENT
from petseg.config.rules import require
from petseg.config.sizes import SIZE_MULTIPLE_PX, Fit, ImageSize, Size, is_network_size, plain_size, size_of
from petseg.config.training import OptimConfig, TrainConfig

OWN_ARCHITECTURES = ("unet", "resnet34_unet")  # the others are decoders of segmentation-models-pytorch
WEIGHTS_SUFFIXES = (".safetensors", ".pth", ".pt")
INIT_SUFFIX = ".safetensors"
WEIGHTS_FIELDS = {"model.weights": "none", "model.init": "", "distill.teacher": ""}  # -> the value that names no file


@dataclass(frozen=True)
class DataConfig:
    shards: str = field(default="data/shards", metadata=FREE)
    """Folder of the shard set, made by `python -m shards.pack`; or http(s)://, s3://, gs://, file://, or
    `pipe:COMMAND`, which writes the file named by {} to its output: such shards are staged to data.cache_dir."""
    image_size_px: ImageSize = 256
    """Size of the pictures that the network sees: 256 for a square, or 512x1024 (height x width); multiples of 32.
    data.fit says how pictures of other shapes get it."""
    fit: Fit = field(default="squash", metadata=LATER)
    """squash: pictures are scaled to the size, whatever their shape; letterbox: their shape is kept, and what remains
    of the size is filled with the mean colour and left out of loss and metrics; crop: training takes random crops of
    that size at the pictures' own resolution, and evaluation measures whole pictures by overlapping windows."""
    rare_crops: float = field(default=0.0, metadata=LATER)
    """Share of the training crops that must contain a class drawn from those in the picture, each as likely as the
    others: rare classes are seen more often. With data.fit crop only."""
    target: str = field(default="auto", metadata=LATER | TARGET_BY_CONTENT)
    """The classes to learn. as_packed: those of the shard set; or a .toml file that merges and drops classes, which is
    identified by its content. Sets of trimaps also offer pet (two classes), trimap (three), species and breed. auto:
    pet for a set of trimaps, else as_packed."""
    border: Literal["fg", "bg", "ignore"] = "fg"
    """What the border of trimaps counts as: pet, background, or left out of loss and metrics."""
    threads: int = field(default=2, metadata=FREE)
    """Threads per process that read and decode samples."""
    shuffle_window_shards: int = 16
    """Samples are shuffled within windows of so many (shuffled) shards, so that reading stays nearly sequential."""
    cache: Literal["auto", "none", "node", "device"] = field(default="auto", metadata=FREE)
    """Cache of decoded samples: none, a memory-mapped file per node, the GPU's memory, or chosen by size (auto)."""
    cache_dir: str = field(default="", metadata=FREE)
    """Local folder for decoded samples and staged shards; by default $PETSEG_CACHE or one in the temporary folder."""
    cache_gb: float = field(default=50.0, metadata=FREE)
    """Size limit of that folder in GB; the least recently used files are deleted first."""
    max_lost_samples: int = 0
    """Number of unreadable samples per epoch, over all processes, that training tolerates."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size_px", plain_size(self.image_size_px))  # 256x256 is the same run as 256
        rule = f"must be a multiple of {SIZE_MULTIPLE_PX}, or height x width as in 512x1024, both such multiples"
        require(is_network_size(self.image_size_px), "data.image_size_px", self.image_size_px, rule)
        require(self.threads >= 1, "data.threads", self.threads, "must be at least 1")
        share, rule = self.rare_crops, "must lie in [0, 1], and needs data.fit crop above 0"
        require(share == 0 or (0 < share <= 1 and self.fit == "crop"), "data.rare_crops", share, rule)
        window, budget = self.shuffle_window_shards, self.max_lost_samples
        require(window >= 1, "data.shuffle_window_shards", window, "must be at least 1")
        require(self.cache_gb > 0, "data.cache_gb", self.cache_gb, "must be positive")
        require(budget >= 0, "data.max_lost_samples", budget, "must not be negative")

    @property
    def size_px(self) -> Size:
        """Height and width of image_size_px."""
        return size_of(self.image_size_px)


@dataclass(frozen=True)
class AugmentConfig:
    policy: Literal[
        "none", "elastic", "elastic_crop", "flip", "rotate", "scale", "color", "blur_noise", "cutout", "strong"
    ] = "none"
    """How samples are augmented. elastic: smooth random displacement; elastic_crop: that, or else a random crop scaled
    back; flip: left-right mirror image; rotate, scale: about the center, about a random point; color: brightness,
    contrast, saturation and hue; blur_noise: one or the other; cutout: hides a rectangle of the picture and keeps its
    mask; strong: all of these together, each with its own probability."""
    mode: Literal["replace", "add"] = field(default="replace", metadata=LATER)
    """replace: the changed picture replaces the original; add: the changed picture joins the original in its batch, and
    they share its weight. Either way an epoch has the same number of optimizer steps."""
    p: float = 0.2
    """Probability that a sample is changed, with any policy but strong."""
    strong_p: float = field(default=1.0, metadata=LATER)
    """Probability that a sample is changed, with the policy strong."""
    elastic_alpha: float = 30.0
    """Strength of the displacement, in the sense of torchvision's ElasticTransform (30 is about 0.5 px rms)."""
    elastic_sigma_px: float = 5.0
    """Smoothness of the displacement: standard deviation of its Gaussian kernel, in pixels."""
    crop_min_area: float = 0.5
    """A crop keeps at least this share of the picture's area."""
    rotate_max_deg: float = field(default=20.0, metadata=LATER)
    """Largest rotation to either side, in degrees."""
    scale_min: float = field(default=0.7, metadata=LATER)
    """Smallest magnification; below 1 the picture shrinks and its reflection fills the rest."""
    scale_max: float = field(default=1.4, metadata=LATER)
    """Largest magnification."""
    color_strength: float = field(default=0.3, metadata=LATER)
    """Brightness, contrast and saturation are multiplied by 1 +- this at most; the hue turns by 45 degrees times it."""
    blur_max_sigma_px: float = field(default=1.0, metadata=LATER)
    """Largest standard deviation of the Gaussian blur, in pixels; the smallest is half of it."""
    noise_max_std: float = field(default=15.0, metadata=LATER)
    """Largest standard deviation of the noise, in grey levels of 255."""
    cutout_max_side: float = field(default=0.4, metadata=LATER)
    """Longest side of the hidden rectangle, as a share of the picture's side; the shortest is half of it."""

    def __post_init__(self) -> None:
        for name in ("p", "strong_p"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"augment.{name}", value, "must lie in [0, 1]")
        for name in ("elastic_alpha", "blur_max_sigma_px", "noise_max_std"):
            value = getattr(self, name)
            require(0 <= value < math.inf, f"augment.{name}", value, "must not be negative")
        sigma, crop, turn = self.elastic_sigma_px, self.crop_min_area, self.rotate_max_deg
        require(sigma >= 1, "augment.elastic_sigma_px", sigma, "must be at least 1")
        require(0 < crop <= 1, "augment.crop_min_area", crop, "must lie in (0, 1]")
        require(0 <= turn <= 180, "augment.rotate_max_deg", turn, "must lie in [0, 180]")
        low, high, color, side = self.scale_min, self.scale_max, self.color_strength, self.cutout_max_side
        require(0.1 <= low <= high, "augment.scale_min", low, "must lie in [0.1, augment.scale_max]")
        require(high <= 10, "augment.scale_max", high, "must be at most 10")
        require(0 <= color <= 1, "augment.color_strength", color, "must lie in [0, 1]")
        require(0 < side <= 1, "augment.cutout_max_side", side, "must lie in (0, 1]")


@dataclass(frozen=True)
class ModelConfig:
    arch: Literal[
        "unet", "resnet34_unet", "smp_unet", "unetplusplus", "manet", "linknet", "fpn", "pspnet",
        "deeplabv3", "deeplabv3plus", "pan", "upernet", "segformer", "dpt",
    ] = "unet"  # fmt: skip
    """Architecture: the lab's own (unet, resnet34_unet), or a decoder of segmentation-models-pytorch on `encoder`,
    which needs `pip install 'petseg[encoders]'`. dpt takes the vision transformers of timm only."""
    width: int = 64
    """Channels of the first stage of unet and resnet34_unet; the other stages scale with it."""
    up: Literal["bilinear", "transposed"] = "bilinear"
    """How the decoder of unet and resnet34_unet doubles the size: interpolation, or a learned 2x2 transposed
    convolution."""
    encoder: str = field(default="", metadata=LATER)
    """Encoder of the other architectures: a name of segmentation-models-pytorch (resnet34, mit_b0) or of timm
    (tu-mobilenetv3_small_050, convnext_tiny.fb_in22k); empty = resnet34, for dpt tu-vit_small_patch16_224."""
    weights: str = field(default="none", metadata=LATER | BY_CONTENT)
    """Initial weights of the encoder: none = random, imagenet = downloaded from the hub of its package, or a file
    (.safetensors; .pth and .pt are pickles, read with torch's weights_only), identified by its content."""
    init: str = field(default="", metadata=LATER | INIT_BY_CONTENT)
    """Initial weights of the whole network: a weights file of this very architecture, width and classes (`python -m
    petseg.best`, or `python -m petseg.compress prune`), identified by its content. Empty = random, or `weights`."""

    def __post_init__(self) -> None:
        require(self.width >= 2 and self.width % 2 == 0, "model.width", self.width, "must be even and at least 2")
        own = self.arch in OWN_ARCHITECTURES
        rule = f"model.arch = {self.arch} has its own, from scratch: leave it out, or choose another architecture"
        require(not (own and self.encoder), "model.encoder", self.encoder, rule)
        require(not own or self.weights == "none", "model.weights", self.weights, rule)
        known = self.weights in ("none", "imagenet") or self.weights.endswith(WEIGHTS_SUFFIXES)
        suffixes = ", ".join(WEIGHTS_SUFFIXES)
        require(known, "model.weights", self.weights, f"choose none, imagenet, or a file that ends in {suffixes}")
        rule = f"give a weights file that ends in {INIT_SUFFIX}: make one with `python -m petseg.best`"
        require(not self.init or self.init.endswith(INIT_SUFFIX), "model.init", self.init, rule)


@dataclass(frozen=True)
class TrackingConfig:
    wandb: Literal["online", "offline", "disabled"] = "disabled"
    """Whether and how wandb shows the run; metrics.jsonl is written in any case."""
    project: str = "petseg"
    """Project of the wandb run."""
    entity: str = ""
    """User or team of the wandb run; empty = your default."""
    overlays: int = 8
    """Number of validation pictures drawn with masks at the end, and for wandb after some of the best epochs."""
    tensorboard: bool = False
    """Write the rows of metrics.jsonl for TensorBoard too, into the run's folder `tensorboard`; needs
    `pip install 'petseg[tensorboard]'`."""
    wandb_wait_s: float = 10.0
    """Longest wait for wandb at the end of a run; what is not sent by then can be sent later from metrics.jsonl."""
    artifacts: Literal["none", "small", "all"] = "none"
    """Artifacts of a finished run in wandb: small = the shard set's manifest and the predictions on val (about 200 kB),
    all = the best weights too. None by default: petseg does not read them back, they use your storage, and sending
    them takes part of wandb_wait_s."""

    def __post_init__(self) -> None:
        require(self.overlays >= 0, "tracking.overlays", self.overlays, "must not be negative")
        require(0 < self.wandb_wait_s < math.inf, "tracking.wandb_wait_s", self.wandb_wait_s, "must be more than 0")


@dataclass(frozen=True)
class RunConfig:
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    distill: DistillConfig = field(default_factory=DistillConfig, metadata=LATER_GROUP)
    tracking: TrackingConfig = field(default_factory=TrackingConfig, metadata=FREE)

    def __post_init__(self) -> None:
        start, full = self.train.start_size_px, self.data.image_size_px
        fits = start <= min(self.data.size_px)
        require(fits, "train.start_size_px", start, f"must be at most data.image_size_px = {full}")
