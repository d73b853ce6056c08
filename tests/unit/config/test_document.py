import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tunneld.config.document import MAX_VALUES, Document, parse

LOADERS = [getattr(yaml, "CSafeLoader", yaml.SafeLoader), yaml.SafeLoader]


@pytest.fixture(params=LOADERS, ids=lambda loader: loader.__name__)
def loader(request: pytest.FixtureRequest) -> type:
    return request.param


def read(text: str | bytes, loader: type) -> Document:
    return parse(text if isinstance(text, bytes) else text.encode(), loader=loader)


def test_scalars_stay_the_text_that_they_are(loader: type) -> None:
    text = "a: on\nb: 60:00\nc: 0660\nd: 1e3\ne: 2026-01-01\nf: ~\ng:\nh: ''\ni: 'null'\nj: 0x10\n"
    found = read(text, loader)
    assert not found.faults
    assert found.root is not None
    assert found.root.plain() == {
        "a": "on",
        "b": "60:00",
        "c": "0660",
        "d": "1e3",
        "e": "2026-01-01",
        "f": None,
        "g": None,
        "h": "",
        "i": "null",
        "j": "0x10",
    }


def test_each_value_knows_the_line_of_its_key(loader: type) -> None:
    root = read("\ufeff# head\na:\n  b:\n    - c: 1\n    -\n      d: 2\ne: {f: 1,\n  g: 2}\n", loader).root
    assert root is not None
    lines = {}

    def walk(node, path):  # type: ignore[no-untyped-def]
        lines[path] = node.line
        if isinstance(node.value, dict):
            for key, item in node.value.items():
                walk(item, f"{path}.{key}")
        elif isinstance(node.value, list):
            for index, item in enumerate(node.value):
                walk(item, f"{path}[{index}]")

    walk(root, "")
    assert lines == {
        "": 2,
        ".a": 2,
        ".a.b": 3,
        ".a.b[0]": 4,
        ".a.b[0].c": 4,
        ".a.b[1]": 6,
        ".a.b[1].d": 6,
        ".e": 7,
        ".e.f": 7,
        ".e.g": 8,
    }


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, 'the key "a" stands on line 1 already'),
        ("a: {b: 1, b: 2}\n", 1, 'the key "b" stands on line 1 already'),
        ("a:\n\tb: 1\n", 2, "a tab stands"),
        ("a: b: c\n", 1, "not valid YAML"),
        ("a: [1\nb: 2\n", 2, "not valid YAML"),
        ("a: 1\n---\nb: 1\n", 2, "a second document"),
        ("a: !!python/object:os.system x\n", 1, "a tag"),
        ("a: !secret x\n", 1, "a tag"),
        ("a: &x [*x]\n", 1, "stands inside what it repeats"),
        ("a: *x\n", 1, "no such anchor"),
        ("a: 1\n<<: {b: 1}\n", 2, "merge keys"),
        ("? [a]\n: b\n", 1, "expected a word as key"),
        ("a: 1\n~: b\n", 2, "a key is missing"),
        ("a: \x07\n", 1, "control character U+0007"),
        ("a: 1\nb: \x00\n", 2, "control character U+0000"),
        (b"a: 1\nb: \xff\n", 2, "expected UTF-8 text, not the byte 0xff"),
        ("[" * 100_000, 1, "nested deeper than 32"),
        ("{" * 100_000, 1, "nested deeper than 32"),
        ("- " * 100_000, 1, "nested deeper than 32"),
    ],
)
def test_faults_have_a_line(text: str | bytes, line: int, words: str, loader: type) -> None:
    found = read(text, loader).faults
    assert any(words in fault for _, fault in found), found
    assert found[0][0] == line


def test_aliases_repeat_values_within_bounds(loader: type) -> None:
    found = read("a: &x {b: &y 1, c: 2}\nd: *x\ne: [*y, *y]\n", loader)
    assert not found.faults
    assert found.root is not None
    assert found.root.plain() == {"a": {"b": "1", "c": "2"}, "d": {"b": "1", "c": "2"}, "e": ["1", "1"]}


def test_an_alias_bomb_is_not_expanded(loader: type) -> None:
    rows = ["x0: &x0 [a, a, a, a, a, a, a, a, a]"]
    rows += [f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 9)}]" for i in range(1, 12)]
    assert f"at most {MAX_VALUES} values" in read("\n".join(rows), loader).faults[0][1]


def test_aliases_cannot_nest_without_end(loader: type) -> None:
    rows = ["x0: &x0 [a]"] + [f"x{i}: &x{i} [*x{i - 1}]" for i in range(1, 500)]
    assert "nested deeper than 32" in read("\n".join(rows), loader).faults[0][1]


def test_nothing_is_no_fault(loader: type) -> None:
    for text in ("", "# only a comment\n", "---\n...\n"):
        found = read(text, loader)
        assert not found.faults
        assert found.root is None or found.root.value is None


yamlish = st.text(alphabet="ab:-[]{}&*!|>'\"#%@`,? \n\t\\0~<.\u00e9\u2028\x85", max_size=60)


@given(st.one_of(st.binary(max_size=80), yamlish.map(str.encode)))
def test_any_bytes_are_a_document(data: bytes) -> None:
    for loader in LOADERS:
        found = parse(data, loader=loader)
        assert all(line >= 1 and text and "\n" not in text for line, text in found.faults), found.faults
        assert not found.broken or found.faults
        if found.root is not None:
            found.root.plain()
