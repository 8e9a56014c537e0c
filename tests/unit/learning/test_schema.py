"""Model schemas: what people write, what terms carry, and what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdtchain.errors import ModelError
from crdtchain.learning.schema import ITEM_BYTES, ArraySpec, ModelSchema

array_specs = st.builds(
    ArraySpec,
    name=st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,20}", fullmatch=True),
    dtype=st.sampled_from(sorted(ITEM_BYTES)),
    dims=st.lists(st.integers(1, 2**31 - 1), max_size=8).map(tuple),
)


def test_the_written_form_is_read_with_its_sizes() -> None:
    spec = ArraySpec.parse("weights", "float64[64, 10]")
    assert (spec.dtype, spec.dims, spec.element_count, spec.byte_count) == ("float64", (64, 10), 640, 5120)
    assert str(spec) == "float64[64,10]"


def test_an_array_without_dimensions_is_one_number() -> None:
    spec = ArraySpec.parse("scale", "float32[]")
    assert (spec.dims, spec.element_count, spec.byte_count, str(spec)) == ((), 1, 4, "float32[]")


@given(array_specs)
def test_printing_and_parsing_are_inverse(spec: ArraySpec) -> None:
    assert ArraySpec.parse(spec.name, str(spec)) == spec


@pytest.mark.parametrize(
    "text",
    [
        "", "float64", "float64[", "float64[64,10", "float64[64,,10]", "float64[0]", "float64[-1]", "float64[01]",
        "float64[2147483648]", "float16[1]", "object[1]", "float64[1,1,1,1,1,1,1,1,1]", "float64[1]x", "float64[1.0]",
        "float64[\u0661]", "float64[1]\n", "Float64[1]",
    ],
)  # fmt: skip
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ModelError):
        ArraySpec.parse("a", text)


@pytest.mark.parametrize("name", ["", "-a", ".a", "a/b", "a" * 101, "ä", "a\n"])
def test_names_that_could_mislead_are_refused(name: str) -> None:
    with pytest.raises(ModelError):
        ArraySpec(name, "float64", (1,))


def test_bounds_are_reached_and_not_passed() -> None:
    assert ArraySpec("a", "int8", (2**31 - 1,)).byte_count == 2**31 - 1
    assert len(ArraySpec("a", "int8", (1,) * 8).dims) == 8
    ModelSchema("raw", (ArraySpec("a", "int8", (2**30, 2)),))
    with pytest.raises(ModelError, match="elements"):
        ModelSchema("raw", (ArraySpec("a", "int8", (2**30, 2)), ArraySpec("b", "int8", (1,))))
    ModelSchema("raw", tuple(ArraySpec(f"a{i:03}", "int8", (1,)) for i in range(256)))
    with pytest.raises(ModelError, match="256"):
        ModelSchema("raw", tuple(ArraySpec(f"a{i:03}", "int8", (1,)) for i in range(257)))


def test_a_job_file_may_name_arrays_in_any_order_and_the_schema_sorts_them() -> None:
    schema = ModelSchema.parse("npz", {"weights": "float64[64,10]", "bias": "float64[10]"})
    assert [array.name for array in schema.arrays] == ["bias", "weights"]
    assert (schema.file_name, schema.byte_count) == ("model.npz", 650 * 8)
    assert schema.to_texts() == {"bias": "float64[10]", "weights": "float64[64,10]"}


def test_terms_and_schema_are_inverse() -> None:
    rows = [["bias", "float64", [10]], ["weights", "float64", [64, 10]]]
    schema = ModelSchema.from_terms("npz", [("bias", "float64", [10]), ("weights", "float64", [64, 10])])
    assert schema.to_terms() == rows


@pytest.mark.parametrize(
    ("format", "names"),
    [("pickle", ["a"]), ("npz", []), ("npy", ["a", "b"]), ("npz", ["b", "a"]), ("npz", ["a", "a"])],
)
def test_a_schema_has_one_form(format: str, names: list[str]) -> None:
    with pytest.raises(ModelError):
        ModelSchema.from_terms(format, [(name, "float64", [1]) for name in names])
