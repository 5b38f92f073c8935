"""The weights that an encoder starts from: a file, or what its package has for ImageNet on the hub."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from petseg.config import ModelConfig
from petseg.models.encoders import encoder_name, import_smp
from petseg.models.weight_names import match, some
from shards.command import typed

PICKLES_SAFE_SINCE = (2, 10)  # torch.load(weights_only=True): CVE-2025-32434 until 2.6, CVE-2026-24747 until 2.10
HUB_TIMEOUT_S = 5.0

logger = logging.getLogger(__name__)

Tensors = dict[str, torch.Tensor]


def load_pretrained(config: ModelConfig, model: nn.Module) -> None:
    """Load the weights that the config names into the encoder of the (bare) model.

    Called by all processes: the first one reads or downloads, and hands the tensors to the others.
    Raises ValueError, on all of them, if the weights cannot be had or are not the encoder's.
    """
    together = torch.distributed.is_available() and torch.distributed.is_initialized()
    message = None
    if config.weights != "none" and not (together and torch.distributed.get_rank()):
        try:
            _load(config, model)
        except (ValueError, OSError) as error:
            if not together:
                raise
            message = str(error)
    if not together or config.weights == "none":
        return
    said = [message]
    torch.distributed.broadcast_object_list(said, src=0)
    if said[0] is not None:
        raise ValueError(said[0])
    for tensor in model.state_dict().values():
        there = tensor.cuda() if torch.cuda.is_available() else tensor  # NCCL sends from GPU to GPU only
        torch.distributed.broadcast(there, src=0)
        tensor.copy_(there)


def _load(config: ModelConfig, model: nn.Module) -> None:
    encoder = model.encoder
    assert isinstance(encoder, nn.Module)
    name = encoder_name(config)
    if config.weights == "imagenet":
        given = _from_hub(name, encoder)
        source = f"the hub's weights of {name}"
    else:
        given = read_tensors(Path(config.weights))
        source = config.weights
    found = match(encoder.state_dict(), given)
    found.check(f"model.weights = {source!r} for model.encoder = {name!r}", given)
    wanted = encoder.state_dict()
    for ours, theirs in found.pairs.items():
        wanted[ours].copy_(given[theirs])  # keeps dtype, memory format and device
    logger.info("%s: %d of %d tensors from %s", name, len(found.pairs), found.wanted, source)
    if found.missing:
        logger.warning("not in it, and left random: %s", some(found.missing))


def read_tensors(path: Path) -> Tensors:
    """The tensors of a .safetensors file, or of a .pth or .pt, which is a pickle.

    Raises ValueError for a missing, damaged or unsafe file.
    """
    if not path.is_file():
        raise ValueError(f"model.weights = {str(path)!r}: there is no such file (from {Path.cwd()})")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        _require_safe_pickles(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is damaged, or holds more than tensors: {_first_line(error)}") from None
    for name in ("state_dict", "model"):  # what training scripts wrap them in
        content = content[name] if isinstance(content, dict) and isinstance(content.get(name), dict) else content
    tensors = {k: v for k, v in content.items() if torch.is_tensor(v)} if isinstance(content, dict) else {}
    if not tensors:
        raise ValueError(f"{path} holds no tensors by name")
    logger.warning("%s is a pickle, read with weights_only: a .safetensors file cannot harm", path)
    return tensors


def _require_safe_pickles(path: Path) -> None:
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < PICKLES_SAFE_SINCE:
        raise ValueError(
            f"{path} is a pickle, and torch {torch.__version__} can be made to run code by one even with weights_only "
            "(CVE-2026-24747): take torch 2.10 or newer, or a .safetensors file"
        )


def _from_hub(name: str, encoder: nn.Module) -> Tensors:
    """The tensors that the encoder's package publishes for it, adapted by that package to its size of pictures."""
    smp = import_smp()
    if not name.startswith("tu-"):
        known = smp.encoders.encoders[name]["pretrained_settings"]
        if "imagenet" not in known:
            raise ValueError(f"model.encoder = {name!r} has no ImageNet weights on the hub, only {', '.join(known)}")
        settings = known["imagenet"]
        return read_tensors(fetch(name, settings["repo_id"], "model.safetensors", settings["revision"]))
    import timm

    short = name.removeprefix("tu-")
    config = timm.models.get_pretrained_cfg(short)
    if config is None or not config.hf_hub_id:
        raise ValueError(
            f"model.encoder = {name!r} has no weights on the hub: timm.list_pretrained() names those that do"
        )
    path = fetch(name, config.hf_hub_id, config.hf_hub_filename or "model.safetensors", None)
    # timm fits tables of positions to the size, and translates the names of the papers' own checkpoints
    sizes = [m.img_size for m in encoder.modules() if isinstance(getattr(m, "img_size", None), tuple)]
    fixed: dict[str, Any] = {"img_size": sizes[0]} if sizes else {}
    overlay = {"file": str(path), "custom_load": False}
    with torch.random.fork_rng(devices=[]):
        return timm.create_model(short, pretrained=True, pretrained_cfg_overlay=overlay, **fixed).state_dict()


def fetch(encoder: str, repository: str, filename: str, revision: str | None) -> Path:
    """A file that the hub has for an encoder, from its cache on this machine if it is there.

    Raises ValueError that says how to do without a network if it cannot be reached: at once, without the minute of
    retries that the hub's client would make.
    """
    import huggingface_hub as hub

    cached = hub.try_to_load_from_cache(repository, filename, revision=revision)
    if isinstance(cached, str):
        return Path(cached)
    url = hub.hf_hub_url(repository, filename, revision=revision)
    try:
        hub.get_hf_file_metadata(url, timeout=HUB_TIMEOUT_S)
        return Path(hub.hf_hub_download(repository, filename, revision=revision))
    except Exception as error:  # of the client's HTTP library, which differs between its versions
        fetch = typed("-m", "petseg.models.weights", encoder, "--out", "FILE.safetensors")
        raise ValueError(
            f"model.weights = imagenet: {url} cannot be fetched ({_first_line(error)}), and {cache_folder()} "
            f"does not have it. Where there is a network, run `{fetch}` "
            "and give --model.weights FILE.safetensors, or fill that folder (HF_HOME) there"
        ) from None


def cache_folder() -> str:
    from huggingface_hub import constants

    return constants.HF_HUB_CACHE


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
