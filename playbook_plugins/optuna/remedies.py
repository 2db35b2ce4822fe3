"""What else helps against instability, beside warmup and clipping, and what of it can be seen in this model?

Playbook: "Potential fixes for common instability patterns": another optimizer; residual connections and normalization,
and where the normalization stands; residual branches that begin at zero; and, last of all, a lower learning rate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from playbook_plugins.analysis.findings import Finding, Number, Verdict

SECTION = "Potential fixes for common instability patterns"
# From so many layers with weights on a stack is deep.
_DEEP = 5
_MOMENTUM = ("sgd", "momentum", "nesterov")
_ADAM = ("adam", "lamb", "lion", "adafactor", "shampoo")
# torch's own layers that say on which side of the sum they normalize.
_TRANSFORMER_LAYERS = ("TransformerEncoderLayer", "TransformerDecoderLayer")
# The last weights of each residual branch of layers whose names are known: torch's transformer layers, and the blocks
# of torchvision's residual networks.
_LAST_WEIGHTS: Mapping[str, tuple[str, ...]] = {
    "TransformerEncoderLayer": ("self_attn.out_proj.weight", "linear2.weight"),
    "TransformerDecoderLayer": ("self_attn.out_proj.weight", "multihead_attn.out_proj.weight", "linear2.weight"),
    "BasicBlock": ("bn2.weight",),
    "Bottleneck": ("bn3.weight",),
}
# What such a block has for the way around it.
_WAYS_AROUND = ("downsample", "shortcut", "skip")
# Names of normalizations of weights, which are no normalization layers.
_WEIGHT_NORMS = ("spectralnorm", "weightnorm", "parametriz")


def instability_remedies(model: Any = None, config: Mapping[str, Any] | None = None) -> tuple[Finding, ...]:
    """Ask which of the playbook's other remedies for instability a training does not use yet, as far as can be seen.

    Ask it where warmup and clipping do not suffice: by itself nothing here says that training is unstable.

    Parameters
    ----------
    model
        A `torch.nn.Module` as it is before training. Only the names, types, attributes and weights of its modules are
        looked at; what its ``forward`` does is not known.
    config
        The configuration of the training; its entries whose names are or end in ``optimizer`` and ``learning_rate`` or
        ``lr`` are looked at.

    Returns
    -------
    tuple of Finding
        Six, ``check`` being ``"instability remedy"``, in the playbook's order. FLAG: the remedy is not in use and can
        be tried; NO_EVIDENCE: it is seen to be in use; TOO_LITTLE_DATA: it cannot be seen. Plain looks at names and
        weights, without a rate of false flags.

        - ``"optimizer"``: FLAG of SGD with or without momentum, where Adam may cope. Number: ``optimizer``.
        - ``"normalization"``: FLAG where at least 5 layers with weights have no normalization among them. Numbers:
          ``n_weight_layers``, ``n_normalizations``.
        - ``"residual connections"``: FLAG where a stack of at least 5 layers with weights has surely none: nothing but
          torch's own layers in (nested) ``Sequential``. NO_EVIDENCE where there are layers known to have them. Numbers:
          ``n_weight_layers``, ``n_residual_layers``.
        - ``"normalization placement"``: FLAG where torch's transformer layers normalize after the sum,
          Norm(x + f(x)), as ``norm_first=False`` has it, which is known to cause trouble. Numbers: ``n_layers``,
          ``n_after_sum``, ``first`` (its name). ``norm_first=True`` normalizes in the branch, x + f(Norm(x)).
        - ``"zero-initialized branches"``: FLAG where the last weights of residual branches are not all zero: of torch's
          transformer layers and of torchvision's residual blocks. Numbers: ``n_branches``, ``n_not_zero``, ``first``.
        - ``"learning rate"``, the last resort: FLAG only where no other remedy is left, all five being seen in use;
          NO_EVIDENCE of that where one is flagged. Number: ``learning_rate``.

    Raises
    ------
    ValueError
        When there is neither a model nor a configuration, or the model has no ``named_modules``.
    """
    if model is None and config is None:
        raise ValueError(
            "`model` and `config` are both None: there is nothing to look at. Pass the model, the configuration, or "
            "both."
        )
    if model is not None and not callable(getattr(model, "named_modules", None)):
        raise ValueError(
            f"`model` is a {type(model).__name__} without `named_modules`: only the modules of a torch model can be "
            "looked at. Pass a torch.nn.Module."
        )
    modules = {} if model is None else dict(model.named_modules())
    findings = [
        _judge_optimizer(config or {}),
        _judge_normalization(modules),
        _judge_residuals(modules),
        _judge_placement(modules),
        _judge_branches(modules),
    ]
    return (*findings, _judge_rate(config or {}, findings))


def _finding(subject: str, is_in_use: bool | None, **numbers: Number) -> Finding:
    verdict = Verdict.TOO_LITTLE_DATA if is_in_use is None else Verdict.NO_EVIDENCE if is_in_use else Verdict.FLAG
    return Finding(check="instability remedy", subject=subject, verdict=verdict, numbers=numbers, section=SECTION)


def _entry(config: Mapping[str, Any], *ends: str) -> Any:
    """Return the value of the only entry whose own name is one of these or ends in it, None without."""
    found = [value for name, value in config.items() if name.rpartition(".")[2].lower().endswith(ends)]
    return found[0] if len(found) == 1 else None


def _judge_optimizer(config: Mapping[str, Any]) -> Finding:
    value = _entry(config, "optimizer")
    name = "" if value is None else str(value).lower()
    is_in_use = True if any(part in name for part in _ADAM) else False if any(p in name for p in _MOMENTUM) else None
    return _finding("optimizer", is_in_use, optimizer=None if value is None else str(value))


def _weight_layers(modules: Mapping[str, Any]) -> list[str]:
    """Return the names of the layers that multiply by a matrix or convolve, by their own weights."""
    layers = []
    for name, module in modules.items():
        # A parametrized layer keeps its weight as the original of a module of its own.
        known = getattr(module, "_parameters", {}).items()
        own = [weight for key, weight in known if "weight" in key or key.startswith("original")]
        is_matrix = any(weight is not None and weight.ndim >= 2 for weight in own)
        if is_matrix and not _is_norm(module) and "embedding" not in type(module).__name__.lower():
            layers.append(name)
    return layers


def _is_norm(module: Any) -> bool:
    kind = type(module).__name__.lower()
    return "norm" in kind and not any(word in kind for word in _WEIGHT_NORMS)


def _judge_normalization(modules: Mapping[str, Any]) -> Finding:
    n_layers = len(_weight_layers(modules))
    n_norms = sum(_is_norm(module) for module in modules.values())
    is_in_use = True if n_norms else False if n_layers >= _DEEP else None
    return _finding("normalization", is_in_use, n_weight_layers=n_layers, n_normalizations=n_norms)


def _judge_residuals(modules: Mapping[str, Any]) -> Finding:
    n_layers = len(_weight_layers(modules))
    n_residual = sum(_is_residual(module) for module in modules.values())
    # Only a chain of torch's own layers shows all that it computes.
    is_chain = bool(modules) and all(
        type(module).__name__ == "Sequential" or (_is_torch(module) and not any(True for _ in module.children()))
        for module in modules.values()
    )
    is_in_use = True if n_residual else False if is_chain and n_layers >= _DEEP else None
    return _finding("residual connections", is_in_use, n_weight_layers=n_layers, n_residual_layers=n_residual)


def _is_residual(module: Any) -> bool:
    kind = type(module).__name__
    return kind in _TRANSFORMER_LAYERS or (kind in _LAST_WEIGHTS and any(hasattr(module, way) for way in _WAYS_AROUND))


def _is_torch(module: Any) -> bool:
    return type(module).__module__.startswith("torch.nn.")


def _judge_placement(modules: Mapping[str, Any]) -> Finding:
    layers = {
        name: bool(module.norm_first)
        for name, module in modules.items()
        if type(module).__name__ in _TRANSFORMER_LAYERS and hasattr(module, "norm_first")
    }
    after = [name for name, is_first in layers.items() if not is_first]
    return _finding(
        "normalization placement",
        not after if layers else None,
        n_layers=len(layers),
        n_after_sum=len(after),
        first=after[0] if after else None,
    )


def _judge_branches(modules: Mapping[str, Any]) -> Finding:
    is_zero: dict[str, bool] = {}
    for name, module in modules.items():
        if not _is_residual(module):
            continue
        for path in _LAST_WEIGHTS[type(module).__name__]:
            weight = _at(module, path)
            if weight is not None:
                is_zero[f"{name}.{path}" if name else path] = not bool(weight.detach().ne(0).any())
    others = [name for name, zero in is_zero.items() if not zero]
    return _finding(
        "zero-initialized branches",
        not others if is_zero else None,
        n_branches=len(is_zero),
        n_not_zero=len(others),
        first=others[0] if others else None,
    )


def _at(module: Any, path: str) -> Any:
    for part in path.split("."):
        module = getattr(module, part, None)
    return module


def _judge_rate(config: Mapping[str, Any], others: list[Finding]) -> Finding:
    rate = _entry(config, "learning_rate", "lr")
    number = float(rate) if isinstance(rate, int | float) and not isinstance(rate, bool) else None
    found = _finding("learning rate", None, learning_rate=number)
    verdicts = {finding.verdict for finding in others}
    if Verdict.FLAG in verdicts:
        return replace(found, verdict=Verdict.NO_EVIDENCE)
    return found if Verdict.TOO_LITTLE_DATA in verdicts else replace(found, verdict=Verdict.FLAG)
