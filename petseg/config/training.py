"""How the weights of a run are trained: the optimizer's settings, and those of the training itself."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from petseg.config.marks import FREE, LATER
from petseg.config.rules import require
from petseg.config.sizes import SIZE_MULTIPLE_PX


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
        require(self.lr > 0 and math.isfinite(self.lr), "optim.lr", self.lr, "must be positive")
        require(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, "must not be negative")
        require(0 <= self.momentum < 1, "optim.momentum", self.momentum, "must lie in [0, 1)")
        factor = self.encoder_lr_factor
        require(0 <= factor < math.inf, "optim.encoder_lr_factor", factor, "must not be negative")
        require(0 <= self.warmup < 1, "optim.warmup", self.warmup, "must lie in [0, 1)")
        require(self.grad_clip >= 0, "optim.grad_clip", self.grad_clip, "must not be negative")


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
        require(self.epochs >= 1, "train.epochs", self.epochs, "must be at least 1")
        require(self.batch_size >= 1, "train.batch_size", self.batch_size, "must be at least 1")
        require(self.accumulation_steps >= 0, "train.accumulation_steps", self.accumulation_steps, "must be >= 0")
        require(
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
        require(self.compile == "no" or not self.grad_checkpointing, "train.compile", self.compile, rule)
        require(0 <= self.seed < 2**31, "train.seed", self.seed, "must lie in [0, 2**31)")
        require(self.log_every >= 1, "train.log_every", self.log_every, "must be at least 1")
        require(self.save_every_min >= 0, "train.save_every_min", self.save_every_min, "must not be negative")

    def _check_budget(self) -> None:
        steps, minutes = self.budget_steps, self.budget_min
        require(steps >= 0, "train.budget_steps", steps, "must not be negative")
        require(0 <= minutes < math.inf, "train.budget_min", minutes, "must not be negative")
        require(not (steps and minutes), "train.budget_min", minutes, "leave it out, or train.budget_steps")

    def _check_updates(self) -> None:
        require(0 <= self.ema_decay < 1, "train.ema_decay", self.ema_decay, "must lie in [0, 1)")
        require(0 <= self.swa_from < 1, "train.swa_from", self.swa_from, "must lie in [0, 1)")
        rule = "leave it out, or train.ema_decay: a run keeps one average"
        require(not (self.swa_from and self.ema_decay), "train.swa_from", self.swa_from, rule)
        late, share = self.late_batches, self.late_batches_from
        require(late >= 1, "train.late_batches", late, "must be at least 1")
        require(0 <= share < 1, "train.late_batches_from", share, "must lie in [0, 1)")
        rule = "leave it out with train.budget_min, whose number of steps is not known at the start"
        require(late == 1 or not self.budget_min, "train.late_batches", late, rule)

    def _check_sizes(self) -> None:
        start, share = self.start_size_px, self.full_size_from
        rule = f"must be 0 or a multiple of {SIZE_MULTIPLE_PX}"
        require(start >= 0 and start % SIZE_MULTIPLE_PX == 0, "train.start_size_px", start, rule)
        require(0 < share <= 1, "train.full_size_from", share, "must lie in (0, 1]")

    def _check_loss(self) -> None:
        smoothing, weight = self.label_smoothing, self.border_weight
        require(self.focal_gamma >= 1, "train.focal_gamma", self.focal_gamma, "must be at least 1 (0 would be ce)")
        require(0 <= smoothing < 1, "train.label_smoothing", smoothing, "must lie in [0, 1)")
        with_ce = self.loss in ("ce", "ce_dice")
        rule = f"train.loss = {self.loss} has no labels to smooth: leave it out, or choose ce or ce_dice"
        require(with_ce or not smoothing, "train.label_smoothing", smoothing, rule)
        rule = f"train.loss = {self.loss} is a mean over classes already: leave it out, or choose ce, ce_dice or focal"
        weighs = self.class_weights != "none"
        require(not weighs or with_ce or self.loss == "focal", "train.class_weights", self.class_weights, rule)
        require(0 <= weight < math.inf, "train.border_weight", weight, "must not be negative")
        require(self.border_px >= 1, "train.border_px", self.border_px, "must be at least 1")
