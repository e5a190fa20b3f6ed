"""A tiny random model of each family, a byte-level tokenizer trained on a few sentences, and small clips, for tests and benchmarks.

Unlike the embedded model it knows nothing: what holds for it holds for the code and not for what was learnt.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from labkit.chain.spans import Span
from labkit.data.moments import Moment
from labkit.data.video.frames import FrameCache
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


def tokenizer() -> Any:
    """A byte-level BPE with Qwen's special tokens and a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(list(SENTENCES) * 20, trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<|endoftext|>", eos_token="<|im_end|>")
    made.padding_side = "left"
    made.chat_template = TEMPLATE
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

    def token(text: str) -> int:
        return int(tok.convert_tokens_to_ids(text))

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
    vision = {"depth": vision_depth, "num_heads": 2, "spatial_merge_size": 2, "temporal_patch_size": 2}
    if family == "qwen2_vl":
        vision |= {"patch_size": 14, "embed_dim": hidden // 2, "mlp_ratio": 2, "hidden_size": hidden}
    else:
        vision |= {"hidden_size": hidden // 2, "intermediate_size": hidden, "out_hidden_size": hidden}
    if family == "qwen2_5_vl":
        vision |= {
            "patch_size": 14, "window_size": 112, "fullatt_block_indexes": [vision_depth - 1], "tokens_per_second": 2
        }  # fmt: skip
    if family == "qwen3_vl":
        vision |= {"patch_size": 16, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, vision_depth - 1]}
        text["head_dim"] = 2 * hidden // heads  # as in the published 4B, heads are wider than their share of the model
        text["rope_parameters"]["mrope_section"] = [half, half // 2, half // 2]
    model_class = getattr(transformers, FAMILIES[family].model_class)
    config = model_class.config_class(
        text_config=text,
        vision_config=vision,
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
    )
    torch.manual_seed(seed)
    made = model_class(config)
    with torch.no_grad():  # transformers' small initial weights let neither video nor position reach the output
        made.model.language_model.embed_tokens.weight.normal_(0, 1)
        made.lm_head.weight.normal_(0, spread)
        for name, weight in made.model.language_model.layers.named_parameters():
            if weight.dim() > 1:
                weight.normal_(0, (2 if "q_proj" in name or "k_proj" in name else 1) * weight.shape[1] ** -0.5)
        for name, weight in made.model.visual.named_parameters():
            if "merger" in name and weight.dim() > 1:
                weight.normal_(0, 1.5 * weight.shape[1] ** -0.5)
    made.generation_config.eos_token_id = tok.eos_token_id
    made.generation_config.pad_token_id = tok.pad_token_id
    made.model.visual.requires_grad_(False)
    return made.eval()


def policy(**shape: Any) -> Policy:
    tok = tokenizer()
    return Policy(model(tok, **shape), tok, "tiny")


def source(asked: Policy, on: list[Moment], folder: Path, fps: float = 1.0) -> PromptSource:
    side = 4 * asked.base.config.vision_config.patch_size  # four tokens a frame
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
