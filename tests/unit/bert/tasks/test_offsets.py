"""Texts and offsets: what agrees stays, and the nearest match is that of a search by hand."""

import random

from bert.tasks.offsets import find_pieces, find_text


def brute_force(text: str, wanted: str, start: int) -> int:
    places = [at for at in range(len(text)) if text.startswith(wanted, at)]
    return min(places, key=lambda at: (abs(at - start), at), default=-1)


def test_the_nearest_place() -> None:
    draw = random.Random(1)
    for _ in range(500):
        text = "".join(draw.choices("ab ", k=draw.randrange(1, 20)))
        wanted = "".join(draw.choices("ab ", k=draw.randrange(1, 4)))
        start = draw.randrange(-3, 25)
        assert find_text(text, wanted, start) == brute_force(text, wanted, start)
    assert find_text("abc", "", 1) == -1
    assert find_text("a.c abc", "a.c", 5) == 0, "no pattern"


def test_pieces_that_agree_stay_where_they_are() -> None:
    draw = random.Random(2)
    for _ in range(300):
        text = "".join(draw.choices("abcd ", k=30))
        cuts = sorted(draw.sample(range(31), 2 * draw.randrange(1, 4)))
        pieces = list(zip(cuts[::2], cuts[1::2], strict=True))
        wanted = " ".join(text[start:end] for start, end in pieces)
        found = find_pieces(text, wanted, pieces)
        if wanted.strip():
            assert found == (pieces, True)
        assert found is None or found[1]


def test_pieces_that_are_all_shifted() -> None:
    """Each word occurs once, so that there is one right answer."""
    text = "w0 w1 w2 w3 w4 w5 w6 w7 w8 w9"
    draw = random.Random(4)
    for _ in range(300):
        chosen = sorted(draw.sample(range(10), draw.randrange(1, 4)))
        right = [(3 * i, 3 * i + 2) for i in chosen]
        shift = draw.choice([-2, -1, 1, 2, 40])
        wrong = [(start + shift, end + shift) for start, end in right]
        wanted = " ".join(f"w{i}" for i in chosen)
        expected = right
        if len(chosen) == 1:
            expected = [(text.index(wanted), text.index(wanted) + len(wanted))]
        assert find_pieces(text, wanted, wrong) == (expected, False)
        assert find_pieces(text, wanted + " w10", wrong) is None


def test_pieces_of_several_words() -> None:
    text = "acute and chronic kidney failure"
    wanted = "acute kidney failure"
    assert find_pieces(text, wanted, [(0, 5), (18, 32)]) == ([(0, 5), (18, 32)], True)
    assert find_pieces(text, wanted, [(1, 6), (19, 33)]) == ([(0, 5), (18, 32)], False)
    assert find_pieces(text, wanted, [(18, 32), (0, 5)]) == ([(0, 5), (18, 32)], True)
    assert find_pieces(text, "acute liver failure", [(0, 5), (18, 32)]) is None
    assert find_pieces(text, "failure acute", [(0, 5), (18, 32)]) is None, "in the text's order"
