"""Loads the weights that an encoder starts from: a file, or its package's ImageNet weights from the hub."""

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

    Called by all processes: the first one reads or downloads the weights, and broadcasts them.
    Raises ValueError, on all processes, if the weights cannot be read or do not fit the encoder.
    """
    if config.weights == "none":
        return
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        _load(config, model)
        return
    messages: list[str | None] = [None]
    if torch.distributed.get_rank() == 0:
        try:
            _load(config, model)
        except (ValueError, OSError) as error:
            messages = [str(error)]
    torch.distributed.broadcast_object_list(messages, src=0)
    if messages[0] is not None:
        raise ValueError(messages[0])
    for tensor in model.state_dict().values():
        sent = tensor.cuda() if torch.cuda.is_available() else tensor  # NCCL sends from GPU to GPU only
        torch.distributed.broadcast(sent, src=0)
        tensor.copy_(sent)


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
    matched = match(encoder.state_dict(), given)
    matched.check(f"model.weights = {source!r} for model.encoder = {name!r}", given)
    wanted = encoder.state_dict()
    for ours, theirs in matched.pairs.items():
        wanted[ours].copy_(given[theirs])  # keeps dtype, memory format and device
    logger.info("%s: %d of %d tensors from %s", name, len(matched.pairs), matched.wanted, source)
    if matched.missing:
        logger.warning("not in it, and left random: %s", some(matched.missing))


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
    for name in ("state_dict", "model"):  # as training scripts wrap them
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
    """The weights that the encoder's package publishes, adapted by that package to the size of the pictures."""
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
    # timm adapts position embeddings to the size, and translates the names of the papers' checkpoints
    sizes = [m.img_size for m in encoder.modules() if isinstance(getattr(m, "img_size", None), tuple)]
    fixed: dict[str, Any] = {"img_size": sizes[0]} if sizes else {}
    overlay = {"file": str(path), "custom_load": False}
    with torch.random.fork_rng(devices=[]):
        return timm.create_model(short, pretrained=True, pretrained_cfg_overlay=overlay, **fixed).state_dict()


def fetch(encoder: str, repository: str, filename: str, revision: str | None) -> Path:
    """An encoder's file from the hub, or from the hub's cache on this machine.

    If the hub cannot be reached, raises a ValueError that says how to do without a network, at once rather than after
    the minute of retries of the hub's client.
    """
    import huggingface_hub as hub

    cached = hub.try_to_load_from_cache(repository, filename, revision=revision)
    if isinstance(cached, str):
        return Path(cached)
    url = hub.hf_hub_url(repository, filename, revision=revision)
    try:
        hub.get_hf_file_metadata(url, timeout=HUB_TIMEOUT_S)
        return Path(hub.hf_hub_download(repository, filename, revision=revision))
    except Exception as error:  # from the client's HTTP library, which differs between its versions
        command = typed("-m", "petseg.models.weights", encoder, "--out", "FILE.safetensors")
        raise ValueError(
            f"model.weights = imagenet: {url} cannot be fetched ({_first_line(error)}), and {cache_folder()} "
            f"does not have it. Where there is a network, run `{command}` "
            "and give --model.weights FILE.safetensors, or fill that folder (HF_HOME) there"
        ) from None


def cache_folder() -> str:
    from huggingface_hub import constants

    return constants.HF_HUB_CACHE


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
