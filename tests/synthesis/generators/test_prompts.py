import json
import subprocess
import sys
from pathlib import Path

import pytest

from saukit.core.errors import UsageError
from saukit.synthesis.generators.prompts import TEMPLATES, PromptBook, describe_class_name, read_prompts

CLASSES = ("crane", "airplane", "7")


def written(folder: Path, text: str, name: str = "prompts.yaml") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("golden_retriever", "golden retriever"),
        ("n02099601-golden_retriever", "golden retriever"),
        ("n02099601_golden__retriever", "golden retriever"),
        ("n02099601", "n02099601"),
        ("T-shirt/top", "T-shirt/top"),
        ("_", "_"),
        ("0", "0"),
    ],
)
def test_a_class_folder_is_described_in_words(name: str, words: str) -> None:
    assert describe_class_name(name) == words


def test_the_images_of_a_class_take_the_templates_in_turn() -> None:
    book = PromptBook.of(("cat", "guinea_pig"))
    assert [book.prompt(0, i) for i in range(len(TEMPLATES))] == [t.replace("{class}", "cat") for t in TEMPLATES]
    assert book.prompt(1, 0) == "a photo of a guinea pig"
    assert book.prompt(1, len(TEMPLATES)) == book.prompt(1, 0) != book.prompt(1, 1)


def test_the_article_right_before_a_vowel_is_an() -> None:
    templates = ("a photo of a {class}", "A {class} by a lake", "a {class} and a {class}", "data {class}")
    assert PromptBook.of(("airplane",), templates=templates).lines[0] == (
        "a photo of an airplane",
        "An airplane by a lake",
        "an airplane and an airplane",
        "data airplane",
    )


def test_a_description_stands_for_the_name() -> None:
    book = PromptBook.of(CLASSES, descriptions={"crane": "crane, the bird"})
    assert book.prompt(0, 0) == "a photo of a crane, the bird"
    assert book.prompt(1, 0) == "a photo of an airplane"


def test_a_file_goes_before_the_templates_and_says_which_classes_it_left_out(tmp_path: Path) -> None:
    text = "crane:\n  - a crane,\n    the bird\n  - a {class} in {flight}\n7: the digit seven\n"
    book = PromptBook.of(CLASSES, prompts=written(tmp_path, text))
    assert book.lines[0] == ("a crane, the bird", "a crane in {flight}")
    assert book.lines[2] == ("the digit seven",)
    assert book.prompt(1, 0) == "a photo of an airplane"
    assert book.templated == ("airplane",)
    assert book.unclear == ()
    assert PromptBook.of(CLASSES).templated == ()


def test_classes_whose_names_say_nothing_are_told() -> None:
    classes = ("7", "n02099601", "n02099601-dog", "crane", "8")
    assert PromptBook.of(classes, descriptions={"8": "digit eight"}).unclear == ("7", "n02099601")


def test_json_and_yaml_say_the_same_and_names_are_text(tmp_path: Path) -> None:
    prompts = {"no": ("1e3",), "07": ("null", "yes")}
    as_json = written(tmp_path, json.dumps(prompts, indent="\t"), "prompts.json")
    as_yaml = written(tmp_path, "no: [1e3]\n07:\n- null\n- yes\n")
    assert read_prompts(as_json) == read_prompts(as_yaml) == prompts


def test_the_digest_is_that_of_the_prompts(tmp_path: Path) -> None:
    plain = PromptBook.of(CLASSES)
    path = written(tmp_path, json.dumps({name: list(plain.lines[i]) for i, name in enumerate(CLASSES)}))
    assert PromptBook.of(CLASSES, prompts=path).digest == plain.digest
    others = [
        PromptBook.of(CLASSES[::-1]),
        PromptBook.of(CLASSES, templates=TEMPLATES[:1]),
        PromptBook.of(CLASSES, templates=TEMPLATES[::-1]),
        PromptBook.of(CLASSES, descriptions={"7": "seven"}),
    ]
    assert len({plain.digest, *(book.digest for book in others)}) == 5


def test_every_problem_of_a_file_is_told(tmp_path: Path) -> None:
    path = written(tmp_path, "crane: []\nairplane: ['', a plane, {x: y}]\n'7': ' '\n")
    with pytest.raises(UsageError) as raised:
        PromptBook.of(CLASSES, prompts=path)
    assert str(raised.value) == (
        f"{path}: 'crane' has no prompt; prompt 1 of 'airplane' is empty; "
        "prompt 3 of 'airplane' is not text, got {'x': 'y'}; prompt 1 of '7' is empty"
    )


def test_every_unknown_class_and_bad_template_is_told(tmp_path: Path) -> None:
    path = written(tmp_path, "cranes: a crane\nbus: a bus\n")
    with pytest.raises(UsageError) as raised:
        PromptBook.of(CLASSES, templates=("a photo", "{}"), descriptions={"x": "y", "7": ""}, prompts=path)
    assert str(raised.value) == (
        "template 'a photo' has no {class}, so all classes would look the same; "
        "template '{}' has no {class}, so all classes would look the same; "
        "descriptions: unknown class 'x' (the classes are crane, airplane, 7); "
        "descriptions: '7' is described by nothing; "
        f"{path}: unknown class 'cranes' (did you mean 'crane'?); "
        f"{path}: unknown class 'bus' (the classes are crane, airplane, 7)"
    )
    with pytest.raises(UsageError, match=r"^no template: give at least one, such as 'a photo of a \{class\}'$"):
        PromptBook.of(CLASSES, templates=())
    many = [f"class {i}" for i in range(30)]
    with pytest.raises(UsageError, match=r"unknown class 'x' \(the classes are class 0, .*, class 9 and 20 more\)$"):
        PromptBook.of(many, descriptions={"x": "y"})


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "p.yaml",
            "- a photo\n",
            "does not map classes to prompts: write lines such as `cat: [a photo of a cat]`",
        ),
        ("p.yaml", "", "does not map classes to prompts"),
        ("p.json", "{}", "does not map classes to prompts"),
        ("p.yaml", "cat: [", "cannot be used: it is not YAML: "),
        ("p.json", "cat: a cat", "cannot be used: it is not JSON: "),
    ],
)
def test_a_file_that_holds_no_prompts_is_an_error(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = written(tmp_path, text, name)
    with pytest.raises(UsageError) as raised:
        read_prompts(path)
    assert str(raised.value).startswith(f"{path} {message}")


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^no file .*none\.yaml: give a YAML or JSON file with one line per class$"):
        read_prompts(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes("cat: café".encode("latin-1"))
    for path in (tmp_path, tmp_path / "latin.yaml"):
        with pytest.raises(UsageError, match=f"{path}(:| cannot be used:) (it is a folder|it is not UTF-8 text)"):
            read_prompts(path)


def test_prompts_load_nothing_heavy() -> None:
    script = "import sys, saukit.synthesis.generators.prompts; print({'torch', 'numpy', 'diffusers'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "set()\n"
