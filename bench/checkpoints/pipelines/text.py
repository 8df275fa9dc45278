"""Prompts to conditions, by the encoders and the code of diffusers' own pipelines."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.checkpoints.pipelines.files import Folder, Part, check_weights, quiet
from bench.errors import UsageError
from bench.metrics.weights import in_short

PART = 32  # prompts encoded at once
TOKENIZERS = (
    "CLIPTokenizer", "CLIPTokenizerFast", "T5Tokenizer", "T5TokenizerFast", "BertTokenizer", "BertTokenizerFast",
)  # fmt: skip
Conditions = dict[str, Tensor]
Encode = Callable[[Any, list[str], torch.device], Conditions]  # of some prompts by a pipeline, one row a prompt


def load_encoder(part: Part) -> Any:
    """A text encoder in float32, frozen; raises UsageError unless the files hold all its weights."""
    import transformers  # seconds to import
    from diffusers.pipelines import latent_diffusion

    check_weights(part.weights)
    library = latent_diffusion if part.class_name == "LDMBertModel" else transformers
    try:
        with quiet():
            model, report = getattr(library, part.class_name).from_pretrained(
                part.folder, local_files_only=True, use_safetensors=part.weights[0].suffix == ".safetensors",
                variant=part.variant, dtype=torch.float32, output_loading_info=True,
            )  # fmt: skip
    except Exception as error:  # a config may be wrong in any way
        raise UsageError(f"{part.folder} is no {part.class_name} that can be loaded: {in_short(error)}") from error
    if wrong := sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]])):
        raise UsageError(f"{part.folder}: its weights are not its config's: {len(wrong)} lack, such as {wrong[0]}")
    return model.eval().requires_grad_(False)


def load_tokenizer(folder: Folder, name: str) -> Any:
    """A tokenizer; raises UsageError when it is missing or broken."""
    import transformers  # seconds to import

    place = folder.path / name
    if not place.is_dir():
        raise UsageError(f"{folder.path} lacks its {name}: there is no folder {place}")
    class_name = str(folder.index[name][1]) if folder.has(name) else ""
    if class_name not in TOKENIZERS:
        raise UsageError(
            f"{folder.path}: its {name} is a {class_name}, and {' or '.join(TOKENIZERS)} is what runs here"
        )
    try:
        return getattr(transformers, class_name).from_pretrained(place, local_files_only=True)
    except Exception as error:  # its files may be wrong in any way
        raise UsageError(f"{place} is no {class_name} that can be loaded: {in_short(error)}") from error


@dataclass(frozen=True)
class PipelineText:
    """The text encoders of a pipeline, in float32, moved to a device when they are first asked there."""

    pipeline: Any
    conditions: Encode

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], device: torch.device) -> Conditions:
        """The conditions of these prompts, float32, each different one encoded once, and cut where it is too long."""
        self.to(device)
        different = list(dict.fromkeys(prompts))
        few = [different[i : i + PART] for i in range(0, len(different), PART)]
        with quiet():  # about each prompt that is cut
            parts = [self.conditions(self.pipeline, some, device) for some in few]
        rows = torch.tensor([different.index(prompt) for prompt in prompts], device=device)
        return {name: torch.cat([part[name] for part in parts])[rows] for name in parts[0]}

    def to(self, device: torch.device) -> None:
        for name, component in self.pipeline.components.items():
            if name.startswith(("text_encoder", "bert")) and component is not None:
                component.to(device)

    def work(self, device: torch.device, batch: int) -> Callable[[], object]:
        """Encoding as many prompts, to be timed."""
        prompts = [str(i) for i in range(batch)]
        return lambda: self.encode(prompts, device)


def clip(pipeline: Any, prompts: list[str], device: torch.device) -> Conditions:
    """Stable Diffusion 1 and 2: the last hidden states of one CLIP."""
    return {"prompt": pipeline.encode_prompt(prompts, device, 1, False)[0]}


def two_clips(height: int, width: int) -> Encode:
    """Stable Diffusion XL: the hidden states of two CLIPs, the second one's pooled output, and an uncropped size.

    The empty prompt is all zeros where the pipeline's config says so, as its own negative prompt is unless given.
    """

    def conditions(pipeline: Any, prompts: list[str], device: torch.device) -> Conditions:
        prompt, _, pooled, _ = pipeline.encode_prompt(prompts, device=device, do_classifier_free_guidance=False)
        if pipeline.config.force_zeros_for_empty_prompt:
            said = torch.tensor([float(p != "") for p in prompts], device=device)[:, None]
            prompt, pooled = prompt * said[..., None], pooled * said
        size = torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32, device=device)
        return {"prompt": prompt, "pooled": pooled, "size": size.expand(len(prompts), -1)}

    return conditions


def two_clips_and_t5(pipeline: Any, prompts: list[str], device: torch.device) -> Conditions:
    """Stable Diffusion 3: the hidden states of two CLIPs, then T5's (zeros without it), and both pooled outputs."""
    prompt, _, pooled, _ = pipeline.encode_prompt(prompts, None, None, device=device, do_classifier_free_guidance=False)
    return {"prompt": prompt, "pooled": pooled}


def clip_and_t5(tokens: int) -> Encode:
    """Flux: CLIP's pooled output, and so many of T5's hidden states."""

    def conditions(pipeline: Any, prompts: list[str], device: torch.device) -> Conditions:
        prompt, pooled, _ = pipeline.encode_prompt(prompts, device=device, max_sequence_length=tokens)
        return {"prompt": prompt, "pooled": pooled}

    return conditions
