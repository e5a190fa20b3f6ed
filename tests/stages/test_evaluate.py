import pytest

from labkit.chain.anchors import parse
from labkit.chain.metrics import answer_iou, chain_figures
from labkit.policy.generate import generate
from labkit.stages.evaluate import evaluate


@pytest.mark.parametrize("greedy", [True, False])
def test_predictions_depend_on_neither_batch_size_nor_order(policy, source, moments, greedy):
    def asked(on, batch_size):
        return evaluate(policy, source, on, greedy=greedy, max_new_tokens=24, batch_size=batch_size, seed=4)

    together, alone = asked(moments, 64), asked(moments, 1)
    assert together.predictions == alone.predictions
    assert repr(together.figures) == repr(alone.figures)  # some are NaN
    assert asked(moments[::-1], 5).predictions == together.predictions[::-1]
    assert [prediction.qid for prediction in together.predictions] == [moment.qid for moment in moments]


def test_another_seed_samples_other_chains(policy, source, moments):
    texts = [
        [p.text for p in evaluate(policy, source, moments, greedy=False, max_new_tokens=24, seed=seed).predictions]
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_figures_are_those_of_the_chains(policy, source, moments):
    found = evaluate(policy, source, moments, max_new_tokens=24)
    chains = [parse(prediction.text) for prediction in found.predictions]
    expected = chain_figures(chains, [m.windows for m in moments], [m.duration for m in moments])
    assert found.figures["miou"] == expected["miou"] > 0
    for prediction, chain, moment in zip(found.predictions, chains, moments, strict=True):
        assert prediction.answer == chain.answer
        assert prediction.iou == answer_iou(chain, moment.windows, moment.duration)


def test_a_chain_that_meets_the_token_limit_is_cut_off(policy, source, moments):
    found = evaluate(policy, source, moments, max_new_tokens=3)
    assert {prediction.status for prediction in found.predictions} == {"cut_off"}
    assert found.figures["status_cut_off"] == 1.0 and found.figures["miou"] == 0.0


def test_progress_is_told_after_each_batch(policy, source, moments):
    heard = []
    evaluate(policy, source, moments, max_new_tokens=2, batch_size=5, on_batch=heard.append)
    assert heard[:2] == [5, 10] and heard[-1] == len(moments)


def test_greedy_evaluation_is_plain_greedy_decoding(policy, source, moments):
    (prediction,) = evaluate(policy, source, moments[:1], max_new_tokens=24).predictions
    (completion,) = generate(policy, [source[moments[0].qid]], max_new_tokens=24, greedy=True)
    assert prediction.text == completion.text
