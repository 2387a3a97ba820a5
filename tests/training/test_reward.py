"""Reward models: what the scores explain, how well they do, and models that come from elsewhere."""

import itertools
import json
import math
import shutil
import statistics

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from data.formats import parse_ranking, read_rankings, write_rows
from data.preferences import comparisons
from data.records import InputError
from tests.training.conftest import last_json
from training import losses
from training.__main__ import main
from training.batches import encode_rankings
from training.config import RewardConfig
from training.evaluate import best_of, best_of_kl, best_of_metrics
from training.packs import Group, pack
from training.reward import PreferenceLikelihood, preference_loss, reward_metrics, terciles
from training.reward_model import Classifier, in_words_of, load_reward_model, new_head
from training.run_folder import read_manifest, read_metrics

SCORE = torch.tensor([0.3, -1.2, 2.0, 0.5, 0.9], dtype=torch.float64, requires_grad=True)


def group(ranks, weight=1.0, margin=0.0, lengths=None):
    """A ranking as a group; its responses have as many tokens as `lengths` says."""
    texts = [f"answer {k}" for k in range(len(ranks))]
    row = {"prompt": "Q", "completions": texts, "ranks": list(ranks), "weight": weight, "margin": margin}
    pairs = comparisons(parse_ranking(row))
    return Group([1], [[5] * n for n in lengths or [3] * len(ranks)], comparisons=pairs, weight=weight)


@pytest.fixture
def command(command):
    """Run a command in fp32; returns the object it prints last."""
    return lambda *arguments: last_json(command(*arguments, "--dtype", "fp32", "--num-threads", 1))


# -- the loss of rankings -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"ties": "ignore"},
        {"ties": "rao-kupper", "tie_threshold": 0.8},
        {"ties": "davidson", "tie_prevalence": 0.4},
        {"use_margin": True, "label_smoothing": 0.1},
        {"center_coefficient": 0.05, "ties": "davidson"},
    ],
)
def test_pair_loss_is_the_weighted_mean_over_each_rankings_comparisons(knobs):
    config = RewardConfig(**knobs)
    groups = [group([1, 2, 2], weight=2.0, margin=0.5), group([1, 1])]
    win, tie = {
        "rao-kupper": (lambda d: losses.rao_kupper_win(d, 0.8), lambda d: losses.rao_kupper_tie(d, 0.8)),
        "davidson": (
            lambda d: losses.davidson_win(d, config.tie_prevalence),
            lambda d: losses.davidson_tie(d, config.tie_prevalence),
        ),
    }.get(config.ties, (losses.bradley_terry, losses.half_win))
    expected, first, margin = 0.0, 0, 0.5 if config.use_margin else 0.0
    for g, found in zip(groups, ([(0, 1), (0, 2), (1, 2)], [(0, 1)]), strict=True):
        ranks = [1, 2, 2] if len(found) == 3 else [1, 1]
        kept = [(i, j) for i, j in found if config.ties != "ignore" or ranks[i] != ranks[j]]
        for i, j in kept:
            a, b = SCORE[first + i], SCORE[first + j]
            e = config.label_smoothing
            loss = tie(a - b) if ranks[i] == ranks[j] else (1 - e) * win(a - b - margin) + e * win(b - a - margin)
            expected = expected + g.weight / len(kept) * (loss + config.center_coefficient * (a + b) ** 2)
        first += len(ranks)
    torch.testing.assert_close(preference_loss(config, SCORE, groups), expected, rtol=1e-6, atol=0)
    assert torch.autograd.gradcheck(lambda s: preference_loss(config, s, groups), (SCORE,), rtol=1e-6, atol=1e-7)


def choices(score, ranks, ties):
    """Mean of -log P over the choices of a ranking, by Plackett-Luce; a tied one chooses among all tied and below."""
    found = []
    for i, rank in enumerate(ranks):
        others = [j for j, r in enumerate(ranks) if j != i and (r > rank or (ties and r == rank))]
        if others:
            strength = [math.exp(score[j]) for j in [i, *others]]
            found.append(-math.log(strength[0] / sum(strength)))
    return sum(found) / len(found) if found else 0.0


@pytest.mark.parametrize("ties", ["half", "ignore"])
def test_plackett_luce_is_the_weighted_mean_over_each_rankings_choices(ties):
    config, score = RewardConfig(loss="plackett-luce", ties=ties), SCORE.tolist()
    for ranks in itertools.product([1, 2, 3], repeat=3):
        groups = [group(ranks, weight=2.0), group([2, 1], weight=0.5)]
        expected = 2.0 * choices(score[:3], ranks, ties == "half") + 0.5 * choices(score[3:], [2, 1], True)
        assert float(preference_loss(config, SCORE.detach(), groups)) == pytest.approx(expected, rel=1e-6)
        assert torch.autograd.gradcheck(lambda s, g=groups: preference_loss(config, s, g), (SCORE,), rtol=1e-6)


@pytest.mark.parametrize("ties", ["half", "ignore"])
@pytest.mark.parametrize("ranks", [[1, 2], [2, 1], [1, 1]])
def test_plackett_luce_of_pairs_is_the_pairwise_loss(ranks, ties):
    found = [
        preference_loss(RewardConfig(loss=loss, ties=ties), SCORE[:2], [group(ranks)])
        for loss in ("plackett-luce", "bradley-terry")
    ]
    torch.testing.assert_close(found[0], found[1])


def test_without_ties_every_model_of_ties_tends_to_bradley_terry():
    groups = [group([1, 2, 3])]
    plain = preference_loss(RewardConfig(), SCORE[:3], groups)
    for knobs in ({"ties": "rao-kupper", "tie_threshold": 1e-3}, {"ties": "davidson", "tie_prevalence": 1e-3}):
        torch.testing.assert_close(preference_loss(RewardConfig(**knobs), SCORE[:3], groups), plain, rtol=2e-3, atol=0)
    torch.testing.assert_close(preference_loss(RewardConfig(ties="ignore"), SCORE[:3], groups), plain)


def test_unranked_completions_carry_no_information(base):
    row = {"prompt": "Q", "completions": ["a", "b c", "d"], "ranks": [2, None, 1]}
    short = {"prompt": "Q", "completions": ["a", "d"], "ranks": [2, 1]}
    one, two = (encode_rankings(base, [parse_ranking(r)], 200)[0] for r in (row, short))
    assert (one[0].responses, one[0].comparisons[0][:3]) == (two[0].responses, two[0].comparisons[0][:3])


def test_what_does_not_go_with_plackett_luce_is_said():
    for knobs, words in [
        ({"ties": "davidson"}, "choose half or ignore"),
        ({"use_margin": True}, "use_margin"),
        ({"label_smoothing": 0.1}, "label_smoothing"),
    ]:
        with pytest.raises(InputError, match=words):
            RewardConfig(loss="plackett-luce", **knobs)


# -- metrics --------------------------------------------------------------------------------------------------------


def test_metrics_of_a_known_case():
    # (lengths of preferred and other, scores, strength): right and longer, wrong and longer, right and shorter, a tie
    groups = [
        group([1, 2], margin=1.0, lengths=[9, 3]),
        group([1, 2], margin=2.0, lengths=[4, 3]),
        group([1, 2], margin=3.0, lengths=[2, 5]),
        group([1, 1], lengths=[2, 2]),
    ]
    found = [[2.0, 1.0], [0.0, 0.5], [1.0, -1.0], [0.2, 0.4]]
    metrics = reward_metrics(groups, found)
    d, longer = [1.0, -0.5, 2.0], [6.0, 1.0, -3.0]
    decided = [math.log1p(math.exp(-x)) for x in d]
    tie = 0.5 * math.log1p(math.exp(0.2)) + 0.5 * math.log1p(math.exp(-0.2))
    flat = torch.tensor([x for some in found for x in some])
    correlation = sum(a * b for a, b in zip(d, longer, strict=True)) / math.sqrt(
        sum(a * a for a in d) * sum(b * b for b in longer)
    )
    assert metrics == pytest.approx(
        {
            "loss": (sum(decided) + tie) / 4,
            "accuracy": 2 / 3,
            "nll": sum(decided) / 3,
            "ece": metrics["ece"],
            "margin": sum(d) / 3,
            "n": 3,
            "score/mean": float(flat.mean()),
            "score/std": float(flat.std()),
            "accuracy/chosen-longer": 0.5,
            "accuracy/chosen-shorter": 1.0,
            "accuracy/length-difference-low": 0.0,
            "accuracy/length-difference-middle": 1.0,
            "accuracy/length-difference-high": 1.0,
            "accuracy/strength-low": 1.0,
            "accuracy/strength-middle": 0.0,
            "accuracy/strength-high": 1.0,
            "length/longer-wins": 2 / 3,
            "length/longer-scored-higher": 1 / 3,
            "length/correlation": correlation,
        },
        abs=1e-6,
    )


def test_a_model_that_scores_length_is_seen_as_biased():
    groups = [group([1, 2], lengths=lengths) for lengths in ([2, 5], [7, 1], [3, 8], [4, 9])]
    metrics = reward_metrics(groups, [[float(len(ids)) for ids in g.responses] for g in groups])
    assert metrics["length/correlation"] == pytest.approx(1)
    assert (metrics["length/longer-scored-higher"], metrics["length/longer-wins"]) == (1.0, 0.25)
    assert (metrics["accuracy/chosen-longer"], metrics["accuracy/chosen-shorter"]) == (1.0, 0.0)


def test_the_loss_is_the_models_own_likelihood_and_nll_is_everybodys():
    groups, found = [group([1, 2, 2])], [[1.0, 0.0, -1.0]]
    configs = [RewardConfig(), RewardConfig(ties="davidson"), RewardConfig(loss="plackett-luce")]
    metrics = [reward_metrics(groups, found, config) for config in configs]
    assert len({round(m["loss"], 6) for m in metrics}) == 3
    assert len({m["nll"] for m in metrics}) == 1
    davidson = losses.davidson_win(torch.tensor([1.0, 2.0]), 1.0).sum() + losses.davidson_tie(torch.tensor(1.0), 1.0)
    assert metrics[1]["loss"] == pytest.approx(float(davidson) / 3, rel=1e-6)


def test_only_ties_have_a_loss_but_no_accuracy():
    metrics = reward_metrics([group([1, 1])], [[0.5, 0.1]])
    assert metrics["n"] == 0
    assert "accuracy" not in metrics
    assert metrics["loss"] > math.log(2)


def test_terciles_keep_equal_values_together():
    correct = torch.tensor([1.0, 0.0, 1.0, 0.0])
    assert terciles("a", torch.tensor([1.0, 1.0, 1.0, 1.0]), correct) == {}
    assert terciles("a", torch.tensor([1.0, 1.0, 1.0, 3.0]), correct) == pytest.approx({"a-low": 2 / 3, "a-high": 0.0})


# -- training and normalisation -------------------------------------------------------------------------------------


@pytest.fixture
def train(command, tiny_model, rankings_file):
    """Train a reward model by the real command; returns what it prints."""

    def run(*more):
        common = ["--base-model", tiny_model, "--data", rankings_file, "--output", "run"]
        return command("reward", *common, "--lora-rank", 4, "--learning-rate", "1e-2", *more)

    return run


@pytest.mark.parametrize("knobs", [["--loss", "plackett-luce"], ["--ties", "davidson"], ["--ties", "rao-kupper"]])
def test_every_loss_learns_the_order(train, tmp_path, knobs):
    result = train("--max-steps", 15, "--batch-size", 4, "--validation-fraction", 0.2, *knobs)
    rows = read_metrics(tmp_path / "run")
    assert result["eval/accuracy"] == 1.0
    assert result["eval/loss"] < 0.7 * rows[0]["eval/loss"]
    assert all(row["score/spread"] > 0 for row in rows[1:])


@pytest.mark.parametrize(("fraction", "samples"), [(0.2, "held-out"), (0, "training")])
def test_normalisation_says_which_samples_it_is_of(train, command, rankings_file, tmp_path, fraction, samples):
    result = train("--max-steps", 2, "--validation-fraction", fraction)
    stated = read_manifest(tmp_path / result["checkpoint"])["score_normalisation"]
    assert stated["samples"] == samples
    if samples == "held-out":
        assert stated["mean"] == pytest.approx(result["eval/score/mean"], abs=1e-6)
        assert stated["std"] == pytest.approx(result["eval/score/std"], abs=1e-6)
        return
    assert stated["n"] == 35, "twelve rankings of three, one left unranked"
    scoring = ["--checkpoint", result["checkpoint"], "--data", rankings_file, "--output", "s.jsonl"]
    command("score", *scoring)
    rows = list(map(json.loads, (tmp_path / "s.jsonl").open()))
    ranked = [s for row in rows for s, r in zip(row["scores"], row["ranks"], strict=True) if r is not None]
    assert stated["mean"] == pytest.approx(sum(ranked) / len(ranked), abs=1e-5)
    assert stated["std"] == pytest.approx(statistics.stdev(ranked), abs=1e-5)


# -- models from elsewhere ------------------------------------------------------------------------------------------


@pytest.fixture
def classifier(tiny_model, tmp_path):
    """A tiny random sequence classifier with one label and the real tokenizer, whose pad token is the end token."""
    config = LlamaConfig.from_pretrained(tiny_model, num_labels=1)
    torch.manual_seed(3)
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "classifier")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "classifier")
    return tmp_path / "classifier"


def reference_scores(folder, rows):
    """Each sequence alone and unpadded: the head on the hidden state of its end token."""
    model = LlamaForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    for row in rows:
        turns = [{"role": "user", "content": row["prompt"]}]
        prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        for text in row["completions"]:
            ids = tokenizer(prompt + text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
            with torch.no_grad():
                found.append(float(model.score(model.model(torch.tensor([ids])).last_hidden_state[0, -1])))
    return found


ROWS = [
    {"prompt": "Why?", "completions": ["Because.", "It is a long story, and I will tell it another day.", "No"]},
    {"prompt": "What is the largest planet of all?", "completions": ["Jupiter", "Jupiter, by far."]},
]


def test_a_classifier_scores_at_the_end_token_however_it_is_padded(classifier, command, tmp_path):
    write_rows(tmp_path / "in.jsonl", ROWS)
    command("score", "--checkpoint", classifier, "--data", "in.jsonl", "--output", "out.jsonl")
    found = [s for line in (tmp_path / "out.jsonl").open() for s in json.loads(line)["scores"]]
    assert found == pytest.approx(reference_scores(classifier, ROWS), abs=1e-5)
    model = Classifier(str(classifier), "fp32", "cpu")
    rankings = [parse_ranking(row | {"ranks": [1, 2, 3][: len(row["completions"])]}) for row in ROWS]
    groups, _ = encode_rankings(model.reader, rankings, 200)
    alone = [s for values in model.score(groups, tokens_per_forward=1) for s in values]
    assert alone == pytest.approx(found, abs=1e-5)


def test_evaluate_and_ppo_take_a_classifier(classifier, command, tiny_model, rankings_file, tmp_path):
    judged = command("evaluate", "--checkpoint", classifier, "--data", rankings_file)
    assert {"accuracy", "nll", "ece", "n", "loss", "length/correlation"} <= set(judged)
    common = ["--base-model", tiny_model, "--data", rankings_file, "--output", "ppo"]
    more = ["--max-new-tokens", 6, "--batch-size", 4, "--max-steps", 2, "--lora-rank", 4]
    command("ppo", *common, *more, "--reward-model", classifier)
    samples = [json.loads(line) for line in (tmp_path / "ppo" / "samples.jsonl").open()]
    assert len({s["score"] for s in samples}) > 1
    said = [s for s in samples if s["completion"].strip()]
    rows = [{"prompt": s["prompt"], "completions": [s["completion"]], "finish_reasons": ["length"]} for s in said]
    write_rows(tmp_path / "samples.jsonl", rows)
    command("score", "--checkpoint", classifier, "--data", "samples.jsonl", "--output", "a.jsonl")
    again = [json.loads(line)["scores"][0] for line in (tmp_path / "a.jsonl").open()]
    assert again == pytest.approx([s["score"] for s in said], abs=1e-4)


def test_our_merged_reward_model_is_a_classifier_with_the_same_scores(train, command, rankings_file, tmp_path):
    checkpoint = train("--max-steps", 5)["checkpoint"]
    command("merge", "--checkpoint", checkpoint, "--output", "merged")
    found = []
    for name in (checkpoint, "merged"):
        command("score", "--checkpoint", name, "--data", rankings_file, "--output", "s.jsonl")
        found.append([s for line in (tmp_path / "s.jsonl").open() for s in json.loads(line)["scores"]])
    assert found[1] == pytest.approx(found[0], abs=1e-4)
    assert max(found[0]) - min(found[0]) > 0.1


def test_samples_are_read_again_in_the_classifiers_own_words(base, classifier):
    model = load_reward_model(base, str(classifier))
    assert isinstance(model, Classifier)
    model.reader.tokenizer.chat_template = "{% for m in messages %}<{{ m['content'] }}>{% endfor %}"
    conversations = [({"role": "user", "content": text},) for text in ("one", "two")]
    end = base.tokenizer.eos_token_id
    sampled = [Group([9, 9], [[*base.tokenizer("Hello.")["input_ids"], end], base.tokenizer("Hel")["input_ids"]])]
    sampled[0].index = 1
    (read,) = in_words_of(model, base, sampled, conversations)
    assert model.reader.tokenizer.decode(read.prompt) == "<two>"
    assert [model.reader.tokenizer.decode(ids) for ids in read.responses] == ["Hello.<|im_end|>", "Hel"]


def test_what_is_no_reward_model_is_said_in_one_line(classifier, tiny_model, tmp_path):
    LlamaForSequenceClassification(LlamaConfig.from_pretrained(tiny_model, num_labels=3)).save_pretrained(
        tmp_path / "three"
    )
    headless = LlamaConfig.from_pretrained(tiny_model, num_labels=1)
    AutoModelForCausalLM.from_config(headless).save_pretrained(tmp_path / "headless")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "headless")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    for name, words in [
        ("three", "has 3 labels"),
        ("headless", "no trained head"),
        ("adapter", "merge it"),
        ("empty", "cannot be loaded"),
        ("absent", "no such folder"),
    ]:
        with pytest.raises(InputError, match=words) as found:
            Classifier(str(tmp_path / name), "fp32", "cpu")
        assert "\n" not in str(found.value)


# -- best of n ------------------------------------------------------------------------------------------------------


def test_best_of_is_the_mean_over_all_subsets():
    scores = [0.3, -1.0, 2.5, 2.5, 0.1]
    for n in range(1, 6):
        subsets = list(itertools.combinations(scores, n))
        assert best_of(scores, n) == pytest.approx(sum(map(max, subsets)) / len(subsets), rel=1e-12)


def test_best_of_kl_is_that_of_the_best_among_uniform_draws():
    # the best of n draws of a continuous score has density n u^(n-1) in the quantile u: KL = ∫ p log p
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    for n in (1, 2, 5, 16):
        density = n * u ** (n - 1)
        assert best_of_kl(n) == pytest.approx(float((density * density.log()).mean()), abs=1e-6)


def test_best_of_metrics_take_powers_of_two_and_the_whole():
    metrics = best_of_metrics([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [0.0] * 6], 6)
    assert [name for name in metrics if name.endswith("score")] == [f"best-of-{n}/score" for n in (1, 2, 4, 6)]
    assert metrics["best-of-6/score"] == 3.0
    assert metrics["best-of-1/score"] == pytest.approx(1.75)
    assert metrics["best-of-1/kl"] == 0


def test_evaluate_reports_best_of_n(command, classifier, tiny_model, rankings_file):
    asked = ["--base-model", tiny_model, "--data", rankings_file, "--best-of", 4, "--max-new-tokens", 4]
    result = command("evaluate", *asked, "--reward-model", classifier)
    assert result["n"] == 48
    assert result["best-of-1/score"] == pytest.approx(result["score"], abs=1e-6)
    assert result["best-of-1/score"] < result["best-of-2/score"] < result["best-of-4/score"]
    assert result["best-of-4/kl"] == pytest.approx(math.log(4) - 0.75)


def test_best_of_n_needs_a_reward_model(tiny_model, rankings_file, capsys):
    asked = ["evaluate", "--base-model", tiny_model, "--data", rankings_file, "--best-of", 4]
    assert main(list(map(str, asked))) == 2
    assert "--reward-model" in capsys.readouterr().err.splitlines()[-1]


def test_a_head_alone_learns_from_ends_that_are_read_once(base, rankings_file, monkeypatch):
    """The loss and the head's gradient are those of reading the trunk anew; each group is read once."""
    base.new_adapter("policy", RewardConfig(lora_rank=4))
    groups, _ = encode_rankings(base, read_rankings(rankings_file), 512)
    found, read = [], base.read
    for kind in ("adapter", "head"):
        head = new_head(base.hidden_size, 1)
        objective = PreferenceLikelihood(base, head, RewardConfig(train=kind))
        times = []
        monkeypatch.setattr(base, "read", lambda pack, times=times: times.append(pack) or read(pack))
        for _ in range(2):
            head.weight.grad = None
            loss, _ = objective.loss(pack(groups[:5], base.device))
            loss.backward()
        found.append((loss.detach(), head.weight.grad, objective.scores(groups[:5])))
        assert len(times) == {"adapter": 3, "head": 5}[kind]
    torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=1e-6)


def test_a_run_of_the_head_alone_resumes_exactly_and_leaves_the_adapter_as_it_was(command, arguments, tmp_path):
    more = ("--train", "head", "--max-steps", 6, "--save-every", 3)
    ends = []
    for name in ("straight", "cut"):
        command(*arguments("reward", name, *more))
        if name == "cut":
            shutil.rmtree(tmp_path / name / "checkpoints" / "step-000006")
            (tmp_path / name / "state" / "step-000006").unlink()
            command(*arguments("reward", name, *more, "--resume"))
            assert "resuming after step 3" in (tmp_path / name / "log.txt").read_text()
        checkpoint = tmp_path / name / "checkpoints" / "step-000006"
        ends.append(load_file(checkpoint / "adapter_model.safetensors"))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert not any(weight.any() for name, weight in ends[0].items() if "lora_B" in name)
    start = new_head(ends[0]["base_model.model.score.weight"].shape[1], 0).weight
    assert (ends[0]["base_model.model.score.weight"] - start).abs().max() > 1e-3
