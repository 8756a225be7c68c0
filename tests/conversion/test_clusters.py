import numpy as np
import pytest
from scipy.cluster.hierarchy import cut_tree, linkage

from foundry_upcycle.conversion.clusters import ward


def squared(points: np.ndarray) -> np.ndarray:
    return ((points[:, None] - points[None])**2).sum(-1)


@pytest.mark.parametrize('n', [1, 3, 7, 20])
def test_is_scipys_where_all_weigh_the_same(n):
    points = np.random.default_rng(0).normal(size=(20, 4))
    labels = cut_tree(linkage(points, 'ward'), n_clusters=n)[:, 0]
    expected = sorted(np.flatnonzero(labels == i).tolist() for i in range(n))
    assert ward(squared(points), np.ones(20), n) == expected


def test_a_point_of_weight_w_is_w_points():
    draw = np.random.default_rng(1)
    points, load = draw.normal(size=(12, 4)), draw.integers(1, 6, size=12)
    copies = np.repeat(np.arange(12), load)
    labels = cut_tree(linkage(points[copies], 'ward'), n_clusters=5)[:, 0]
    expected = sorted(sorted({*copies[labels == i].tolist()}) for i in range(5))
    assert ward(squared(points), load.astype(float), 5) == expected


def test_what_weighs_nothing_goes_with_its_nearest():
    points = np.array([[0.0], [1.0], [10.0], [11.0], [10.9]])
    load = np.array([100.0, 100.0, 100.0, 0.0, 0.0])
    assert ward(squared(points), load, 3) == [[0], [1], [2, 3, 4]]
    # Where nothing weighs anything, all weigh the same.
    assert ward(squared(points), np.zeros(5), 2) == [[0, 1], [2, 3, 4]]
