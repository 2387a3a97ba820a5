"""The command line: python -m training {sft,reward,dpo,ppo,generate,score,evaluate,curve,merge}.

The last line of stdout is one JSON object; progress goes to stderr; wrong input is one line and exit status 2.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.records import InputError
from training.config import DEFAULT_MODEL, METHODS
from training.knobs import Knob, from_dict, knobs

if TYPE_CHECKING:
    from torch import Tensor

    from training.reward_model import RewardModel

RANGES = (
    ("num_completions", 1, 1000),
    ("best_of", 1, 1000),
    ("heads", 0, 1000),
    ("most", 1, 2**31),
    ("max_new_tokens", 1, 2**20),
    ("temperature", 0, 100),
    ("top_p", 1e-6, 1),
    ("batch_size", 1, 2**20),
    ("max_length", 1, 2**31),
    ("seed", 0, 2**31 - 1),
    ("num_threads", 0, 4096),
)
"""What the flags of generate, score and evaluate may hold."""

FEWEST_HEADS = 3
"""Of a committee beside the reward model's own head."""

REWARD_MODELS = "a checkpoint, or a folder or hub name of a sequence classifier with one label"


def parser() -> argparse.ArgumentParser:
    """The whole command line; the methods' flags are made from their config classes."""
    top = argparse.ArgumentParser(prog="python -m training", description="Train and use preference models.")
    commands = top.add_subparsers(dest="command", required=True, metavar="command")
    for method, config_class in METHODS.items():
        text = (config_class.__doc__ or "").strip()
        usage = f"python -m training {method} --data FILE --output RUN [--base-model MODEL] [any knob below]"
        sub = commands.add_parser(method, usage=usage, help=text.split(":")[0], description=text)
        sub.add_argument("--config", help="A JSON file of settings; flags override it.")
        sub.add_argument("--resume", action="store_true", help="Continue the run in --output from its last checkpoint.")
        sections: dict[str, Any] = {}
        for item in knobs(config_class):
            group = sections.setdefault(item.section, None) or sub.add_argument_group(item.section)
            sections[item.section] = group
            _add_flag(group, item)

    sub = commands.add_parser("generate", help="Sample completions for a file of prompts")
    _add_common(sub)
    sub.add_argument("--checkpoint", help="Policy checkpoint; without it the base is sampled.")
    sub.add_argument("--prompts", required=True, help="File of rows with a prompt.")
    sub.add_argument("--output", required=True, help="File to write (.jsonl or .jsonl.gz).")
    sub.add_argument("--num-completions", type=int, default=4, help="Completions per prompt (default 4).")
    sub.add_argument("--max-new-tokens", type=int, default=256, help="Longest completion, in tokens (default 256).")
    sub.add_argument(
        "--temperature", type=float, nargs="+", default=[0.7], help="One number, or one per completion (default 0.7)."
    )
    sub.add_argument(
        "--top-p", type=float, default=1.0, help="Sample from the likeliest tokens of this total (1: all)."
    )
    sub.add_argument("--batch-size", type=int, default=32, help="Completions sampled at once (default 32).")
    sub.add_argument(
        "--server-url", help="Sample from an OpenAI-compatible server (vLLM) at this URL, which may load --checkpoint."
    )
    sub.add_argument("--server-model", help="Which of the server's models (default: its only one).")

    sub = commands.add_parser("score", help="Score completions with a reward model")
    _add_common(sub)
    sub.add_argument("--checkpoint", required=True, help=f"A reward model: {REWARD_MODELS}.")
    sub.add_argument("--data", required=True, help="Rows with completion, completions, or chosen and rejected.")
    sub.add_argument("--output", required=True, help="File to write; the rows with score or scores added.")
    sub.add_argument(
        "--heads",
        type=int,
        default=0,
        help="Add ensemble_scores, by so many heads fitted to resamples of --head-data (at least 3; 0: none).",
    )
    sub.add_argument("--head-data", help="Preferences, such as the model was trained on.")
    sub.add_argument("--skip-errors", action="store_true", help="Give a row that cannot be scored an error, and go on.")

    sub = commands.add_parser("evaluate", help="Judge a reward model on preferences, or a policy on prompts")
    _add_common(sub)
    sub.add_argument("--checkpoint", help=f"A policy, or a reward model: {REWARD_MODELS}; without it the base policy.")
    sub.add_argument("--data", required=True, help="Preferences for a reward model, prompts for a policy.")
    sub.add_argument("--reward-model", help=f"What scores the policy's samples: {REWARD_MODELS}.")
    sub.add_argument(
        "--best-of", type=int, default=1,
        help="Samples per prompt; also the score of the best of 2, 4, ... of them, and the KL that choosing implies.",
    )  # fmt: skip
    sub.add_argument("--max-length", type=int, default=1024, help="Longest prompt plus completion (default 1024).")
    sub.add_argument("--max-new-tokens", type=int, default=128, help="Longest sampled answer (default 128).")

    sub = commands.add_parser("curve", help="Say what more labels would buy: accuracy by the share of the labels used")
    _add_common(sub)
    sub.add_argument("--data", required=True, help="Preferences.")
    sub.add_argument("--max-length", type=int, default=1024, help="Longest prompt plus completion (default 1024).")
    sub.add_argument("--most", type=int, default=1000, help="Rankings read at most, drawn at random (default 1000).")

    sub = commands.add_parser("merge", help="Write base and adapter as one plain model folder")
    _add_common(sub)
    sub.add_argument("--checkpoint", required=True, help="Policy or reward model checkpoint.")
    sub.add_argument("--output", required=True, help="Folder to write.")
    return top


def _add_common(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--base-model", help=f"Base model (default: the checkpoint's, or {DEFAULT_MODEL}).")
    sub.add_argument("--seed", type=int, default=0, help="Everything random follows from it (default 0).")
    sub.add_argument("--dtype", choices=("auto", "fp32", "bf16"), default="auto", help="Precision of the base.")
    sub.add_argument("--device", default="auto", help="Where to compute (default auto).")
    sub.add_argument("--num-threads", type=int, default=0, help="Processor threads (0: one a core).")


def _add_flag(group: Any, item: Knob) -> None:
    flag = "--" + item.name.replace("_", "-")
    default = "" if item.default in (None, "") else f" (default {item.default})"
    text = (item.help + default).replace("%", "%%")
    if item.type is bool:
        group.add_argument(flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
    else:
        kind = float if item.type is int else item.type  # a whole number is checked with the range, by the config
        name = None if item.choices else item.type.__name__.upper()
        group.add_argument(flag, type=kind, choices=item.choices, default=argparse.SUPPRESS, help=text, metavar=name)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    given = vars(parser().parse_args(arguments))
    command = given.pop("command")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        result = _train(command, given) if command in METHODS else _use(command, argparse.Namespace(**given))
    except InputError as error:
        return _fail(str(error))
    except (MemoryError, RuntimeError) as error:
        if "memory" not in str(error).lower() and not isinstance(error, MemoryError):
            raise
        return _fail("out of memory; lower --tokens-per-forward or --max-length")
    if _rank() == 0:
        print(json.dumps(result))
    return 0


def _rank() -> int:
    """The number that a launcher gave this process; asked of the environment, because nothing may be up yet."""
    return int(os.environ.get("RANK", "0"))


def _fail(text: str) -> int:
    """One line for a person; returns the exit status."""
    print(f"{f'process {_rank()}: ' if _rank() else ''}error: {text}", file=sys.stderr, flush=True)
    return 2


def _train(method: str, given: dict[str, Any]) -> dict[str, Any]:
    config_file, resume = given.pop("config"), given.pop("resume")
    values: dict[str, Any] = {}
    if resume and not config_file and (Path(given.get("output", "")) / "config.json").is_file():
        config_file = Path(given["output"]) / "config.json"  # a run goes on with its own settings
    if config_file:
        try:
            values = json.loads(Path(config_file).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{config_file}: cannot be read as JSON ({error})") from None
        if not isinstance(values, dict):
            raise InputError(f"{config_file}: must hold one JSON object")
    config = from_dict(METHODS[method], values | given)
    if config.from_checkpoint:
        _refuse_other_lora(config.from_checkpoint, given)
    _quiet()
    result = importlib.import_module(f"training.{method}").train(config, resume)
    importlib.import_module("training.processes").leave()
    return result


def _refuse_other_lora(checkpoint: str, given: dict[str, Any]) -> None:
    """Flags that contradict the adapter which is continued would do nothing."""
    from training.run_folder import continued_lora

    for name, value in continued_lora(checkpoint).items():
        asked = given.get(name, value)
        if name == "lora_targets":
            asked, value = ({word.strip() for word in str(words).split(",")} for words in (asked, value))
        if asked != value:
            text = ",".join(sorted(value)) if isinstance(value, set) else f"{value:g}"
            raise InputError(
                f"--{name.replace('_', '-')} does not go with --from-checkpoint: the adapter that is continued has "
                f"{text}; leave the flag out, or start a new adapter on a merged model (python -m training merge)"
            )


def _use(command: str, given: argparse.Namespace) -> dict[str, Any]:
    for name, low, high in RANGES:
        values = getattr(given, name, None)
        for value in values if isinstance(values, list) else [values]:
            if value is not None and not low <= value <= high:
                raise InputError(f"--{name.replace('_', '-')} must be from {low:g} to {high:g}, not {value:g}")
    if command in ("generate", "score") and Path(given.output).is_dir():
        raise InputError(f"{given.output}: is a folder; name a file to write")
    if command == "generate" and given.server_model and (given.checkpoint or not given.server_url):
        raise InputError("--server-model goes with --server-url, and without --checkpoint")
    if command == "score" and bool(given.heads) != bool(given.head_data):
        raise InputError("--heads and --head-data go together: how many heads, and what they are fitted to")
    if command == "score" and 0 < given.heads < FEWEST_HEADS:
        raise InputError(f"--heads must be 0 or at least {FEWEST_HEADS}")
    if command == "evaluate" and given.best_of > 1 and not given.reward_model:
        raise InputError("--best-of needs --reward-model, which says what is best")
    _quiet()
    from training.models import load_base
    from training.processes import set_threads
    from training.reward_model import Classifier, Score, is_checkpoint
    from training.run_folder import read_manifest

    set_threads(given.num_threads)
    if command in ("score", "evaluate") and given.checkpoint and not is_checkpoint(given.checkpoint):
        return _judge(command, Classifier(given.checkpoint, given.dtype, given.device), given)
    checkpoint = getattr(given, "checkpoint", None)
    manifest = read_manifest(checkpoint) if checkpoint else None
    name = given.base_model or (manifest["base_model"]["name"] if manifest else DEFAULT_MODEL)
    base = load_base(name, given.dtype, given.device)
    if command == "generate":
        from training.generate import generate

        def run(adapter: str | None, server: Any = None) -> dict[str, Any]:
            return generate(
                base, adapter, given.prompts, given.output, num_completions=given.num_completions,
                max_new_tokens=given.max_new_tokens, temperature=given.temperature, top_p=given.top_p,
                seed=given.seed, batch_size=given.batch_size, server=server,
            )  # fmt: skip

        if not given.server_url:
            return run(base.attach(given.checkpoint) if given.checkpoint else None)
        from training.server import Server

        with Server(given.server_url) as server:
            if not given.checkpoint:
                return run(given.server_model or server.only_model(), server)
            with server.adapter(given.checkpoint) as name:
                return run(name, server)
    if command == "score" or (command == "evaluate" and manifest and manifest["kind"] == "reward"):
        return _judge(command, Score(base, given.checkpoint), given)
    if command == "curve":
        from training.learning_curve import learning_curve

        return learning_curve(base, given.data, given.max_length, given.most, given.seed)
    if command == "merge":
        from training.merge import merge

        return merge(base, given.checkpoint, given.output)
    from training.evaluate import evaluate_policy_file

    return evaluate_policy_file(
        base, given.checkpoint, given.data, given.reward_model, given.max_new_tokens, given.seed, given.best_of
    )


def _judge(command: str, model: RewardModel, given: argparse.Namespace) -> dict[str, Any]:
    """What a reward model is asked for: scores of a file's completions, or how well it agrees with people."""
    if command == "score":
        from training.generate import score_file

        return score_file(model, given.data, given.output, _heads(model, given), given.skip_errors)
    from training.evaluate import evaluate_reward, trained_with

    return evaluate_reward(model, given.data, given.max_length, trained_with(given.checkpoint))


def _heads(model: RewardModel, given: argparse.Namespace) -> Tensor | None:
    """The weights of the committee that was asked for."""
    if not given.heads:
        return None
    from training.ensemble import committee
    from training.reward_model import Score

    if not isinstance(model, Score):
        raise InputError("--heads needs a reward model that was trained here; leave it out for other classifiers")
    return committee(model, given.checkpoint, given.head_data, given.heads, given.seed)


def _quiet() -> None:
    """Progress is ours to show; the libraries' bars and advice would bury it."""
    import warnings

    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module="peft")


if __name__ == "__main__":
    sys.exit(main())
