"""Processors of transformers: how a model without an entry in `labkit.policy.families` reads a video.

Frames are images of one message, each behind its time in seconds as text, since a processor of images knows no time; the chat template
puts them where its makers want them. Sizes, tokens and pixels are the processor's own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from labkit.errors import LabError

if TYPE_CHECKING:
    import torch

PER_TOKEN = ("attention_mask", "token_type_ids", "mm_token_type_ids")
"""What a processor says about each token: 1, 0 and 0 of one that the model has written."""


def require_image_text(kind: str | None, name: str) -> None:
    """Raise LabError unless transformers has an image-text-to-text model of this `model_type`."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    if kind not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise LabError(
            f"model {name!r} is of the family {kind!r}, in which transformers has no model that reads images and writes text; "
            "choose an image-text-to-text model, such as a Qwen2.5-VL"
        )


def load_processor(source: str, name: str) -> Any:
    """The processor of the model `name` in `source`, a folder or a hub id.

    Raises:
        LabError: there is none, a package that it needs is missing, it takes no images, or it has no chat template.
    """
    import transformers

    try:
        processor = transformers.AutoProcessor.from_pretrained(source)
    except ImportError as error:
        raise LabError(_lacks_package(name, error)) from None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        if "torchvision" in str(error).lower():
            raise LabError(_lacks_package(name, error)) from None
        raise LabError(
            f"model {name!r} has no processor that can be loaded ({_first_line(error)}); put the files of its makers' processor "
            "(processor_config.json, preprocessor_config.json) beside its weights"
        ) from None
    if getattr(processor, "image_processor", None) is None:
        raise LabError(
            f"model {name!r} has a {type(processor).__name__} and no processor of images; put its makers' preprocessor_config.json "
            "beside its weights"
        )
    if not (processor.chat_template or processor.tokenizer.chat_template):
        raise LabError(
            f"the processor of model {name!r} has no chat template; take the instruction-tuned checkpoint, or put its template "
            "beside its weights as chat_template.jinja"
        )
    return processor


def processor_inputs(
    processor: Any, qid: str, messages: list[dict[str, Any]], frames: torch.Tensor, seconds: Sequence[float]
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Token ids (P,) of messages with one video part, and the model's other inputs, with a batch of one.

    frames: (T, H, W, 3) uint8; `seconds` of each from the clip's beginning. Raises LabError where the chat template does not take
    the frames.
    """
    from PIL import Image

    images = [Image.fromarray(frame.numpy()) for frame in frames]
    shown: list[dict[str, Any]] = []
    for second, image in zip(seconds, images, strict=True):
        shown += [{"type": "text", "text": f"<{second:.1f} seconds>"}, {"type": "image", "image": image}]
    (message,) = messages
    content = [each for part in message["content"] for each in (shown if part["type"] == "video" else [part])]
    try:
        inputs = dict(
            processor.apply_chat_template(
                [message | {"content": content}], add_generation_prompt=True, tokenize=True, return_dict=True,
                return_tensors="pt",
            )
        )  # fmt: skip
    except Exception as error:  # of whatever kind a template or a processor raises
        raise LabError(
            f"the prompt of {qid!r} cannot be made by {type(processor).__name__} ({_first_line(error)}); check that its chat template "
            f"takes several images in one message, and max_frames ({len(images)} frames here)"
        ) from error
    ids = inputs.pop("input_ids")[0]
    placeholder = getattr(processor, "image_token_id", None)
    if not inputs.keys() - set(PER_TOKEN) or (placeholder is not None and placeholder not in ids):
        raise LabError(
            f"the prompt of {qid!r} holds no frame: the chat template of {type(processor).__name__} leaves images out; put one that "
            "takes them beside the model's weights as chat_template.jinja"
        )
    return ids, inputs


def _lacks_package(name: str, error: Exception) -> str:
    found = re.search(r"`?pip install (?:-U )?([\w.-]+)`?", str(error))
    package = (
        "torchvision" if "torchvision" in str(error).lower() else found[1] if found else getattr(error, "name", None)
    )
    how = f"with 'pip install {package}', in the build that fits torch" if package else "in the build that fits torch"
    return f"the processor of model {name!r} needs a package that is not installed ({_first_line(error)}); install it {how}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
