"""Carry out a plan: on a live denoiser, reversibly; or on a copy, which becomes the pruned pipeline.

What is replaced leaves the module tree, so all that counts, saves, moves or trains the model sees the smaller one.
"""

from __future__ import annotations

import copy
import inspect
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file
from torch import nn

from ..denoisers import Fingerprint, denoiser_of
from ..files import plain
from .find import KINDS, Operators, find_operators
from .plan import Plan, plan_for
from .replace import WHOLE, Identity, replacement

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

CONFIG_KEY = "pruning_lib"  # where the configuration of a pruned denoiser keeps its plans
# Norms that older plans, which name none, took along with a branch.
_NORM_OF = {"attn1": "norm1", "attn2": "norm2", "ff": "norm3"}


class Replacement:
    """Changes of a plan, which is not checked again, to a live denoiser; they can be taken back. A context manager."""

    def __init__(self, denoiser: nn.Module, plan: Plan):
        self.plan, self._denoiser = plan, denoiser
        self._config = getattr(denoiser, "_internal_dict", None)
        made = {}  # all of it before anything is swapped, so that an error changes nothing
        for path, how in plan.changes:
            module = denoiser.get_submodule(path)
            gone = any(weight.is_meta for weight in module.parameters()) and hasattr(module, "_hf_hook")
            if gone and not how.startswith(("identity", "zero")):
                raise ValueError(
                    f"The weights of {path} are offloaded at the moment, so {how!r} cannot be made from them. Call "
                    "pipe.remove_all_hooks() first, and enable offloading afterwards."
                )
            made[path] = replacement(module, how)
        made |= {path: Identity() for path in _norms(denoiser, plan)}
        self._originals = {path: denoiser.get_submodule(path) for path in made}
        self._put(made)

    def __repr__(self) -> str:
        state = "in place" if self._originals else "taken back"
        return f"<Replacement of {len(self.plan)} operators, {state}: {', '.join(self.plan.paths)}>"

    def __enter__(self) -> Replacement:
        return self

    def __exit__(self, *error) -> None:
        self.restore()

    def restore(self) -> None:
        """Put everything back; the model is bit for bit what it was. Doing it twice does no harm."""
        self._put(self._originals)
        if self._config is not None:
            self._denoiser._internal_dict = self._config
        self._originals, self._config = {}, None

    def _put(self, modules: Mapping[str, nn.Module]) -> None:
        for path, module in modules.items():
            parent, _, name = path.rpartition(".")
            # Through _modules, so that lists work too and the order of modules, hence of weights, stays.
            self._denoiser.get_submodule(parent)._modules[name] = module


def _norms(denoiser: nn.Module, plan: Plan) -> tuple[str, ...]:
    """Return the norms that go with a plan; where it is older than that note, a call of the denoiser tells."""
    if plan.norms is not None or not any(how.startswith("zero") for _, how in plan.changes):
        return plan.norms or ()
    operators = find_operators(denoiser, WHOLE)
    return tuple(norm for path, how in plan.changes if how.startswith("zero") for norm in operators[path].norms)


Changes = Plan | Operators | Iterable[str] | Mapping[str, str]


def _plan(changes: Changes, model: nn.Module | DiffusionPipeline, options: Mapping | None = None) -> Plan:
    if isinstance(changes, Plan):
        return changes
    if isinstance(changes, Operators):
        return plan_for(changes.paths, changes)
    return plan_for(changes, find_operators(model, tuple(KINDS), options=options))


def change_operators(denoiser: nn.Module, plan: Changes) -> Replacement:
    """Change operators of a live denoiser in place.

    `plan` is a plan for it; `Operators` of it, all of which are changed; or, where its family is known, paths (each
    operator's default modification), or path -> modification. Of another family take what `find_operators` lists for
    its pipeline: `plan_for(paths, find_operators(pipe))`. Returns a handle; `restore()`, or leaving it as a context,
    puts everything back. Parameters that an optimiser or a hook already holds are not replaced there. No such operator
    is a KeyError; a plan for another denoiser, a modification that is not allowed, or weights that are not there, a
    ValueError.

    Example:
        >>> with change_operators(pipe.unet, ["mid_block.attentions.0"]):
        ...     image = pipe("lion").images[0]
    """
    plan = _plan(plan, denoiser)
    plan.check(denoiser)
    handle = Replacement(denoiser, plan)
    if hasattr(denoiser, "register_to_config"):
        plans = [*(denoiser.config.get(CONFIG_KEY) or {}).get("plans", []), plan.to_dict()]
        own = {name: plain(value) for name, value in _set_at_run_time(denoiser.config).items()}
        _configure(denoiser, {CONFIG_KEY: {"plans": plans, **({"attributes": own} if own else {})}})
    return handle


def _set_at_run_time(config: Mapping[str, object]) -> dict[str, object]:
    """Return what a configuration says otherwise as an attribute than as an entry, as image adapters make it do."""
    return {name: value for name, value in vars(config).items() if name in config and config[name] != value}


def _configure(denoiser: nn.Module, entries: Mapping[str, object]) -> None:
    """Add to a configuration, and keep what was set on it."""
    kept = _set_at_run_time(denoiser.config)
    denoiser.register_to_config(**entries)
    for name, value in kept.items():
        setattr(denoiser.config, name, value)


def remove_operators(pipe: DiffusionPipeline, plan: Changes, *, options: Mapping | None = None) -> DiffusionPipeline:
    """Return a pipeline of the same class without some operators; the given one stays as it is.

    The denoiser, the first if there are several, is a copy in which the operators are gone; the other components are
    shared. `plan` and errors are as in `change_operators`; paths may be given for any pipeline that `find_operators`
    takes, with the `options` of its call. `save_pretrained` of the result writes what was done beside the weights, for
    `pl.load` and `load_pruned`; diffusers alone would fill the missing weights with random numbers.

    Example:
        >>> small = remove_operators(pipe, ["mid_block.resnets.0", "down_blocks.3.resnets.1"])
        >>> small("lion").images[0]
    """
    name, denoiser = denoiser_of(pipe)
    small = copy.copy(pipe)
    small.register_modules(**{name: pruned_copy(denoiser, _plan(plan, pipe, options))})
    return small


def pruned_copy(denoiser: nn.Module, plan: Changes) -> nn.Module:
    """Return a copy of a denoiser in which a plan is carried out; arguments and errors as in `change_operators`."""
    with change_operators(denoiser, plan):  # so that what is removed is never copied
        return copy.deepcopy(denoiser)


def load_pruned(folder: str | Path, *, dtype: torch.dtype = torch.float32, **options) -> DiffusionPipeline:
    """Load a pipeline that `remove_operators` made and `save_pretrained` wrote.

    It is bit for bit as it was saved, in evaluation mode, on the CPU; `options` go to diffusers' `from_pretrained`.
    Raises OSError where files are missing, ValueError where the denoiser was not pruned by this package, or its plans,
    configuration and weights do not fit.
    """
    import diffusers  # here: it brings half of diffusers and transformers
    from diffusers import DiffusionPipeline

    from ..sampling import quietly

    parts = json.loads((Path(folder) / "model_index.json").read_text("utf-8"))
    configs = {name: Path(folder) / name / "config.json" for name, part in parts.items() if isinstance(part, list)}
    found = {
        name: json.loads(path.read_text("utf-8")) for name, path in configs.items() if parts[name][0] and path.is_file()
    }
    pruned = {name: config for name, config in found.items() if CONFIG_KEY in config}
    if not pruned:
        raise ValueError(f"{folder} holds no plan: its denoiser was not pruned here. Load it with from_pretrained.")
    made = {name: _load_denoiser(Path(folder) / name, config, *parts[name], dtype) for name, config in pruned.items()}
    absent = {name: None for name, part in parts.items() if isinstance(part, list) and part[0] is None}
    told = {**absent, **made, **options}
    takes = inspect.signature(getattr(diffusers, str(parts["_class_name"]), DiffusionPipeline).__init__).parameters
    optional = [name for name in made if name in takes and takes[name].default is not inspect.Parameter.empty]
    with quietly():
        if not optional:
            return DiffusionPipeline.from_pretrained(folder, **told, torch_dtype=dtype)
        with tempfile.TemporaryDirectory() as box:  # diffusers would not look at what it is given of these, but load it
            for part in Path(folder).resolve().iterdir():
                Path(box, part.name).symlink_to(part)
            Path(box, "model_index.json").unlink()
            Path(box, "model_index.json").write_text(json.dumps({**parts, **dict.fromkeys(optional, [None, None])}))
            pipe = DiffusionPipeline.from_pretrained(box, **told, torch_dtype=dtype)
    pipe.register_modules(**made)
    pipe.register_to_config(_name_or_path=str(folder))
    return pipe


def _load_denoiser(folder: Path, config: dict, library: str, name: str, dtype: torch.dtype) -> nn.Module:
    """Build the base without weights, carry out its plans, and read the weights that are left."""
    import diffusers
    from accelerate import init_empty_weights

    path, done = folder / "config.json", config.pop(CONFIG_KEY)
    files = sorted(folder.glob("diffusion_pytorch_model*.safetensors"))
    if not files:
        raise OSError(f"{folder} has no diffusion_pytorch_model*.safetensors. Save with safe_serialization=True.")
    weights = {name: tensor for file in files for name, tensor in load_file(file).items()}
    try:
        with init_empty_weights(include_buffers=False):  # tables of positions are computed, not saved
            cls = getattr(diffusers, name, None) or getattr(getattr(diffusers.pipelines, library), name)
            denoiser = cls.from_config(config).eval()
            told = done.get("attributes", {})
            if told and Fingerprint.of(denoiser).to_dict() != done["plans"][0]["base"]:
                with suppress(ValueError, TypeError):  # some are entries that somebody overwrote
                    denoiser = cls.from_config({**config, **told}).eval()
        for saved in done["plans"]:
            plan = Plan.from_dict(saved)
            if plan.base != Fingerprint.of(denoiser):
                _give_image_adapters(denoiser, weights)
            if plan.norms is None:
                plan = replace(plan, norms=tuple(_norms_of_old(denoiser, plan)))
            change_operators(denoiser, plan)
        _give_image_adapters(denoiser, weights)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"The plans in {path} do not fit the configuration there: {error}") from error
    try:
        denoiser.load_state_dict(weights, assign=True)
    except RuntimeError as error:  # missing, unknown, or of another shape
        raise ValueError(
            f"The weights in {folder} do not fit the plan in its config.json: {shorten(str(error), 400)} Take both "
            "from the same save_pretrained."
        ) from error
    _configure(denoiser, {"_name_or_path": str(folder)})
    return nn.Module.to(denoiser, dtype)  # diffusers' own `to` warns about half precision on a CPU


def _norms_of_old(denoiser: nn.Module, plan: Plan) -> Iterator[str]:
    """Yield the norms that went with a plan when plans did not name them; a model stays what it was saved as."""
    for path, how in plan.changes:
        parent, _, name = path.rpartition(".")
        norm = _NORM_OF.get(name, "")
        if how == "zero" and type(getattr(denoiser.get_submodule(parent), norm, None)) is nn.LayerNorm:
            yield f"{parent}.{norm}"


def _give_image_adapters(denoiser: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Give a UNet the image adapters that it was saved with; no configuration tells of them."""
    layers, adapters = "encoder_hid_proj.image_projection_layers", []
    while own := {key: value for key, value in weights.items() if key.startswith(f"{layers}.{len(adapters)}.")}:
        adapters.append({key.split(".", 3)[3].replace("image_embeds", "proj"): value for key, value in own.items()})
    if not adapters or hasattr(denoiser.encoder_hid_proj, "image_projection_layers"):
        return
    places = [name.removesuffix(".processor") for name in denoiser.attn_processors]
    texts = [denoiser.get_submodule(name) for name in places if name.endswith("attn2") and "motion_modules" not in name]
    attached = {
        f"{2 * place + 1}.to_{kind}_ip.weight": torch.empty(layer.to_q.in_features, layer.to_k.in_features)
        for place, layer in enumerate(texts)
        for kind in "kv"
    }
    told = [{"image_proj": projection, "ip_adapter": attached} for projection in adapters]
    denoiser._load_ip_adapter_weights(told, low_cpu_mem_usage=False)
