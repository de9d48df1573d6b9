"""The recipe of a command line: options over a file, and errors that tell what to write."""

from __future__ import annotations

from pathlib import Path

import pytest

from nybble.errors import NybbleError
from nybble.options import RecipeOptions
from nybble.recipe import Recipe, Widths, parse_layer


def test_nothing_given_is_the_default() -> None:
    assert RecipeOptions().recipe() == Recipe()


def test_options_go_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "recipe.json"
    asked = Recipe(4, 4, first_last=6, layers={"a*": {"weights": 2}}, rounding="tflite")
    file.write_text(asked.to_json())
    assert RecipeOptions(file).recipe() == asked
    options = RecipeOptions(file, "ternary", "2", "none", ("b=w4a8", "c*=a3", "d=x=wt"), "mse")
    assert options.recipe() == Recipe(
        "ternary",
        2,
        first_last=None,
        layers={
            "a*": {"weights": 2},
            "b": {"weights": 4, "activations": 8},
            "c*": {"activations": 3},
            "d=x": {"weights": "ternary"},
        },
        calibrator="mse",
        rounding="tflite",
    )
    assert options.recipe().overrides[1] == ("b", Widths(4, 8))


def test_code_books_have_names() -> None:
    options = RecipeOptions(weights="nf4", activations="float", layers=("a=wfp4",))
    assert options.recipe() == Recipe("nf4", "float", layers={"a": {"weights": "fp4"}})


@pytest.mark.parametrize("text", ["a", "a=", "=w4", "a=4", "a=w4b8", "a=a8w4", "a=w4 a8", "a=wa"])
def test_overrides_that_are_none(text: str) -> None:
    with pytest.raises(NybbleError, match=r"is no layer override\. Write PATTERN=w4a8"):
        parse_layer(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (RecipeOptions(weights="9"), "weights=9 is not one of: 1 to 8, 'ternary'"),
        (RecipeOptions(weights="-1"), "weights='-1' is not one of: 1 to 8, 'ternary'"),
        (RecipeOptions(weights="four"), "weights='four' is not one of: 1 to 8, 'ternary'"),
        (RecipeOptions(activations="0"), "activations=0 is not one of: 1 to 8"),
        (RecipeOptions(activations="f"), "activations='f' is not one of: 1 to 8"),
        (RecipeOptions(first_last="all"), "first_last='all' is not one of: 1 to 8, none"),
        (RecipeOptions(layers=("a=w4a12",)), "layers, 'a': activations=12 is not one of: 1 to 8"),
        (RecipeOptions(calibrator="best"), "calibrator='best' is not one of: minmax"),
        (RecipeOptions(Path("missing.json")), r"missing\.json: .*No such file"),
    ],
)
def test_values_that_do_not_exist(options: RecipeOptions, message: str) -> None:
    with pytest.raises(NybbleError, match=message):
        options.recipe()
