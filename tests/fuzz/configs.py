"""config.json of models that are none."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from fuzz.case import ENDS, OK, Case, special

CONFIG = {
    "model_type": "qwen2",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 32,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e4,
}
RUN_CONFIG = ["--ctx=16", "--steps=2", "--warmup=0", "--backend=native", "--mode=native", "--fusion=block", "--l2=warm"]


def config_cases() -> Iterator[Case]:
    """config.json with wrong fields, or none."""

    def with_config(content: object) -> Callable[[Path], list[str]]:
        def make(w: Path) -> list[str]:
            data = (
                content
                if isinstance(content, bytes)
                else (content if isinstance(content, str) else json.dumps(content)).encode()
            )
            (w / "config.json").write_bytes(data)
            return [*RUN_CONFIG, f"--config={w}/config.json"]

        return make

    text = json.dumps(CONFIG)
    for name, content in {
        "empty": "",
        "cut": text[:40],
        "a list": "[]",
        "null": "null",
        "binary": bytes(range(256)),
        "deep": "[" * 200_000,
        "5000 digits": text.replace("64", "6" * 5000),
        "utf-16": text.encode("utf-16"),
    }.items():
        yield Case(f"config/{name}", "layer", with_config(content), may_leave="config")
    for key, values in {
        "model_type": ["gpt2", None, 7, []],
        "hidden_size": [0, -64, "64", 64.0, 10**30, True, 63, None],
        "intermediate_size": [0, 2**31, 10**19],
        "num_attention_heads": [0, 3, 10**9],
        "num_key_value_heads": [3, 0, 8],
        "num_hidden_layers": [0, "2"],
        "vocab_size": [-1],
        "max_position_embeddings": [8, 0, "x"],
        "rms_norm_eps": [0, -1, 2, 1e300, "x"],
        "rope_theta": [0, -1, 10**400, "x"],
        "head_dim": [7, 264, 0, "8", 2**40],
        "hidden_act": ["gelu", 7],
        "rope_scaling": [7, [1], "x"],
        "rope_parameters": [{"rope_type": "yarn"}, {"rope_type": "llama3"}, {"rope_type": []}],
        "tie_word_embeddings": ["x", 7, []],
    }.items():
        for value in values:
            shown = json.dumps(value)
            shown = shown if len(shown) < 40 else f"{shown[:4]}...{len(shown)}"
            yield Case(f"config/{key}={shown}", "layer", with_config(CONFIG | {key: value}), may_leave="config")
    # What a family has not or has switched off changes nothing; the same where it does is refused.
    switched_on = {"use_sliding_window": True, "max_window_layers": 1}
    for key, values, where, on in (
        ("attention_bias", [True], "llama", {"model_type": "llama"}),
        ("sliding_window", [7, "x"], "switched on", switched_on),
        ("sliding_window", [7, "x"], "mistral", {"model_type": "mistral"}),
    ):
        for value in values:
            named = f"config/{key}={json.dumps(value)}"
            if where != "mistral":
                yield Case(named, "layer", with_config(CONFIG | {key: value}), OK, may_leave="config")
            yield Case(f"{named}, {where}", "layer", with_config(CONFIG | on | {key: value}), may_leave="config")
    for key, value in {"_name_or_path": "\ud800", "name of control characters": "\x1b[2J"}.items():
        yield Case(f"config/{key}", "layer", with_config(CONFIG | {"_name_or_path": value}), ENDS, may_leave="config")
    yield Case(
        "config/vocab_size 10^15 of a step",
        "step",
        lambda w: [
            *with_config(CONFIG | {"vocab_size": 10**15})(w)[-1:],
            "--ctx=16",
            "--steps=2",
            "--warmup=0",
            "--arm=native:native",
        ],
        ENDS,
        may_leave="config",
    )
    for kind in ("folder", "fifo", "loop", "in-no-folder", "name-of-256", "no-such-user", "null", "immutable"):
        if kind == "null" and os.geteuid():
            continue
        yield Case(
            f"config/reads {kind}",
            "layer",
            lambda w, kind=kind: [*RUN_CONFIG, f"--config={special(w, kind)}"],
            may_leave=kind,
        )
