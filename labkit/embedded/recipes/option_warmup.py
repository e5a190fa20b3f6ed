"""Option warm-up: an option's letter for what a thing does, over and over and without a video.

A training target shows the way from an action to its option's letter once in fifty words, too seldom for so small a model to
find it in minutes. Short warm-up texts are nothing else: actions of a question's options, each followed by its letter. Long ones
put the words between that stand there in a target.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from labkit.chain.anchors import option_letter
from labkit.embedded.clips import ACTIONS, COLORS, SHAPES
from labkit.embedded.model import build_tokenizer, embedding_rows
from labkit.embedded.recipes.shared import LayerOutput
from labkit.embedded.second_edition import OPTIONS, SECONDS
from labkit.policy.prompts import one_line

if TYPE_CHECKING:
    import torch

GQA_WORDS = ("<option>", "</option>", "what", "do", "a", "b", "c", "d")
"""What questions with options add to the vocabulary, behind all other words."""
SHORT, LONG = 6, 3
"""Actions that a warm-up text names, some of them twice."""


def draw_warmup(rng: np.random.Generator, long: bool = False) -> tuple[str, str]:
    """A question with options, and a text that answers it.

    >>> query, text = draw_warmup(np.random.default_rng(0))
    >>> query
    'what does the white triangle do? A bounce B appear C grow D blink'
    >>> text[:57]
    'bounces <option> a </option> bounces <option> a </option>'
    """
    name = f"the {rng.choice(list(COLORS))} {rng.choice(SHAPES)}"
    actions = [str(action) for action in rng.permutation(list(ACTIONS))[:OPTIONS]]
    query = one_line(f"what does {name} do?", [ACTIONS[action][0] for action in actions])
    answers = []
    for number in rng.integers(0, OPTIONS, LONG if long else SHORT):
        words = actions[number]
        if long:
            start, end = sorted(rng.choice(2 * SECONDS + 1, 2, replace=False) / 2)
            opening = (f"look at {name}. it {words} late.", f"{name} {words} early.")[int(rng.integers(0, 2))]
            words = f"<think> {opening} </think> <answer> {start:.1f} to {end:.1f} </answer>"
        answers.append(f"{words} <option> {option_letter(int(number)).lower()} </option>")
    return query, " ".join(answers)


def letters(tokenizer: Any) -> torch.Tensor:
    """Token ids of the options' letters, in order."""
    import torch

    return torch.tensor(tokenizer.convert_tokens_to_ids([option_letter(number).lower() for number in range(OPTIONS)]))


def add_option_words(model: Any, known_words: Sequence[str] = (), seed: int = 0) -> Any:
    """Give a model rows for `GQA_WORDS` behind the `known_words` that its tokenizer was built with, in place; return the tokenizer.

    New rows are drawn wider than the old ones, so that the words are told apart from the first step on.
    """
    import torch

    tokenizer = build_tokenizer((*known_words, *GQA_WORDS))
    known = len(build_tokenizer(known_words))
    if model.config.text_config.vocab_size < len(tokenizer):
        model.resize_token_embeddings(embedding_rows(tokenizer), mean_resizing=False)
    table = model.model.language_model.embed_tokens.weight
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        noise = torch.randn(len(table) - known, table.shape[1], generator=generator)
        table[known:] = 1.5 * table[:known].std() * noise
    return tokenizer


class OptionWarmup:
    """The loss of the warm-up, and two auxiliary heads on its first layer, which are thrown away.

    One head says which letter an option's word has, the other which action a word means, in whatever form. Without them
    480 steps of 24 texts left the model at chance; with the first alone it was a lottery; with both it chose 89 % right
    after 500.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        """Hooks the model's first layer until it is closed."""
        import torch

        self._model, self._tokenizer, width = model, tokenizer, model.config.text_config.hidden_size
        self._letter, self._action = torch.nn.Linear(width, OPTIONS), torch.nn.Linear(width, len(ACTIONS))
        self._letters = letters(tokenizer)
        self._meaning = torch.full((len(tokenizer),), -100)
        for number, (verb, (word, _)) in enumerate(ACTIONS.items()):
            self._meaning[tokenizer.convert_tokens_to_ids([verb, word])] = number
        self._first = LayerOutput(model, 0)

    @property
    def weights(self) -> list[torch.nn.Parameter]:
        """The heads' own, to be trained beside the model's."""
        return [*self._letter.parameters(), *self._action.parameters()]

    def loss(self, texts: list[tuple[str, str]]) -> tuple[torch.Tensor, float]:
        """Cross-entropy of the letters, among letters alone, and of the heads; with the share of right letters."""
        import torch
        from torch.nn.functional import cross_entropy
        from torch.nn.utils.rnn import pad_sequence

        rows = []
        for query, answer in texts:
            messages = [{"role": "user", "content": query}]
            chat = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            rows.append(torch.tensor(self._tokenizer(f"{chat} {answer}", add_special_tokens=False)["input_ids"]))
        ids = pad_sequence(rows, batch_first=True, padding_value=self._tokenizer.pad_token_id)
        output = self._model.model(
            input_ids=ids, attention_mask=(ids != self._tokenizer.pad_token_id).long(),
            position_ids=torch.arange(ids.shape[1]).expand(3, *ids.shape), use_cache=False,
        ).last_hidden_state  # fmt: skip
        first, before, after = self._first.hidden, ids[:, :-1], ids[:, 1:]
        letter_next = (before == self._tokenizer.convert_tokens_to_ids("<option>")) & torch.isin(after, self._letters)
        action_next = torch.isin(before, self._letters) & (self._meaning[after] >= 0)
        right = torch.searchsorted(self._letters, after[letter_next])
        scores = self._model.lm_head(output[:, :-1][letter_next])[:, self._letters]
        loss = cross_entropy(scores, right)
        loss = loss + cross_entropy(
            self._letter(first[:, 1:][action_next]), torch.searchsorted(self._letters, before[action_next])
        )
        loss = loss + cross_entropy(self._action(first).flatten(0, 1), self._meaning[ids].flatten())
        return loss, (scores.argmax(-1) == right).float().mean().item()

    def train(
        self,
        weights: list[torch.nn.Parameter],
        steps: int,
        batch: int,
        rate: float,
        rng: np.random.Generator,
        report: Callable[[str], None],
    ) -> None:
        """Train `weights` on short warm-up texts alone, `batch` a step."""
        import torch

        optimizer = torch.optim.AdamW(weights, lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
        shares: list[float] = []
        for step in range(steps):
            loss, share = self.loss([draw_warmup(rng) for _ in range(batch)])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            shares.append(share)
            if step % 50 == 49 or step == steps - 1:
                report(f"warm-up {step + 1}: right letter {np.mean(shares[-50:]):.3f}")

    def close(self) -> None:
        """Remove the hook."""
        self._first.close()
