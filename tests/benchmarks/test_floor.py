"""The floor of an update: every matrix product of it, counted by hand."""

import pytest

from benchmarks.floor import STEPS, products_of, repeater

H, T = 16, 64


@pytest.mark.parametrize(("kind", "gates"), [("gru", 3), ("lstm", 4)])
@pytest.mark.parametrize("mode", ["full", "cached"])
def test_every_product_of_an_update_is_counted(kind: str, gates: int, mode: str) -> None:
    """Four cues and a flag are seen, four answers and a value are given."""
    D, A, G = 5, 4, gates * H
    forward = D * G + H * G + H * (A + 1)
    of_weights = forward
    of_states = H * (A + 1) + (H * G if mode == "full" else 0)  # the observation has no gradient
    found = sum(product.work * count for product, count in products_of(kind, mode, T, H).items())
    steps = STEPS // T * T
    assert found == pytest.approx(steps * (forward + of_weights + of_states), rel=0.02)


def test_the_products_can_be_made_again() -> None:
    products = products_of("mamba2", "full", T, H)
    assert sum(products.values()) > 10
    repeater(products, threads=2)()
