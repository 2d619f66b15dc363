"""Lines in one figure can be told apart."""

from itertools import pairwise

from pmsn_plugins.analysis.style import series_style


def test_no_two_of_28_lines_are_the_same_and_neighbours_differ_twice():
    styles = [(s["color"], s["linestyle"]) for s in map(series_style, range(28))]
    assert len(set(styles)) == 28
    for a, b in pairwise(styles):
        assert a[0] != b[0]
        assert a[1] != b[1]
