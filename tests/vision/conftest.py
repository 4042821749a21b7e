"""Tiny networks, each made once in a session."""

import numpy as np
import pytest
import tiny_networks


@pytest.fixture(scope="session")
def network(tmp_path_factory):
    """name -> the folder of a tiny network of tiny_networks.NETWORKS."""
    root = tmp_path_factory.mktemp("networks")

    def folder(name):
        return root / name if (root / name).exists() else tiny_networks.make(name, root / name)

    return folder


@pytest.fixture
def images():
    return list(np.random.default_rng(0).integers(0, 255, (3, 40, 60, 3)).astype(np.uint8))
