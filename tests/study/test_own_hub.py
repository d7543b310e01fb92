"""What needs medfed's half at the hub, part by part."""

from __future__ import annotations

from medfed.registry import kinds
from medfed.study.own_hub import needs_own_hub


def test_each_privacy_mechanism_says_whether_a_site_alone_keeps_it():
    """A mechanism that is added later is refused until it says so."""
    alone = {name for name, record in kinds("privacy").items() if record.site_only}
    assert alone == {"none", "dp_sgd"}


def test_a_local_method_of_the_sites_own_is_allowed():
    for method in (None, kinds("local_training")["fedprox"]()):
        assert list(needs_own_hub(kinds("privacy")["none"](), (), method)) == []


def test_both_halves_of_a_method_and_each_compression_are_named():
    none, local = kinds("privacy")["none"](), kinds("local_training")
    for name in ("scaffold", "feddyn", "ifca"):
        (problem,) = needs_own_hub(none, (), local[name]())
        assert problem.startswith(f"local: '{name}' is half of a method")
    (problem,) = needs_own_hub(none, (kinds("compression")["int8"](),), None)
    assert problem.startswith("compress: 'int8' is undone by medfed's hub")
