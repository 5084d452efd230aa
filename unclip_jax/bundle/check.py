"""Whether the parts of a bundle fit each other, and whether weights fit their spec."""

from collections.abc import Mapping
from typing import Any

from unclip_jax.bundle.parts import Bundle, Part
from unclip_jax.core.errors import UserError
from unclip_jax.models.clip import CLIPSpec, TextSpec
from unclip_jax.models.prior import PriorSpec
from unclip_jax.models.unet import UNetSpec

Shape = tuple[int, ...]


def check_fit(bundle: Bundle) -> None:
    """Refuses parts that were not made for each other; the specs tell, so weights need not be loaded.

    Raises:
        UserError: naming the two things that disagree.
    """
    _check_kinds(bundle)
    _check_identity(bundle)
    _check_widths(bundle)
    _check_tokenizer(bundle)
    _check_processes(bundle)
    _check_sizes(bundle)
    _check_sampling(bundle)


def check_tensors(where: str, found: Mapping[str, Shape], wanted: Mapping[str, Shape]) -> None:
    """Refuses tensors that are missing, unexpected or misshapen.

    Args:
        where: the file, for the message.
        found: shape by name.
        wanted: shape by name, as the spec has it.

    Raises:
        UserError: naming the first tensor of those.
    """
    problems = [f"tensor {name} is missing" for name in wanted if name not in found]
    problems += [f"tensor {name} is unexpected" for name in found if name not in wanted]
    problems += [
        f"tensor {name} has shape {list(found[name])}, not {list(shape)}"
        for name, shape in wanted.items()
        if name in found and found[name] != shape
    ]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(f"{where}: {problems[0]}{more}; the weights are not those of the spec")


def _check_kinds(bundle: Bundle) -> None:
    for name, part in bundle.parts.items():
        expected = name.rpartition("_")[0] if part.kind == "upsampler" else name
        if expected != part.kind:
            raise UserError(f"part {name} is of kind {part.kind}; give it the name of its kind")
    names = [name for name, part in bundle.parts.items() if part.kind == "upsampler"]
    if sorted(names) != [f"upsampler_{index}" for index in range(len(names))]:
        raise UserError(f"upsamplers are called {', '.join(names)}; number them from upsampler_0 on")


def _check_identity(bundle: Bundle) -> None:
    known = [(name, part.clip_identity) for name, part in bundle.parts.items() if part.clip_identity]
    for name, identity in known[1:]:
        first_name, first = known[0]
        if identity != first:
            raise UserError(
                f"{name} belongs to CLIP {identity[:12]} but {first_name} to CLIP {first[:12]}; "
                "their embeddings mean different things, use parts that share one CLIP"
            )


def _check_widths(bundle: Bundle) -> None:
    clip, prior, decoder = (_spec(bundle, name) for name in ("clip", "prior", "decoder"))
    if isinstance(prior, PriorSpec) and prior.text is not None:
        _all_equal({"prior's context": prior.context, "prior's text.context": prior.text.context})
    embed_dims: dict[str, int] = {}
    if isinstance(clip, CLIPSpec):
        embed_dims["clip's embed_dim"] = clip.embed_dim
    if isinstance(prior, PriorSpec):
        embed_dims["prior's embed_dim"] = prior.embed_dim
    if bundle.stats is not None:
        embed_dims["the statistics' length"] = bundle.stats.mean.shape[0]
    if isinstance(decoder, UNetSpec) and decoder.embed_dim is not None:
        embed_dims["decoder's embed_dim"] = decoder.embed_dim
    _all_equal(embed_dims)
    if isinstance(clip, CLIPSpec):
        if isinstance(prior, PriorSpec) and prior.text is None:
            _all_equal({"clip's text.width": clip.text_tower.width, "prior's text_width": prior.text_width})
            _all_equal({"clip's text.context": clip.text_tower.context, "prior's context": prior.context})
        if isinstance(decoder, UNetSpec) and decoder.text_width is not None:
            _all_equal({"clip's text.width": clip.text_tower.width, "decoder's text_width": decoder.text_width})


def _check_tokenizer(bundle: Bundle) -> None:
    for name, part in bundle.parts.items():
        text = part.spec.text
        if not isinstance(text, TextSpec):
            continue
        if bundle.tokenizer is None:
            raise UserError(f"{name} reads captions but there is no tokenizer; add the one it learned with")
        theirs = bundle.tokenizer
        _all_equal({f"{name}'s vocab_size": text.vocab_size, "the tokenizer's": theirs.vocab_size})
        _all_equal({f"{name}'s eos_id": text.eos_id, "the tokenizer's": theirs.eos_id})


def _check_processes(bundle: Bundle) -> None:
    for name, part in bundle.parts.items():
        if part.kind == "clip":
            continue
        if part.process is None:
            raise UserError(f"{name} has no process; say which diffusion it was trained to reverse")
        learned = isinstance(part.spec, UNetSpec) and part.spec.learned_sigma
        if learned != (part.process.variance == "learned_range"):
            raise UserError(
                f"{name}'s learned_sigma is {learned} but its process has variance "
                f"{part.process.variance!r}; learned_sigma goes with 'learned_range' and only with it"
            )


def _check_sizes(bundle: Bundle) -> None:
    decoder = _spec(bundle, "decoder")
    if isinstance(decoder, UNetSpec) and decoder.low_res:
        raise UserError("decoder wants a low-resolution image; only upsamplers have one")
    previous_name = "decoder"
    size = decoder.image_size if isinstance(decoder, UNetSpec) else None
    for index, part in enumerate(bundle.upsamplers):
        name = f"upsampler_{index}"
        if not (isinstance(part.spec, UNetSpec) and part.spec.low_res and part.low_res_size):
            raise UserError(f"{name} takes no low-resolution image; set low_res and low_res_size")
        if size is not None and part.low_res_size != size:
            raise UserError(
                f"{previous_name} makes {size} px but {name} starts from {part.low_res_size} px; "
                "pack stages whose sizes meet"
            )
        if part.spec.image_size % part.low_res_size:
            raise UserError(f"{name} goes from {part.low_res_size} to {part.spec.image_size} px; use a whole factor")
        previous_name, size = name, part.spec.image_size


def _check_sampling(bundle: Bundle) -> None:
    for name, settings in bundle.sampling.items():
        process = bundle.part(name).process
        if process is None:
            raise UserError(f"there are sampling settings for {name}, which is not sampled; take them out")
        settings.check(f"sampling of {name}", process)


def _spec(bundle: Bundle, name: str) -> Any:
    part: Part | None = bundle.parts.get(name)
    return None if part is None else part.spec


def _all_equal(values: dict[str, int]) -> None:
    if len(set(values.values())) > 1:
        disagreement = " but ".join(f"{name} is {value}" for name, value in values.items())
        raise UserError(f"{disagreement}; use parts made for each other")
