"""The codebooks of the i-quants against gguf-py's tables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import quants
from numpy.typing import NDArray

from llmkit.quantize.schemes import codebook_sets, codebooks
from tests.conftest import REPOSITORY


@pytest.mark.parametrize(
    ("codebook", "peer"),
    [
        (codebooks.iq1, quants.IQ1_S),
        (codebooks.iq1, quants.IQ1_M),
        (codebooks.iq2_xxs, quants.IQ2_XXS),
        (codebooks.iq2_xs, quants.IQ2_XS),
        (codebooks.iq2_s, quants.IQ2_S),
        (codebooks.iq3_xxs, quants.IQ3_XXS),
        (codebooks.iq3_s, quants.IQ3_S),
    ],
)
def test_entries_are_those_of_gguf(codebook: Callable[[], NDArray[np.int8]], peer: Any) -> None:
    peer.init_grid()
    assert codebook().shape == peer.grid_shape
    np.testing.assert_array_equal(codebook(), peer.grid.reshape(peer.grid_shape))
    with pytest.raises(ValueError, match="read-only"):
        codebook()[0, 0] = 1


def test_signs_with_parity_are_those_of_gguf() -> None:
    expected = np.frombuffer(quants.IQ2_XXS.ksigns, np.uint8)
    np.testing.assert_array_equal(codebooks.with_parity(np.arange(128)), expected)
    np.testing.assert_array_equal(codebooks.signs(expected[[0, 1]]), [[1] * 8, [-1, 1, 1, 1, 1, 1, 1, -1]])


def test_the_script_writes_the_sets_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY / "scripts"))
    import make_codebooks

    monkeypatch.setattr(make_codebooks, "MODULE", tmp_path / "written.py")
    make_codebooks.main()
    assert codebook_sets.__file__ is not None
    assert (tmp_path / "written.py").read_text() == Path(codebook_sets.__file__).read_text()
