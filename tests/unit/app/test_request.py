"""lib.request: every dialect that viewers send becomes the right pixels on the right slice, or a clear error."""

from __future__ import annotations

import pytest

from imis_net.errors import PromptError
from lib.request import Request, classes_request, interactive_request

VOLUME = (60, 50, 20)
"""Voxels i, j, k: three different sizes, so that a swapped axis is out of range or visibly wrong."""
LABELS = ("spleen", "liver", "aorta")


def ask(**params: object) -> Request:
    return interactive_request(params, VOLUME, LABELS)


def only(**params: object) -> tuple[int, list[list[float]], list[int], list[float] | None, str | None]:
    """The single target as slice, clicks, click labels, box and text."""
    (target,) = ask(**params).targets
    prompt = target.prompt
    coords = [] if prompt.point_coords is None else prompt.point_coords.tolist()
    labels = [] if prompt.point_labels is None else prompt.point_labels.tolist()
    return target.slice, coords, labels, None if prompt.box is None else prompt.box.tolist(), prompt.text


VIEWERS = {
    "slicer deepgrow": (
        {
            "label": "Segment_1",
            "foreground": [[50, 40, 12]],
            "background": [],
            "text": "",
            "window": "",
            "slice": "",
            "prompt": ["points", "box"],
            "result_extension": ".nrrd",
            "result_dtype": "uint8",
            "client_id": "user-xyz",
        },
        (12, [[50, 40]], [1], None, None),
    ),
    "slicer deepgrow, dimension 2": (
        {"label": "liver", "foreground": [[50, 40, 12]], "background": [[1, 2, 12]], "slice": 12},
        (12, [[50, 40], [1, 2]], [1, 0], None, None),
    ),
    "ohif deepgrow": (
        {"foreground": [[8, 20, 12]], "background": [[25, 30, 12]], "result_compress": False},
        (12, [[8, 20], [25, 30]], [1, 0], None, None),
    ),
    "ohif deepgrow without foreground": (
        {"background": [[25, 30, 7]], "text": "liver"},
        (7, [[25, 30]], [0], None, "liver"),
    ),
    "ohif vista3d": (
        {"points": [[5, 9, 2], [7, 8, 2]], "point_labels": [1, 0], "label_prompt": [3]},
        (2, [[5, 9], [7, 8]], [1, 0], None, None),
    ),
    "deepedit": (
        {"background": [[2, 3, 4]], "liver": [[18, 20, 4]], "spleen": [], "label": "liver"},
        (4, [[18, 20], [2, 3]], [1, 0], None, None),
    ),
    "slicer roi, corners swapped": (
        {"foreground": [], "roi": [38, 32, 33, 27, 6, 4]},
        (5, [], [], [32, 27, 38, 33], None),
    ),
    "roi of a 2D drawing": ({"roi": [38, 32, 33, 27], "slice": 3}, (3, [], [], [32, 27, 38, 33], None)),
    "roi with a click in it": (
        {"foreground": [[35, 30, 4]], "roi": [32, 38, 27, 33, 4, 9]},
        (4, [[35, 30]], [1], [32, 27, 38, 33], None),
    ),
    "roi, slice in millimetres": ({"roi": [32, 38, 27, 33, 4, 8], "slice": 843}, (6, [], [], [32, 27, 38, 33], None)),
    "roi, slice an index in it": ({"roi": [32, 38, 27, 33, 4, 8], "slice": 7}, (7, [], [], [32, 27, 38, 33], None)),
    "roi partly beyond the volume": ({"roi": [32, 38, 27, 33, -7, 1]}, (1, [], [], [32, 27, 38, 33], None)),
    "box as a list with its slice": ({"box": [30, 20, 10, 5, 9]}, (9, [], [], [10, 5, 30, 20], None)),
    "box typed": ({"box": " 10, 5,30,20 ", "slice": "9"}, (9, [], [], [10, 5, 30, 20], None)),
    "box of two clicks": (
        {"prompt": "box", "foreground": [[30, 5, 2], [10, 20, 2]]},
        (2, [], [], [10, 5, 30, 20], None),
    ),
    "box of the last two clicks": (
        {"prompt": "box", "foreground": [[1, 1, 5], [30, 5, 2], [10, 20, 2]], "background": [[11, 6, 2], [1, 1, 5]]},
        (2, [[11, 6]], [0], [10, 5, 30, 20], None),
    ),
    "text on the middle slice": ({"text": " liver ", "background": []}, (10, [], [], None, "liver")),
    "text on a slice": ({"text": "liver", "slice": 0}, (0, [], [], None, "liver")),
    "text and click": ({"text": "liver", "foreground": [[1, 2, 3]]}, (3, [[1, 2]], [1], None, "liver")),
    "label alone": ({"label": "liver", "foreground": [], "background": []}, (10, [], [], None, "liver")),
    "label_prompt alone": ({"label_prompt": [2]}, (10, [], [], None, "liver")),
    "clicks before stale points": (
        {"foreground": [[8, 20, 12]], "points": [[1, 1, 1]], "point_labels": [1]},
        (12, [[8, 20]], [1], None, None),
    ),
    "slice chooses among the clicks": (
        {"foreground": [[1, 2, 3], [4, 5, 6]], "slice": 6},
        (6, [[4, 5]], [1], None, None),
    ),
    "background elsewhere is left out": (
        {"foreground": [[1, 2, 3]], "background": [[9, 9, 8]]},
        (3, [[1, 2]], [1], None, None),
    ),
    "axis 0": ({"foreground": [[3, 40, 12]], "axis": 0}, (3, [[40, 12]], [1], None, None)),
    "axis 1 with roi": ({"roi": [1, 9, 4, 4, 2, 8], "axis": 1}, (4, [], [], [1, 2, 9, 8], None)),
}


@pytest.mark.parametrize(("params", "expected"), VIEWERS.values(), ids=VIEWERS.keys())
def test_each_viewers_request_becomes_its_prompt(params: dict[str, object], expected: object) -> None:
    """Breaks when a key is not read, an axis is swapped, corners stay unsorted, or the wrong slice is chosen."""
    assert only(**params) == expected


def test_clicks_on_several_slices_are_a_target_each() -> None:
    """Breaks when a click lands on another click's slice; viewers send all slices' clicks every time."""
    targets = ask(label="liver", foreground=[[1, 2, 3], [4, 5, 6]], background=[[7, 8, 6]]).targets
    assert [(t.name, t.slice, t.prompt.num_clicks) for t in targets] == [("liver", 3, 1), ("liver", 6, 2)]


def test_each_label_of_deepedit_is_a_target_with_the_shared_background() -> None:
    """Breaks when labels are merged, or a background click is kept for one label only."""
    targets = ask(liver=[[1, 2, 3]], spleen=[[4, 5, 3]], background=[[7, 8, 3]]).targets
    assert [(t.name, t.prompt.point_labels.tolist()) for t in targets] == [("liver", [1, 0]), ("spleen", [1, 0])]


def test_a_clicked_segment_may_have_any_name() -> None:
    """Breaks when the name that a user typed is taken for a text prompt, or checked at all."""
    for name in ("$(whatever)", "Segment_1", "Leber, links", "x" * 500):
        (target,) = ask(label=name, foreground=[[1, 2, 3]]).targets
        assert target.name == name
        assert target.prompt.text is None


def test_window_is_typed_or_a_pair() -> None:
    """Breaks when a viewer's window is ignored or its two numbers are swapped."""
    assert ask(foreground=[[1, 2, 3]], window="40, 400").window == (40, 400)
    assert ask(foreground=[[1, 2, 3]], window=[-600, 1500]).window == (-600, 1500)
    assert ask(foreground=[[1, 2, 3]], window="").window is None


BAD = {
    "nothing": ({}, "no prompt"),
    "everything empty": (
        {"foreground": [], "background": [], "text": "", "label": "", "roi": [], "box": ""},
        "no prompt",
    ),
    "click outside": ({"foreground": [[60, 1, 1]]}, "0..59"),
    "negative click": ({"background": [[1, -1, 1]], "text": "liver"}, "j=-1"),
    "slice of a click out of range": ({"foreground": [[1, 1, 20]]}, "k=20"),
    "slice out of range": ({"text": "liver", "slice": 20}, "0..19"),
    "slice without its clicks": ({"foreground": [[1, 2, 3]], "slice": 4}, "no click on slice 4"),
    "slice of a fraction": ({"text": "liver", "slice": 1.5}, "whole number"),
    "slice of words": ({"text": "liver", "slice": "first"}, "slice"),
    "NaN": ({"foreground": [[float("nan"), 1, 1]]}, "finite"),
    "infinity in a box": ({"box": [0, 0, float("inf"), 5]}, "finite"),
    "a number too large for a float": ({"foreground": [[10**400, 1, 1]]}, "finite"),
    "a bool for a number": ({"foreground": [[True, 1, 1]]}, "finite"),
    "a string for a number": ({"foreground": [["1", 1, 1]]}, "finite"),
    "an expression for a number": ({"slice": "$__import__('os')", "text": "liver"}, "slice"),
    "a flat click": ({"foreground": [1, 2, 3]}, r"\[i, j, k\]"),
    "clicks that are no list": ({"foreground": "1,2,3"}, "list of clicks"),
    "a click without its slice": ({"foreground": [[1, 2]]}, r"\[i, j, k\]"),
    "too many clicks": ({"foreground": [[1, 2, 3]] * 300}, "too many"),
    "point labels missing": ({"points": [[1, 2, 3], [4, 5, 3]], "point_labels": [1]}, "expected 2"),
    "point label 7": ({"points": [[1, 2, 3]], "point_labels": [7]}, "1 .foreground. or 0"),
    "box of no area": ({"box": [5, 5, 5, 9]}, "no area"),
    "box of three": ({"box": "1,2,3"}, "x0, y0, x1, y1"),
    "box slice out of range": ({"box": [1, 2, 9, 9, 99]}, "0..19"),
    "roi of five": ({"roi": [1, 2, 3, 4, 5]}, "i0, i1"),
    "roi on no slice": ({"roi": [1, 9, 1, 9, 30, 40]}, "30..40"),
    "roi of no area": ({"roi": [1, 1, 1, 9, 3, 4]}, "no area"),
    "box mode with one click": ({"prompt": "box", "foreground": [[1, 2, 3]]}, "two foreground clicks"),
    "box mode over two slices": ({"prompt": "box", "foreground": [[1, 2, 3], [9, 9, 4]]}, "slices 3 and 4"),
    "unknown mode": ({"prompt": "lasso", "foreground": [[1, 2, 3]]}, "points, box"),
    "text that is no text": ({"text": ["liver"]}, "plain words"),
    "an expression as text": ({"text": "$print(1)"}, "plain words"),
    "an expression as the only label": ({"label": "@network"}, "plain words"),
    "label index 0": ({"label_prompt": [0]}, "1..3"),
    "label index of nothing": ({"label_prompt": [4]}, "1..3"),
    "axis 3": ({"foreground": [[1, 2, 3]], "axis": 3}, "0, 1 or 2"),
    "window of no width": ({"foreground": [[1, 2, 3]], "window": "40,0"}, "more than 0"),
    "window of words": ({"foreground": [[1, 2, 3]], "window": "lung"}, "centre, width"),
}


@pytest.mark.parametrize(("params", "message"), BAD.values(), ids=BAD.keys())
def test_what_cannot_be_used_is_refused_with_the_reason(params: dict[str, object], message: str) -> None:
    """Breaks when junk passes, or when another exception than PromptError would become an opaque 500."""
    with pytest.raises(PromptError, match=message):
        ask(**params)


def test_2d_images_take_clicks_without_a_slice() -> None:
    """Breaks when a plain picture needs a third index, or takes a slice that it does not have."""
    (target,) = interactive_request({"foreground": [[5, 6]]}, (60, 50, 1), LABELS).targets
    assert target.slice == 0
    assert target.prompt.point_coords.tolist() == [[5, 6]]
    with pytest.raises(PromptError, match="k=1"):
        interactive_request({"foreground": [[5, 6, 1]]}, (60, 50, 1), LABELS)


@pytest.mark.parametrize(
    ("params", "names"),
    [
        ({"label_prompt": [3, 1, 3]}, ["aorta", "spleen"]),
        ({"label_prompt": 2}, ["liver"]),
        ({"text": "Liver", "label": "aorta"}, ["Liver"]),
        ({"label": "aorta"}, ["aorta"]),
        ({"label_prompt": [2], "points": [[1, 2, 99]], "point_labels": "stale", "text": "aorta"}, ["liver"]),
        ({"text": "", "window": "", "slice": ""}, list(LABELS)),
    ],
)
def test_classes_by_index_or_name_and_all_of_them_by_default(params: dict[str, object], names: list[str]) -> None:
    """Breaks when indices are off by one, stale clicks spoil a class prompt, or the automatic run finds nothing."""
    targets = classes_request(params, VOLUME, LABELS, guessed=LABELS).targets
    assert [t.name for t in targets] == names
    assert all(t.slice == 10 and t.prompt.text == t.name for t in targets)
    assert all(t.is_guess == (names == list(LABELS)) for t in targets)
