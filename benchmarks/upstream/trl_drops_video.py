"""TRL's GRPOTrainer generates with the video and computes the loss without it; nothing complains.

Needs torch, torchvision, transformers and trl; tiny random weights, no network. The exit code is 1 where the fault shows, 0 where it
does not, 2 where a package is missing.

    python benchmarks/upstream/trl_drops_video.py

One training step on a prompt with a video. What reaches the model is written down in its forward pass: the video while completions
are generated, and none in the pass whose log-probs the loss is made of, though the same prompt with the same placeholders goes in.
Then the log-probs of the same completions are computed both ways.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))


def main() -> int:
    """Train one step and print what the model was given."""
    try:
        import numpy as np
        import torch
        import torchvision  # noqa: F401
        import transformers
        import trl
        from datasets import Dataset
    except ImportError as error:
        print(f"{error.name} is missing: pip install torch torchvision transformers trl", file=sys.stderr)
        return 2
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor
    from trl import GRPOConfig, GRPOTrainer

    from tests import tiny

    tokenizer = tiny.tokenizer()
    model = tiny.model(tokenizer)
    size = {"shortest_edge": 56 * 56, "longest_edge": 56 * 56}
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=size), tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=size, cap_pixels_per_frame=False), chat_template=tokenizer.chat_template,
    )  # fmt: skip
    random = np.random.default_rng(0)
    video = {"type": "video", "video": random.integers(0, 256, (8, 3, 56, 56), dtype=np.uint8)}
    text = {"type": "text", "text": "When does the square reach the right border?"}
    prompt = [{"role": "user", "content": [video, text]}]
    data = Dataset.from_dict({"prompt": ["", ""]}).with_transform(
        lambda rows: {"prompt": [prompt for _ in rows["prompt"]]}
    )
    given: list[tuple[bool, dict[str, Any]]] = []

    def look(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids")
        if ids is not None and (ids == model.config.video_token_id).any():
            given.append((torch.is_grad_enabled(), kwargs))

    model.register_forward_pre_hook(look, with_kwargs=True)
    with tempfile.TemporaryDirectory() as folder:
        arguments = GRPOConfig(
            output_dir=folder, max_steps=1, per_device_train_batch_size=4, num_generations=2, max_completion_length=8, use_cpu=True,
            bf16=False, save_strategy="no", report_to=[], disable_tqdm=True, gradient_checkpointing=False,
            generation_kwargs={"suppress_tokens": [tokenizer.convert_tokens_to_ids(each) for each in tiny.SPECIALS]},
        )  # fmt: skip
        trainer = GRPOTrainer(
            model, [lambda completions, **_: [float(k) for k in range(len(completions))]], args=arguments, train_dataset=data,
            processing_class=processor,
        )  # fmt: skip
        trainer.train()
    generation = next(kwargs for gradient, kwargs in given if not gradient)
    loss = next(kwargs for gradient, kwargs in given if gradient)
    print(f"trl {trl.__version__}, transformers {transformers.__version__}")
    for name, kwargs in (("generation", generation), ("the loss", loss)):
        tokens = int((kwargs["input_ids"] == model.config.video_token_id).sum())
        print(
            f"{name}: {tokens} placeholders of the video's tokens, {'with' if _video(kwargs) else 'WITHOUT'} the video"
        )
    if _video(loss):
        return 0
    ids = loss["input_ids"]
    shown = processor.apply_chat_template(
        [prompt] * len(ids), tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt"
    )
    shown = {name: shown[name] for name in ("pixel_values_videos", "video_grid_thw", "second_per_grid_ts")}
    kinds = {"mm_token_type_ids": 2 * (ids == model.config.video_token_id).int()}
    scores = []
    for more in ({}, {**shown, **kinds}):
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=loss["attention_mask"], **more).logits[:, -9:-1]
        scores.append(logits.log_softmax(-1).gather(-1, ids[:, -8:, None]))
    print(f"log-probs of the same completions differ by up to {float((scores[0] - scores[1]).abs().max()):.2f} nats")
    return 1


def _video(kwargs: dict[str, Any]) -> bool:
    """Whether a forward pass is given a video: its pixels, or what the vision tower has made of them."""
    return kwargs.get("pixel_values_videos") is not None or bool((kwargs.get("mm_encoder_outputs") or {}).get("video"))


if __name__ == "__main__":
    sys.exit(main())
