"""Save a model as a folder that can be published, and load one without trusting it.

    README.md                  the card, and figures/*.svg, its pictures, where there is anything to draw (cards.py)
    config.json                what to build (model_config.py)
    model.safetensors          its tensors, those that are tied stored once
    fingerprint.safetensors    2 x 64 token ids and what the reference path answers to them, in float32 on a CPU

Loading goes in this order, and stops at the first thing that is wrong: config.json -> the files' sizes -> their headers
against a model without memory (the meta device) -> their sha256 -> the real model and its tensors -> the fingerprint.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from icll_zoo import cards, catalogue, figures, files, hub, rebuild, tensors
from icll_zoo.errors import EnvironmentFault, InputError, IntegrityError, ZooError, printable
from icll_zoo.generation import can_step
from icll_zoo.model_config import LIBRARY, Config, FileFacts, describe_model, read_config, spec_of
from icll_zoo.tensors import Shape, shapes, stored_tensors
from icll_zoo.zoo import Zoo, default_zoo

CARD, CONFIG, MODEL, FINGERPRINT = FILES = ("README.md", "config.json", "model.safetensors", "fingerprint.safetensors")
LAYOUT = (*FILES, *figures.FIGURES)  # all that a saved model may hold, by its path; pictures may be absent
SCRATCH_LIMIT = 2**28  # bytes of buffers that are not in the file (masks, tables), beside four times the file


# -- saving ----------------------------------------------------------------------------------------------------------


def save_model(
    model: nn.Module,
    folder: str | Path,
    *,
    data: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    zoo: Zoo | None = None,
) -> Path:
    """Write a model that the zoo created to `folder`, whole or not at all; an earlier saved model there is replaced.

    data: {"dataset": name, "options": {...}}. training, metrics: what JSON holds, for config.json and the card.
    The same model gives the same bytes.
    Raises InputError for a model that could not be loaded again, EnvironmentFault for weights that are not finite.
    """
    zoo = zoo or default_zoo()
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    spec, vocabulary = spec_of(model)
    target = checked_target(Path(folder))
    stored, tied = stored_tensors(model)
    found = shapes(stored)
    wanted = shapes(stored_tensors(rebuild.skeleton(zoo, spec, vocabulary, found))[0])
    if odd := sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name)):
        raise InputError(
            f"model {spec.architecture!r} is not as its options build it: tensor {odd[0]!r} is {found.get(odd[0])}, "
            f"not {wanted.get(odd[0])}",
            hint="save it in the form and type in which create_model makes it",
        )
    refuse_non_finite(model, EnvironmentFault, f"model {spec.architecture!r}")
    config = describe_model(
        zoo, model, data=data, training=training, metrics=metrics, parameters=count_parameters(model)
    )
    fingerprint = rebuild.make_fingerprint(zoo, spec, vocabulary, stored)
    entry = zoo.entry("model", spec.architecture, spec.distribution)
    with files.whole_folder(target, "model") as new:
        tensors.write_tensors(new / MODEL, stored, {"tied": tied})
        tensors.write_tensors(new / FINGERPRINT, fingerprint)
        facts = {
            name: FileFacts(sha256=files.sha256_of(new / name), bytes=(new / name).stat().st_size)
            for name in (MODEL, FINGERPRINT)
        }
        config = config.model_copy(update={"files": facts})
        for name, content in cards.contents(config, license=entry.license, paper=entry.paper).items():
            (new / name).parent.mkdir(exist_ok=True)
            files.write_atomic(new / name, content)
        files.write_atomic(new / CONFIG, files.pretty_json(config.to_json()))
    return target


def refuse_non_finite(model: nn.Module, fault: type[ZooError], where: str) -> None:
    """Raise `fault` for a parameter with NaN or infinity. Buffers may hold infinities: masks do."""
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise fault(f"{where} has weights that are not finite, in {printable(repr(name), 80)}")


def checked_target(folder: Path) -> Path:
    """The folder to write to: absent, empty, or an earlier saved model and nothing else; InputError otherwise."""
    target = Path(os.path.realpath(folder))
    if not os.path.lexists(target):
        return target
    if not target.is_dir():
        raise InputError(f"cannot save a model to {str(folder)!r}: it is not a folder")
    config = target / CONFIG
    saved = files.read_json(config, CONFIG) if config.is_file() else None
    ours = {*LAYOUT, cards.FOLDER} if isinstance(saved, dict) and saved.get("library") == LIBRARY else set()
    held = [*target.iterdir(), *(target / cards.FOLDER).glob("*")]
    if other := sorted({str(path.relative_to(target)) for path in held} - ours):
        raise InputError(
            f"cannot save a model to {str(folder)!r}: it holds {other[0]!r}", hint="name a new or empty folder"
        )
    return target


# -- loading ---------------------------------------------------------------------------------------------------------


def load_model(
    source: str, *, verify: bool = True, zoo: Zoo | None = None, device: torch.device | str = "cpu"
) -> nn.Module:
    """The saved model at `local-dir:PATH`, `hf-hub:org/name@revision` or of a catalogue's name, in evaluation mode.

    verify: compare what it answers with its fingerprint. The model carries `zoo_spec`, `zoo_vocabulary`, `zoo_config`.
    Raises InputError if there is none or a plugin is missing, IntegrityError if anything of it is not as it must be.
    """
    zoo = zoo or default_zoo()
    folder = resolve_source(source, zoo)
    where = f"model {str(folder)!r}"
    config = read_config(folder, zoo)
    names = (MODEL, FINGERPRINT) if verify else (MODEL,)
    for name in names:
        if name not in config.files:
            raise IntegrityError(f"config.json of {where} does not list {name}")
        verify_size(folder / name, name, config.files[name])
    # Headers before hashes: a file of a terabyte of nothing takes an hour to hash, and its header a moment to refuse.
    wanted = wanted_shapes(zoo, config, folder / MODEL, where)
    wanted_print = rebuild.fingerprint_shapes(config.spec, config.vocabulary)
    if verify:
        found = tensors.read_header(folder / FINGERPRINT, FINGERPRINT).tensors
        tensors.compare(found, wanted_print, f"{FINGERPRINT} {str(folder / FINGERPRINT)!r}")
    for name in names:
        verify_file(folder / name, name, config.files[name])
    kept = tensors.read_tensors(folder / FINGERPRINT, FINGERPRINT, wanted_print) if verify else {}
    try:
        stored = tensors.read_tensors(folder / MODEL, MODEL, wanted)
        model = rebuild.build_with(zoo, config.spec, config.vocabulary, stored)
    except (MemoryError, RuntimeError) as error:
        raise EnvironmentFault(f"cannot build {where}: {printable(error, 200)}") from error
    refuse_non_finite(model, IntegrityError, where)
    if verify:
        rebuild.verify_fingerprint(zoo, model, kept, where)
    made: Any = model.to(device)
    made.zoo_config = config
    return model


def wanted_shapes(zoo: Zoo, config: Config, path: Path, where: str) -> dict[str, Shape]:
    """The names, types and sizes of the tensors that the description builds, without allocating any of them.

    Raises IntegrityError unless the file's header, its ties and the number of parameters agree with them.
    """
    header = tensors.read_header(path, MODEL)
    held = sum(shape.bytes for shape in header.tensors.values())
    if held > (memory := files.memory()):
        raise EnvironmentFault(f"{where} has {held} bytes of weights, and this machine {memory} bytes of memory")
    try:
        model = rebuild.skeleton(zoo, config.spec, config.vocabulary, header.tensors)
    except IntegrityError as error:
        raise IntegrityError(f"{where}: {error}") from error
    except ZooError:
        raise
    except Exception as error:
        reason = printable(f"{type(error).__name__}: {error}", 200)
        raise InputError(f"{where} cannot be built from its config.json: {reason}") from error
    stored, tied = stored_tensors(model)
    wanted = shapes(stored)
    tensors.compare(header.tensors, wanted, f"{MODEL} {str(path)!r}")
    said = files.parse_json(header.metadata.get("icll_zoo", "{}"), f"the header of {MODEL} {str(path)!r}")
    if not isinstance(said, dict) or said.get("tied") != tied:
        raise IntegrityError(f"{MODEL} {str(path)!r} ties other tensors than the model does")
    if count_parameters(model) != config.parameters:
        raise IntegrityError(f"{where} has {count_parameters(model)} parameters, and its config.json says otherwise")
    written = {id(tensor) for tensor in model.state_dict(keep_vars=True).values()}
    scratch = sum(Shape.of(b).bytes for b in model.buffers() if id(b) not in written)
    if scratch > SCRATCH_LIMIT + 4 * held:
        raise IntegrityError(f"{where} asks for {scratch} bytes beside its weights, which is absurd")
    return wanted


def verify_size(path: Path, what: str, facts: FileFacts) -> None:
    """Raise IntegrityError unless a file has so many bytes; it is not opened."""
    found = files.regular_file(path, what)
    if found != facts.bytes:
        raise IntegrityError(
            f"{what} {str(path)!r} has {found} bytes and must have {facts.bytes}",
            hint="it is cut, damaged or another file",
        )


def verify_file(path: Path, what: str, facts: FileFacts) -> None:
    """Raise IntegrityError unless a file has exactly these bytes; nothing of it is parsed."""
    verify_size(path, what, facts)
    if files.sha256_of(path) != facts.sha256:
        raise IntegrityError(
            f"{what} {str(path)!r} has another sha256 than it must", hint="it is damaged or was changed"
        )


def resolve_source(source: str, zoo: Zoo) -> Path:
    """The folder that a source means: `local-dir:PATH`, `hf-hub:org/name@revision`, or a name in the catalogue.

    The files of a catalogued model are compared with what the catalogue says, before anything of them is read. Those
    of the Hub lie in huggingface_hub's cache, as links to files that were compared with their hash just now.
    Raises InputError for a bare path (it could mean two things), for links elsewhere, and for what is not there.
    """
    scheme, colon, rest = source.partition(":")
    if colon and scheme == "local-dir":
        folder = Path(rest)
        if not rest or not folder.is_dir():
            raise InputError(f"no folder {rest!r} to load a model from")
        return without_links(folder)
    if colon and scheme == "hf-hub":
        return hub.fetch(*hub.parse(rest), (CONFIG, MODEL, FINGERPRINT))
    if os.path.lexists(source) or "/" in source or os.sep in source or source in ("", ".", ".."):
        raise InputError(
            f"{source!r} could be a folder or a repository",
            hint=f"say {f'local-dir:{source}'!r} or {f'hf-hub:{source}'!r}",
        )
    entry = catalogue.find(source, zoo)
    folder = entry.folder()
    if entry.repo is None:
        without_links(folder)
    for name, facts in entry.files.items():
        verify_file(folder / name, name, facts)
    return folder


def without_links(folder: Path) -> Path:
    """The folder itself, if none of the files that loading reads in it is a link, which may point anywhere."""
    for name in (CONFIG, MODEL, FINGERPRINT):
        if (folder / name).is_symlink():
            raise InputError(
                f"{name} of model {str(folder)!r} is a symbolic link",
                hint="`hf download --local-dir FOLDER` writes the files",
            )
    return folder


# -- measuring -------------------------------------------------------------------------------------------------------


def describe(model: nn.Module) -> dict[str, Any]:
    """What is counted on the model itself: "parameters", "state_bytes" {64: ..., 512: ...}, "state_grows", and
    "flops_per_token", of a forward pass over 512 tokens.

    The state is that of one sequence after so many tokens. None where a model has no state, or takes no 512 tokens.
    """
    sizes = {length: state_bytes(model, length) for length in (64, 512)} if can_step(model) else {}
    known = [size for size in sizes.values() if size is not None]
    grows = known[0] != known[1] if len(known) == 2 else getattr(model, "state_grows", None) if known else None
    return {
        "parameters": count_parameters(model),
        "state_bytes": sizes or None,
        "state_grows": grows,
        "flops_per_token": flops_per_token(model),
    }


def count_parameters(model: nn.Module) -> int:
    """The number of parameters, those that are tied counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def flops_per_token(model: nn.Module, length: int = 512) -> float | None:
    """Floating-point operations of a forward pass, a token, in matrix products, convolutions and Fourier transforms.

    Elementwise operations are not counted. None if the model takes no sequence of this length.
    """
    from torch.utils.flop_counter import FlopCounterMode

    def transform(shape: Any, dims: Any, *_: Any, **_more: Any) -> int:
        # 5/2 n log2 n operations for n real values (Frigo and Johnson 2005, www.fftw.org/speed), either way.
        n = math.prod(shape[dim] for dim in dims)
        return round(2.5 * math.prod(shape) * math.log2(max(n, 2)))

    fft = torch.ops.aten
    mapping = {fft._fft_r2c: transform, fft._fft_c2r: transform}

    def count(call: Callable[[Tensor, Tensor], Any]) -> float | None:
        with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
            answered = run_once(model, length, call)
        return None if answered is None else counter.get_total_flops() / length

    # On the meta device fused kernels, whose operations nobody counts, come apart into products.
    stand_ins = {name: t.to("meta") for name, t in [*model.named_parameters(), *model.named_buffers()]}
    try:
        return count(lambda tokens, _: torch.func.functional_call(model, stand_ins, (tokens.to("meta"),)))
    except (RuntimeError, NotImplementedError):
        return count(lambda tokens, _: model(tokens))


def state_bytes(model: nn.Module, length: int) -> int | None:
    """The bytes of the state of one sequence after `length` tokens; None if the model takes no more than fewer."""
    stepper: Any = model
    answered = run_once(
        model, length, lambda tokens, like: stepper.step(tokens, stepper.init_state(1, like.device, like.dtype))
    )
    return None if answered is None else sum(t.numel() * t.element_size() for t in answered[1].values())


@torch.inference_mode()
def run_once(model: nn.Module, length: int, call: Callable[[Tensor, Tensor], Any]) -> Any:
    """What `call` answers to (1, length) random tokens and a tensor like the model's; None if that is too long."""
    like = next(model.parameters(), torch.empty(0))
    size = spec_of(model)[1].size
    tokens = torch.randint(size, (1, length), generator=torch.Generator().manual_seed(0)).to(like.device)
    was_training = model.training
    model.eval()
    try:
        return call(tokens, like)
    except InputError:
        return None
    finally:
        model.train(was_training)
