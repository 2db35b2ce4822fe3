"""Are the playbook's other remedies seen in real torch models, and is what cannot be seen left open?"""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

from playbook_plugins.analysis import Finding, Verdict
from playbook_plugins.optuna.remedies import instability_remedies
from playbook_plugins.report import word
from playbook_plugins.report.protocol_flags import PROTOCOL_FLAGS, PROTOCOL_QUESTIONS

FLAG, USED, UNSEEN = Verdict.FLAG, Verdict.NO_EVIDENCE, Verdict.TOO_LITTLE_DATA
SUBJECTS = [
    "optimizer",
    "normalization",
    "residual connections",
    "normalization placement",
    "zero-initialized branches",
    "learning rate",
]


def asked(model: Any = None, config: dict[str, Any] | None = None) -> dict[str, Finding]:
    findings = instability_remedies(model, config)
    assert [finding.subject for finding in findings] == SUBJECTS
    return {finding.subject: finding for finding in findings}


def verdicts(model: Any = None, config: dict[str, Any] | None = None) -> list[Verdict]:
    return [finding.verdict for finding in asked(model, config).values()]


def transformer(norm_first: bool, n_layers: int = 3) -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, norm_first=norm_first)
    return nn.TransformerEncoder(layer, n_layers, enable_nested_tensor=False)


def chain(n_layers: int, *between: type[nn.Module]) -> nn.Sequential:
    return nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), *(one() for one in between)) for _ in range(n_layers)))


class Residual(nn.Module):
    """A residual network whose forward nothing in the names of its modules tells of."""

    def __init__(self, n_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(n_layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + layer(x).relu()
        return x


class BasicBlock(nn.Module):
    """As torchvision names the parts of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.downsample = None


def test_a_transformer_that_normalizes_after_the_sum() -> None:
    found = asked(transformer(norm_first=False))
    placement = found["normalization placement"]
    assert placement.verdict is FLAG
    assert placement.numbers == {"n_layers": 3, "n_after_sum": 3, "first": "layers.0"}
    words = word(placement)
    assert words.headline == "The model normalizes after the residual sum"
    assert words.sentence == "3 of 3 transformer layers do, as Norm(x + f(x)), the first of them layers.0."
    assert [found[one].verdict for one in ("normalization", "residual connections")] == [USED, USED]
    assert asked(transformer(norm_first=True))["normalization placement"].verdict is USED
    decoder = nn.TransformerDecoderLayer(8, 2, 16)
    assert asked(decoder)["normalization placement"].numbers["first"] == ""
    assert "the first of them the model itself" in word(asked(decoder)["normalization placement"]).sentence


def test_a_deep_chain_without_normalization_and_residual_connections() -> None:
    found = asked(chain(5, nn.ReLU))
    assert found["normalization"].verdict is found["residual connections"].verdict is FLAG
    assert found["normalization"].numbers == {"n_weight_layers": 5, "n_normalizations": 0}
    assert word(found["normalization"]).sentence == "It has 5 layers with weights, and not one that normalizes."
    model = nn.Sequential(*(part for _ in range(5) for part in (nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU())))
    assert verdicts(model)[1:3] == [USED, FLAG]


def test_a_shallow_chain_needs_neither() -> None:
    assert verdicts(chain(4, nn.ReLU)) == [UNSEEN] * 6


def test_what_forward_does_is_left_open() -> None:
    assert verdicts(Residual(8)) == [UNSEEN, FLAG, UNSEEN, UNSEEN, UNSEEN, USED]


def test_a_chain_with_a_layer_of_the_user_is_left_open() -> None:
    class Own(nn.Linear):
        pass

    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(6)), Own(4, 4))
    assert asked(model)["residual connections"].verdict is UNSEEN
    # In which order a list is gone through, nobody can see.
    assert asked(nn.ModuleList(nn.Linear(4, 4) for _ in range(6)))["residual connections"].verdict is UNSEEN


def test_a_block_of_that_name_without_a_way_around_is_left_open() -> None:
    block = BasicBlock()
    del block.downsample
    assert verdicts(block)[1:5] == [USED, UNSEEN, UNSEEN, UNSEEN]


def test_a_normalization_of_weights_and_an_embedding_do_not_count() -> None:
    layers = [nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)) for _ in range(6)]
    assert asked(nn.Sequential(nn.Embedding(4, 4), *layers))["normalization"].verdict is FLAG
    assert asked(nn.Sequential(*(nn.Embedding(4, 4) for _ in range(6))))["normalization"].verdict is UNSEEN


def test_branches_that_begin_at_zero() -> None:
    model = transformer(norm_first=True, n_layers=2)
    found = asked(model)["zero-initialized branches"]
    assert found.verdict is FLAG
    assert found.numbers == {"n_branches": 4, "n_not_zero": 4, "first": "layers.0.self_attn.out_proj.weight"}
    for layer in model.layers:
        nn.init.zeros_(layer.linear2.weight)
    assert asked(model)["zero-initialized branches"].numbers["n_not_zero"] == 2
    for layer in model.layers:
        nn.init.zeros_(layer.self_attn.out_proj.weight)
    assert asked(model)["zero-initialized branches"].verdict is USED
    blocks = nn.Sequential(BasicBlock(), BasicBlock())
    assert asked(blocks)["zero-initialized branches"].numbers["first"] == "0.bn2.weight"
    for block in blocks:
        nn.init.zeros_(block.bn2.weight)
    assert verdicts(blocks)[1:5] == [USED, USED, UNSEEN, USED]


@pytest.mark.parametrize(
    ("name", "verdict"),
    [("sgd", FLAG), ("Nesterov", FLAG), ("torch.optim.AdamW", USED), ("nadam", USED), ("mine", UNSEEN), (None, UNSEEN)],
)
def test_the_optimizer_is_known_by_its_name(name: str | None, verdict: Verdict) -> None:
    assert asked(config={"optimizer": name})["optimizer"].verdict is verdict


def test_the_learning_rate_is_the_last_resort() -> None:
    config = {"optimizer": "adam", "learning_rate": 0.1}
    model = transformer(norm_first=True)
    assert asked(model, config)["learning rate"].verdict is USED
    for layer in model.layers:
        nn.init.zeros_(layer.linear2.weight)
        nn.init.zeros_(layer.self_attn.out_proj.weight)
    last = asked(model, config)["learning rate"]
    assert last.verdict is FLAG
    assert (word(last).headline, word(last).sentence) == ("A lower learning rate is what is left", "It is 0.1.")
    unseen = asked(config=config)["learning rate"]
    assert unseen.verdict is UNSEEN
    assert word(unseen).headline == "Whether a lower learning rate is the last resort cannot be said"


def test_every_finding_has_words() -> None:
    for check in PROTOCOL_FLAGS:
        for verdict in Verdict:
            words = word(Finding(check=check, subject="x", verdict=verdict))
            assert words.headline
            assert "None" not in words.headline + words.sentence
    assert PROTOCOL_FLAGS.keys() == PROTOCOL_QUESTIONS.keys()
    models = [transformer(False), transformer(True), chain(6, nn.ReLU), Residual(6)]
    for finding in [one for model in models for one in instability_remedies(model, {"optimizer": "sgd", "lr": 1.0})]:
        words = word(finding)
        assert "raised a flag" not in words.headline
        assert "None" not in words.headline + words.sentence
        assert bool(words.action) == (finding.verdict is FLAG) or finding.subject == "learning rate"


def test_nothing_to_look_at_is_refused() -> None:
    message = (
        "`model` and `config` are both None: there is nothing to look at. Pass the model, the configuration, or both."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        instability_remedies()
    message = (
        "`model` is a int without `named_modules`: only the modules of a torch model can be looked at. Pass a "
        "torch.nn.Module."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        instability_remedies(3)
