"""A tiny random model of each family, a byte-level tokenizer trained on a few sentences, and small clips, for tests and benchmarks.

Unlike the embedded model it knows nothing: what holds for it holds for the code and not for what was learnt.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from labkit.chain.spans import Span
from labkit.data.moments import Moment
from labkit.data.video.frames import FrameCache
from labkit.embedded.model import MARKERS, STAMP_WORDS, build_tokenizer, family_config, write_chains
from labkit.policy.families import FAMILIES
from labkit.policy.inputs import FrameSampling, Prompt
from labkit.policy.model import Policy
from labkit.policy.prompt_source import PromptSource

SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for part in m['content'] %}"
    "{% if part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPAN = "<|vision_start|><|video_pad|><|vision_end|>"
SENTENCES = (
    "<think> at first <timestamp> 2.0 to 9.5 </timestamp> then <timestamp> 3.0 to 8.0 </timestamp> </think>"
    "<answer> 3.5 to 7.5 </answer>",
    "When does the square reach the right border? Give the start and the end in seconds.",
    "user assistant 0 1 2 3 4 5 6 7 8 9",
)


def append_completion(prompt: Prompt, completion: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids (P + C,) and positions (3, P + C) of a prompt and a completion (C,)."""
    following = prompt.positions[:, -1:] + 1 + torch.arange(len(completion))
    return torch.cat([prompt.ids, completion]), torch.cat([prompt.positions, following], 1)


def tokenizer(family: str = "qwen2_5_vl") -> Any:
    """A byte-level BPE with the family's special tokens and a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[*SPECIALS, *MARKERS.get(family, ())],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(list(SENTENCES) * 20, trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<|endoftext|>", eos_token="<|im_end|>")
    made.padding_side = "left"
    images = FAMILIES[family].frames_as_images
    made.chat_template = TEMPLATE.replace(SPAN, FAMILIES[family].placeholder) if images else TEMPLATE
    return made


def model(
    tok: Any,
    *,
    family: str = "qwen2_5_vl",
    hidden: int = 64,
    layers: int = 2,
    vision_depth: int = 2,
    spread: float = 0.4,
    seed: int = 0,
) -> Any:
    """A random model whose output layer is spread out, so that log-probs differ and greedy answers are decided."""
    import transformers

    heads = 4
    half = hidden // heads // 2
    text = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 2,
        "intermediate_size": 2 * hidden,
        "vocab_size": 448,
        "max_position_embeddings": 4096,
        "bos_token_id": None,
        "eos_token_id": tok.eos_token_id,
        "pad_token_id": tok.pad_token_id,
        "rope_parameters": {
            "rope_type": "default",
            "mrope_section": [half // 2, half // 4, half - half // 2 - half // 4],
            "rope_theta": 1e4,
        },
    }
    if family == "qwen3_vl":
        text["head_dim"] = 2 * hidden // heads  # as in the published 4B, heads are wider than their share of the model
        text["rope_parameters"]["mrope_section"] = [half, half // 2, half // 2]
    patch = 16 if family == "qwen3_vl" else 14
    config = family_config(tok, family, text, width=hidden // 2, heads=2, depth=vision_depth, patch=patch)
    model_class = getattr(transformers, FAMILIES[family].model_class)
    torch.manual_seed(seed)
    made = model_class(config)
    spread_out(made, spread)
    made.generation_config.eos_token_id = tok.eos_token_id
    made.generation_config.pad_token_id = tok.pad_token_id
    return made.eval()


def spread_out(made: Any, spread: float) -> None:
    """Wider weights: transformers' small initial ones let neither video nor position reach the output."""
    with torch.no_grad():
        made.get_decoder().embed_tokens.weight.normal_(0, 1)
        made.lm_head.weight.normal_(0, spread)
        for name, weight in made.get_decoder().layers.named_parameters():
            if weight.dim() > 1:
                weight.normal_(0, (2 if "q_proj" in name or "k_proj" in name else 1) * weight.shape[1] ** -0.5)
        for tower in Policy(made, None, "tiny").towers:
            for name, weight in tower.named_parameters():
                if weight.dim() > 1 and re.search(
                    "merger|connector|projector|projection", f"{type(tower).__name__} {name}".lower()
                ):
                    weight.normal_(0, 1.5 * weight.shape[1] ** -0.5)
            tower.requires_grad_(False)


def checkpoint_activations(model: Any, on: bool) -> None:
    """Switch it, by the name that the transformers that is installed has for it."""
    new, old = (f"{kind}_checkpointing_{'enable' if on else 'disable'}" for kind in ("activation", "gradient"))
    getattr(model, new if hasattr(model, new) else old)()


def policy(**shape: Any) -> Policy:
    tok = tokenizer(shape.get("family", "qwen2_5_vl"))
    return Policy(model(tok, **shape), tok, "tiny")


def source(asked: Policy, on: list[Moment], folder: Path, fps: float = 1.0) -> PromptSource:
    side = 4 * asked.geometry.patch  # four tokens a frame
    sampling = FrameSampling(fps, 32, side * side, side * side)
    return PromptSource(asked, on, template="query", sampling=sampling, cache=FrameCache(folder))


def write_clip(path: Path, seconds: float = 8.0, fps: int = 4, size: int = 56, seed: int = 0) -> Path:
    """An H.264 clip of a square that crosses noise from left to right."""
    import av

    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 60, (size, size, 3), dtype=np.uint8)
    colour = rng.integers(60, 255, 3)
    frames = int(seconds * fps)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for i in range(frames):
            picture = noise.copy()
            x = int(i * (size - 12) / frames)
            picture[20:32, x : x + 12] = colour
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def moments(folder: Path, clips: int = 3, per_clip: int = 2) -> list[Moment]:
    """Moments on freshly written clips: `clips * per_clip` queries of different length."""
    found = []
    for c in range(clips):
        video = write_clip(folder / f"clip{c}.mp4", seed=c)
        for k in range(per_clip):
            query = "the square " + "moves and " * k + "reaches the border"
            window = Span(1.0 + k, 4.0 + c + k)
            found.append(Moment(qid=f"q{c}-{k}", video=str(video), query=query, windows=(window,), duration=8.0))
    return found


def plain_checkpoint(folder: Path, kind: str = "llava", chains: bool = False, hidden: int = 64) -> None:
    """Write a random model of a family without an entry, with its makers' processor; one that writes `chains` has the toy's words."""
    import transformers

    names = {"image_token": "<image>", "boi_token": "<boi>", "eoi_token": "<eoi>"}
    words = build_tokenizer(STAMP_WORDS) if chains else tokenizer()
    tok = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words.backend_tokenizer, pad_token=words.pad_token, eos_token=words.eos_token, unk_token=words.unk_token,
        extra_special_tokens=names, padding_side="left",
    )  # fmt: skip
    ids = {name: tok.convert_tokens_to_ids(text) for name, text in names.items()}
    text = {
        "hidden_size": hidden, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128,
        "vocab_size": -(-len(tok) // 16) * 16, "max_position_embeddings": 4096, "bos_token_id": None,
        "eos_token_id": tok.eos_token_id, "pad_token_id": tok.pad_token_id, "head_dim": hidden // 4,
    }  # fmt: skip
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "patch_size": 14,
    }
    if kind == "llava":
        config = transformers.LlavaConfig(
            text_config={"model_type": "llama", **text}, image_token_index=ids["image_token"], tie_word_embeddings=False,
            vision_config={"model_type": "clip_vision_model", "image_size": 28, "projection_dim": 32, **vision},
        )  # fmt: skip
        images = transformers.LlavaImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
        processor = transformers.LlavaProcessor(
            images, tok, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1
        )
        made = transformers.LlavaForConditionalGeneration(config)
    else:
        config = transformers.Gemma3Config(
            text_config={**text, "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 32},
            vision_config={"image_size": 56, **vision}, mm_tokens_per_image=4, tie_word_embeddings=False,
            image_token_index=ids["image_token"], boi_token_index=ids["boi_token"], eoi_token_index=ids["eoi_token"],
        )  # fmt: skip
        images = transformers.Gemma3ImageProcessorPil(size={"height": 56, "width": 56})
        processor = transformers.Gemma3Processor(images, tok, image_seq_length=4)
        made = transformers.Gemma3ForConditionalGeneration(config)
    processor.chat_template = words.chat_template.replace(
        "part['type'] == 'video'", "part['type'] == 'image'"
    ).replace(SPAN, "<image>" if kind == "llava" else "<boi>")
    made.generation_config.eos_token_id, made.generation_config.pad_token_id = tok.eos_token_id, tok.pad_token_id
    if chains:
        write_chains(made, tok, "assistant")
    else:
        spread_out(made, 0.4)
    made.save_pretrained(folder)
    processor.save_pretrained(folder)
