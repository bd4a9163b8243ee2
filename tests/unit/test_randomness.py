"""Draws depend on their key and on nothing else."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from captune import randomness

parts = st.lists(st.one_of(st.integers(), st.text(max_size=5)), min_size=1, max_size=4)


@given(parts, parts)
def test_different_keys_are_different_numbers(a: list[int | str], b: list[int | str]) -> None:
    assert (randomness.key(*a) == randomness.key(*b)) == (a == b)


def test_a_draw_does_not_depend_on_other_draws() -> None:
    first = randomness.normal((3, 2), 0, "noise", "picture", 7)
    torch.manual_seed(123)
    torch.randn(10)
    assert torch.equal(first, randomness.normal((3, 2), 0, "noise", "picture", 7))
    assert not torch.equal(first, randomness.normal((3, 2), 0, "noise", "picture", 8))


def test_draws_have_the_distribution_they_say() -> None:
    noise = torch.cat([randomness.normal((100,), "n", i) for i in range(100)])
    assert abs(noise.mean().item()) < 0.05 and abs(noise.std().item() - 1) < 0.05
    even = [randomness.uniform("u", i) for i in range(2000)]
    assert min(even) >= 0 and max(even) < 1 and abs(sum(even) / 2000 - 0.5) < 0.03
    whole = [randomness.integer(4, "i", i) for i in range(2000)]
    assert {whole.count(n) > 400 for n in range(4)} == {True}
    assert sorted(randomness.permutation(9, "p")) == list(range(9))


def test_keys_are_the_same_on_every_machine() -> None:
    # int.from_bytes(sha256(b"int:0\x1fstr:noise").digest()[:8], "big") >> 1, computed with hashlib alone
    assert randomness.key(0, "noise") == 2903269190723301928
