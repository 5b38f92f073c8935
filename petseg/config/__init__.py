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
from petseg.config.sizes import SIZE_MULTIPLE_PX, Fit, ImageSize, Size, is_network_size, plain_size, size_of

OWN_ARCHITECTURES = ("unet", "resnet34_unet")  # the others are decoders of segmentation-models-pytorch
WEIGHTS_SUFFIXES = (".safetensors", ".pth", ".pt")
INIT_SUFFIX = ".safetensors"
WEIGHTS_FIELDS = {"model.weights": "none", "model.init": "", "distill.teacher": ""}  # -> the value that names no file


def _require(ok: bool, name: str, value: object, rule: str) -> None:
    if not ok:
        raise ValueError(f"{name} = {value!r}: {rule}")


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
        _require(is_network_size(self.image_size_px), "data.image_size_px", self.image_size_px, rule)
        _require(self.threads >= 1, "data.threads", self.threads, "must be at least 1")
        share, rule = self.rare_crops, "must lie in [0, 1], and needs data.fit crop above 0"
        _require(share == 0 or (0 < share <= 1 and self.fit == "crop"), "data.rare_crops", share, rule)
        window, budget = self.shuffle_window_shards, self.max_lost_samples
        _require(window >= 1, "data.shuffle_window_shards", window, "must be at least 1")
        _require(self.cache_gb > 0, "data.cache_gb", self.cache_gb, "must be positive")
        _require(budget >= 0, "data.max_lost_samples", budget, "must not be negative")

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
            _require(0 <= value <= 1, f"augment.{name}", value, "must lie in [0, 1]")
        for name in ("elastic_alpha", "blur_max_sigma_px", "noise_max_std"):
            value = getattr(self, name)
            _require(0 <= value < math.inf, f"augment.{name}", value, "must not be negative")
        sigma, crop, turn = self.elastic_sigma_px, self.crop_min_area, self.rotate_max_deg
        _require(sigma >= 1, "augment.elastic_sigma_px", sigma, "must be at least 1")
        _require(0 < crop <= 1, "augment.crop_min_area", crop, "must lie in (0, 1]")
        _require(0 <= turn <= 180, "augment.rotate_max_deg", turn, "must lie in [0, 180]")
        low, high, color, side = self.scale_min, self.scale_max, self.color_strength, self.cutout_max_side
        _require(0.1 <= low <= high, "augment.scale_min", low, "must lie in [0.1, augment.scale_max]")
        _require(high <= 10, "augment.scale_max", high, "must be at most 10")
        _require(0 <= color <= 1, "augment.color_strength", color, "must lie in [0, 1]")
        _require(0 < side <= 1, "augment.cutout_max_side", side, "must lie in (0, 1]")


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
        _require(self.width >= 2 and self.width % 2 == 0, "model.width", self.width, "must be even and at least 2")
        own = self.arch in OWN_ARCHITECTURES
        rule = f"model.arch = {self.arch} has its own, from scratch: leave it out, or choose another architecture"
        _require(not (own and self.encoder), "model.encoder", self.encoder, rule)
        _require(not own or self.weights == "none", "model.weights", self.weights, rule)
        known = self.weights in ("none", "imagenet") or self.weights.endswith(WEIGHTS_SUFFIXES)
        suffixes = ", ".join(WEIGHTS_SUFFIXES)
        _require(known, "model.weights", self.weights, f"choose none, imagenet, or a file that ends in {suffixes}")
        rule = f"give a weights file that ends in {INIT_SUFFIX}: make one with `python -m petseg.best`"
        _require(not self.init or self.init.endswith(INIT_SUFFIX), "model.init", self.init, rule)


@dataclass(frozen=True)
class OptimConfig:
    name: Literal["adam", "adamw", "sgd", "muon"] = "adam"
    """Optimizer. sgd has Nesterov momentum; muon orthogonalises the updates of convolutions and linear layers, and uses
    adamw for the rest (first and last layer, depthwise, vectors). adamw and muon do not decay normalisation layers and
    biases."""
    lr: float = 1e-3
    """Peak learning rate."""
    weight_decay: float = 0.0
    """Weight decay (adam, sgd: L2 penalty; adamw, muon: decoupled)."""
    momentum: float = field(default=0.9, metadata=LATER)
    """Momentum of sgd."""
    encoder_lr_factor: float = field(default=1.0, metadata=LATER)
    """The encoder's learning rate as a multiple of the decoder's; below 1 for pretrained weights, 0 = frozen."""
    schedule: Literal["constant", "cosine", "one_cycle", "poly"] = "constant"
    """Learning rate after the warm-up: constant, or falling to zero by a cosine or by (1 - progress) ** 0.9 (poly).
    one_cycle: rises by a cosine from lr / 25 in `warmup` or 0.3 of the steps, and falls by another."""
    warmup: float = 0.0
    """Share of all steps in which the learning rate rises, linearly from zero except with one_cycle."""
    grad_clip: float = 0.0
    """Largest norm of the gradient, 0 = no clipping."""

    def __post_init__(self) -> None:
        _require(self.lr > 0 and math.isfinite(self.lr), "optim.lr", self.lr, "must be positive")
        _require(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, "must not be negative")
        _require(0 <= self.momentum < 1, "optim.momentum", self.momentum, "must lie in [0, 1)")
        factor = self.encoder_lr_factor
        _require(0 <= factor < math.inf, "optim.encoder_lr_factor", factor, "must not be negative")
        _require(0 <= self.warmup < 1, "optim.warmup", self.warmup, "must lie in [0, 1)")
        _require(self.grad_clip >= 0, "optim.grad_clip", self.grad_clip, "must not be negative")


@dataclass(frozen=True)
class TrainConfig:
    epochs: int = 100
    """Passes over the train split, unless there is a budget."""
    budget_steps: int = field(default=0, metadata=LATER)
    """Optimizer steps of the whole run in place of train.epochs, to which the schedule adapts; the last epoch may end
    early. 0 = train.epochs counts."""
    budget_min: float = field(default=0.0, metadata=LATER)
    """Minutes of training and validation in place of train.epochs: the speed of the first epoch fixes how many steps
    fit, for all attempts at the run. Two such runs are not identical to the bit. 0 = off."""
    start_size_px: int = field(default=0, metadata=LATER)
    """Progressive resizing: training starts on pictures whose shorter side is shrunk to this size (a multiple of 32),
    which grow by 32 px at a time to data.image_size_px; validation always uses the full size. 0 = full size
    throughout."""
    full_size_from: float = field(default=0.5, metadata=LATER)
    """Share of the steps after which pictures have full size, with train.start_size_px."""
    batch_size: int = 32
    """Samples per optimizer step, over all processes and accumulation steps together."""
    accumulation_steps: int = 1
    """Micro-batches per optimizer step; more need less memory. 0 = as few as the device's memory allows by the
    prediction of `python -m petseg.estimate`, fixed at the run's first start and noted in its overrides.json.
    BatchNorm's statistics are those of a micro-batch, so the numbers depend on it: only compare runs that share it."""
    loss: Literal["ce", "dice", "ce_dice", "focal", "lovasz"] = "ce"
    """Cross-entropy, soft Dice, or their sum; focal: cross-entropy with less weight on easy pixels; lovasz: the
    Lovasz-softmax, a surrogate of 1 - IoU. Dice and Lovasz are means over the classes, without the background."""
    class_weights: str = field(default="none", metadata=LATER)
    """Weight of a pixel of each class in ce, ce_dice and focal: none; frequency = the median frequency of the classes
    in train over a class's own; or a number for each class, such as 0.5,1,2."""
    focal_gamma: float = field(default=2.0, metadata=LATER)
    """Exponent of the focal loss: a pixel of probability p has the weight (1 - p) ** gamma."""
    label_smoothing: float = field(default=0.0, metadata=LATER)
    """Share of the target probability that ce and ce_dice spread evenly over the classes."""
    border_weight: float = field(default=1.0, metadata=LATER)
    """Loss weight of pixels within train.border_px of a change of the target; all others have weight 1."""
    border_px: int = field(default=3, metadata=LATER)
    """Reach of train.border_weight to either side, in pixels of the squashed picture."""
    ema_decay: float = field(default=0.0, metadata=LATER)
    """Decay of a running average of the weights (such as 0.999), which is validated and kept instead; 0 = none."""
    swa_from: float = field(default=0.0, metadata=LATER)
    """Stochastic weight averaging: from this share of the steps on, the mean of the weights after each step is
    validated and kept instead; 0 = none. Where the learning rate ends near zero, there is little to average."""
    late_batches: int = field(default=1, metadata=LATER)
    """Batches that make one update of the weights towards the end, in place of or beside a falling learning rate:
    their gradients are averaged. BatchNorm still sees one batch at a time."""
    late_batches_from: float = field(default=0.5, metadata=LATER)
    """Share of the steps after which train.late_batches holds."""
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    """Precision of the forward and backward pass; fp16 needs a GPU."""
    channels_last: bool = True
    """Keep activations in NHWC order, which is faster for convolutions."""
    grad_checkpointing: bool = field(default=False, metadata=LATER)
    """Recompute activations in the backward pass instead of keeping them: the same numbers with less memory, in about a
    third more time."""
    compile: Literal["no", "auto", "always"] = field(default="no", metadata=LATER)
    """Train with torch.compile; auto: on a GPU, measured within the run: whichever of compiled and other steps is
    quicker is kept. Off by itself with train.deterministic and train.budget_min."""
    cuda_graphs: bool = field(default=True, metadata=FREE)
    """On a GPU, start each training pass with one launch: forward and backward pass are captured once for each shape
    of batch. The numbers stay; what cannot be captured runs as without, and the log says why."""
    cudnn_benchmark: bool = field(default=True, metadata=FREE)
    """On a GPU, let cuDNN try its algorithms on each new shape and keep the fastest. The choice may differ between two
    runs: it is off with train.deterministic, and with augment.mode = add, where shapes differ from batch to batch."""
    deterministic: bool = field(default=False, metadata=LATER)
    """On a GPU, use deterministic algorithms alone: two runs, and one that was interrupted, end with the same bits. On
    CPUs that holds in any case."""
    tf32: bool = field(default=True, metadata=LATER)
    """On a GPU, compute float32 convolutions in TF32, with 10 bits of mantissa instead of 23, as torch does by default;
    of no effect with bf16 and fp16."""
    sync_batchnorm: bool = field(default=False, metadata=LATER)
    """Compute BatchNorm's statistics over the micro-batches of all processes together (GPUs only)."""
    seed: int = 0
    """Seed of the weights, the order of the samples and the augmentation."""
    test: bool = True
    """Measure the test split with the best weights after training."""
    log_every: int = field(default=10, metadata=FREE)
    """Steps between two points at which progress is shown, the loss is checked for NaN, and an interrupt can stop."""
    save_every_min: float = field(default=10.0, metadata=FREE)
    """Minutes between saves within an epoch, which a kill without warning costs at most; 0 = save only after epochs."""

    @property
    def averages_weights(self) -> bool:
        """Whether averages of the weights are validated and kept."""
        return bool(self.ema_decay or self.swa_from)

    @property
    def accumulates(self) -> bool:
        """Whether gradients of several passes are added up for an update."""
        return self.accumulation_steps > 1 or self.late_batches > 1

    def __post_init__(self) -> None:
        _require(self.epochs >= 1, "train.epochs", self.epochs, "must be at least 1")
        _require(self.batch_size >= 1, "train.batch_size", self.batch_size, "must be at least 1")
        _require(self.accumulation_steps >= 0, "train.accumulation_steps", self.accumulation_steps, "must be >= 0")
        _require(
            self.batch_size % (self.accumulation_steps or 1) == 0,
            "train.batch_size",
            self.batch_size,
            f"must be a multiple of train.accumulation_steps = {self.accumulation_steps}",
        )
        self._check_budget()
        self._check_sizes()
        self._check_loss()
        self._check_updates()
        rule = "leave it out with train.grad_checkpointing: what a compiled step keeps is the compiler's choice"
        _require(self.compile == "no" or not self.grad_checkpointing, "train.compile", self.compile, rule)
        _require(0 <= self.seed < 2**31, "train.seed", self.seed, "must lie in [0, 2**31)")
        _require(self.log_every >= 1, "train.log_every", self.log_every, "must be at least 1")
        _require(self.save_every_min >= 0, "train.save_every_min", self.save_every_min, "must not be negative")

    def _check_budget(self) -> None:
        steps, minutes = self.budget_steps, self.budget_min
        _require(steps >= 0, "train.budget_steps", steps, "must not be negative")
        _require(0 <= minutes < math.inf, "train.budget_min", minutes, "must not be negative")
        _require(not (steps and minutes), "train.budget_min", minutes, "leave it out, or train.budget_steps")

    def _check_updates(self) -> None:
        _require(0 <= self.ema_decay < 1, "train.ema_decay", self.ema_decay, "must lie in [0, 1)")
        _require(0 <= self.swa_from < 1, "train.swa_from", self.swa_from, "must lie in [0, 1)")
        rule = "leave it out, or train.ema_decay: a run keeps one average"
        _require(not (self.swa_from and self.ema_decay), "train.swa_from", self.swa_from, rule)
        late, share = self.late_batches, self.late_batches_from
        _require(late >= 1, "train.late_batches", late, "must be at least 1")
        _require(0 <= share < 1, "train.late_batches_from", share, "must lie in [0, 1)")
        rule = "leave it out with train.budget_min, whose number of steps is not known at the start"
        _require(late == 1 or not self.budget_min, "train.late_batches", late, rule)

    def _check_sizes(self) -> None:
        start, share = self.start_size_px, self.full_size_from
        rule = f"must be 0 or a multiple of {SIZE_MULTIPLE_PX}"
        _require(start >= 0 and start % SIZE_MULTIPLE_PX == 0, "train.start_size_px", start, rule)
        _require(0 < share <= 1, "train.full_size_from", share, "must lie in (0, 1]")

    def _check_loss(self) -> None:
        smoothing, weight = self.label_smoothing, self.border_weight
        _require(self.focal_gamma >= 1, "train.focal_gamma", self.focal_gamma, "must be at least 1 (0 would be ce)")
        _require(0 <= smoothing < 1, "train.label_smoothing", smoothing, "must lie in [0, 1)")
        with_ce = self.loss in ("ce", "ce_dice")
        rule = f"train.loss = {self.loss} has no labels to smooth: leave it out, or choose ce or ce_dice"
        _require(with_ce or not smoothing, "train.label_smoothing", smoothing, rule)
        rule = f"train.loss = {self.loss} is a mean over classes already: leave it out, or choose ce, ce_dice or focal"
        weighs = self.class_weights != "none"
        _require(not weighs or with_ce or self.loss == "focal", "train.class_weights", self.class_weights, rule)
        _require(0 <= weight < math.inf, "train.border_weight", weight, "must not be negative")
        _require(self.border_px >= 1, "train.border_px", self.border_px, "must be at least 1")


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
        _require(self.overlays >= 0, "tracking.overlays", self.overlays, "must not be negative")
        _require(0 < self.wandb_wait_s < math.inf, "tracking.wandb_wait_s", self.wandb_wait_s, "must be more than 0")


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
        _require(fits, "train.start_size_px", start, f"must be at most data.image_size_px = {full}")
