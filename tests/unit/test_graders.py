"""The pure parts of graders: references, formulas and metrics, against values from the papers and from the libraries' own pages."""

from __future__ import annotations

import json
import random
import time
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from trainers.graders.check import check
from trainers.graders.formula import FormulaError, parse_formula
from trainers.graders.grade import grade
from trainers.graders.outcome import Errors, Outcome, Refused, Unscored
from trainers.graders.python_grader import PythonLimits
from trainers.graders.similarity import MAX_COMPARED, similarity
from trainers.graders.spec import Grader
from trainers.graders.template import MAX_RENDERED, Rendering, Sample, check_template
from trainers.graders.tools import Tools

ITEM: dict[str, Any] = {"x": "é", "n": 1.5, "yes": True, "none": None, "a": {"b": [{"c": "deep"}, 2]}, "a-b": "dash", "0": "zero"}
SAMPLE = Sample('{"name": "Ann", "tags": ["t"]}', ITEM)
TOOLS = Tools(PythonLimits(256 * 2**20), None, timedelta(seconds=10))
CHECK = {"type": "string_check", "name": "same", "input": "{{sample.output_text}}", "reference": "{{item.x}}", "operation": "eq"}


def grader(**fields: Any) -> Any:
    return TypeAdapter(Grader).validate_python(fields)


async def outcome(sample: str = "é", **fields: Any) -> Outcome:
    return await grade(grader(**fields), Sample(sample, ITEM), TOOLS)


# --- templates ---


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("", ""),
        ("plain } {% if %} {# no #} { {item.x} }", "plain } {% if %} {# no #} { {item.x} }"),
        ("{{item.x}}", "é"),
        ("<{{ item.x }}|{{\titem.n\n}}>", "<é|1.5>"),
        ("{{item.yes}} {{item.none}}", "true null"),
        ("{{item.a.b[0].c}} {{item.a.b[1]}} {{item.a.b}}", 'deep 2 [{"c": "deep"}, 2]'),
        ("{{item.a-b}}{{item.0}}", "dashzero"),
        ("{{sample.output_json.name}} {{sample.output_json.tags[0]}}", "Ann t"),
        ("{{sample.output_text}}", SAMPLE.output_text),
        ("{{sample.output_json}}", '{"name": "Ann", "tags": ["t"]}'),
    ],
)
def test_references_are_filled_in(text: str, filled: str) -> None:
    check_template(text, "input")
    assert Rendering(SAMPLE).fill(text) == filled


NO_REFERENCES = ("{{", "{{item", "{{}}", "{{item}}", "{{sample}}", "{{ item[0] }}", "{{thing.x}}", "{{item.x|upper}}",
                 "{{item.x + 1}}", "{{item.x()}}", "{{item.__class__ .x}}", "{{sample.output_tools}}",
                 "{{sample['output_text']}}", "{{{{item.x}}}}",
                 "{{item..x}}", "{{item.a[-1]}}", "{{item.a[9999999999]}}", "{{ 7*7 }}", "{{''.__class__}}")  # fmt: skip


@pytest.mark.parametrize("text", NO_REFERENCES)
def test_what_is_no_reference_is_refused_beforehand_and_an_invalid_variable_later(text: str) -> None:
    with pytest.raises(Refused) as refused:
        check_template(text, "graders.a.input")
    assert refused.value.field == "graders.a.input"
    with pytest.raises(Unscored) as unscored:
        Rendering(SAMPLE).fill(text)
    assert unscored.value.errors == Errors(invalid_variable_error=True)


@pytest.mark.parametrize(
    "path", ["item.y", "item.x.y", "item.a.b[2]", "item.a[0]", "item.x[0]", "item.__class__", "sample.output_json.age"]
)
def test_references_that_lead_to_nothing(path: str) -> None:
    with pytest.raises(Unscored) as unscored:
        Rendering(SAMPLE).fill(f"{{{{{path}}}}}")
    assert unscored.value.errors == Errors(invalid_variable_error=True)


@pytest.mark.parametrize(
    "text", ["", "no", "{", "NaN", '{"a": NaN}', "[" * 100_000, "[" * 101 + "]" * 101, '"\\ud800"', '{"a":' * 5000, "1" * 5000]
)
def test_a_sample_that_is_not_json(text: str) -> None:
    with pytest.raises(Unscored) as unscored:
        Rendering(Sample(text)).fill("{{sample.output_json}}")
    assert unscored.value.errors == Errors(sample_parse_error=True)


def test_a_text_may_not_grow_without_bound() -> None:
    sample = Sample("x" * 1000)
    assert len(Rendering(sample).fill("{{sample.output_text}}" * 1000)) == 1_000_000
    rendering = Rendering(sample)
    rendering.fill("{{sample.output_text}}" * 1000)
    with pytest.raises(Unscored) as unscored:  # the texts of one grading share the room
        rendering.fill("{{sample.output_text}}" * 100)
    assert unscored.value.errors == Errors(truncated_observation_error=True)
    began = time.monotonic()
    for text in ("{{" * 131_072, "{{item.x}}" * 26_000, "{{item" + ".a" * 131_000 + "}}", "{{ " + " " * 262_000):
        with pytest.raises((Unscored, AssertionError)):
            assert len(Rendering(sample).fill(text)) > MAX_RENDERED
    assert time.monotonic() - began < 2


@given(st.text(alphabet="{}item.sample_output[0]x \n", max_size=60))
def test_no_text_breaks_the_renderer(text: str) -> None:
    try:
        check_template(text, "input")
        Rendering(SAMPLE).fill(text)
    except (Refused, Unscored):
        pass


# --- formulas ---


@pytest.mark.parametrize(
    ("formula", "value"),
    [
        ("1 + 2 * 3", 7), ("(1 + 2) * 3", 9), ("2 ^ 3 ^ 2", 512), ("2 ** 3", 8), ("-2 ^ 2", -4), ("2 ^ -1", 0.5), ("--1", 1),
        ("7 / 2 / 2", 1.75),
        ("1 - 2 - 3", -4), (".5 + 1e-1 + 2.", 2.6), ("a * 0.7 + b_2 * 0.3", 0.85), ("min(a, b_2, 3) + max(1, 2)", 2.5),
        ("floor(1.9) + ceil(0.1) + abs(-3)", 5), ("exp(log(2)) + sqrt(16)", 6), ("min + 1", 5), ("0 * (a + b_2)", 0),
    ],
)  # fmt: skip
def test_formulas(formula: str, value: float) -> None:
    assert parse_formula(formula).value({"a": 1.0, "b_2": 0.5, "min": 4.0}) == pytest.approx(value)


@pytest.mark.parametrize(
    "formula",
    ["", " ", "1 +", "(1", "1)", "1 2", "a b", "a.b", "f(1)", "min()", "abs(1, 2)", "1 +* 2", "'a'", "a[0]", "a = 1", "1;2", "é", "0x10",
     "1_000", "__import__('os')", "lambda: 1", "a if b else c", "(" * 2000 + "1" + ")" * 2000, "2^" * 1000 + "1",
     "abs(" * 1000 + "1" + ")" * 1000],
)  # fmt: skip
def test_formulas_that_cannot_be_read(formula: str) -> None:
    with pytest.raises(FormulaError):
        parse_formula(formula)


@pytest.mark.parametrize(
    "formula", ["1/0", "1/a", "sqrt(-1)", "log(0)", "(-1)^0.5", "exp(1000)", "9^9^9", "1e308*10", "1e400", "0^-1", "1e999-1e999"]
)
def test_formulas_without_a_value(formula: str) -> None:
    with pytest.raises(FormulaError):
        parse_formula(formula).value({"a": 0.0})


def test_the_longest_formulas_take_no_time_and_no_stack() -> None:
    began = time.monotonic()
    assert parse_formula("1" + "+1" * 2047).value({}) == 2048
    assert parse_formula("-" * 4095 + "1").value({}) == -1
    assert parse_formula("max(" + "1," * 2040 + "2)").value({}) == 2
    assert time.monotonic() - began < 1


@given(st.text(alphabet="0123456789.e+-*/^(), abminsqrt_", max_size=60))
def test_no_text_breaks_the_formula(text: str) -> None:
    try:
        formula = parse_formula(text)
        formula.value(dict.fromkeys(formula.names, 0.5))
    except FormulaError:
        pass


# --- metrics ---

GUIDE = "It is a guide to action which ensures that the military always obeys the commands of the party"
REFERENCE = "It is a guide to action that ensures that the military will forever heed Party commands"
TROOPS = "It is to insure the troops forever hearing the activity guidebook that party direct"
FOX, DOG = "The quick brown fox jumps over the lazy dog", "The quick brown dog jumps on the log."


@pytest.mark.parametrize(
    ("metric", "text", "reference", "value"),
    [
        # rapidfuzz' documentation of fuzz.ratio: 96.55
        ("fuzzy_match", "this is a test", "this is a test!", 28 / 29),
        # Papineni et al. 2002 by hand: 5/6, 3/5, 1/4 and, smoothed (Chen & Cherry 2014, method 3), 1/(2*3)
        ("bleu", "the cat sat on the mat", "the cat is on the mat", (5 / 6 * 3 / 5 * 1 / 4 * 1 / 6) ** 0.25),
        ("bleu", "the cat", "the cat", 1),
        # NLTK's documentation of sentence_gleu
        ("gleu", GUIDE, REFERENCE, 0.4393939),
        ("gleu", TROOPS, REFERENCE, 0.1206896),
        ("gleu", "the the the the the the the", "the cat is on the mat", 0.0909090),
        # NLTK's documentation of single_meteor_score; Lavie & Agarwal 2007 by hand: six matches in one chunk
        ("meteor", GUIDE, REFERENCE, 0.6944444),
        ("meteor", "the cat sat on the mat", "the cat sat on the mat", 1 - 0.5 / 6**3),
        ("meteor", "it ensures", "it ensured", 1 - 0.5 / 2**3),  # by stem
        ("meteor", "non matching hypothesis", "this is a cat", 0),
        ("meteor", "car", "automobile", 0),  # synonyms are not matched
        # Lin 2004, section 3: S2 and S3 of "police killed the gunman"
        ("rouge_l", "police kill the gunman", "police killed the gunman", 3 / 4),
        ("rouge_l", "the gunman kill police", "police killed the gunman", 2 / 4),
        ("rouge_2", "police kill the gunman", "police killed the gunman", 1 / 3),
        # rouge-score's documentation: P 0.75, R 0.666 with its stemmer, which changes nothing here
        ("rouge_1", DOG, FOX, 2 * 6 / (8 + 9)),
        ("rouge_5", FOX, FOX, 1),
    ],
)
def test_metrics(metric: str, text: str, reference: str, value: float) -> None:
    assert similarity(metric, text, reference) == pytest.approx(value, abs=1e-6)


def test_rouge_l_is_that_of_rouge_score() -> None:
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer

    scorer, draw = RougeScorer(["rougeL"], tokenizer=DefaultTokenizer()), random.Random(1)
    for _ in range(200):
        text, reference = (" ".join(draw.choices("abcd", k=draw.randrange(20))) for _ in range(2))
        assert similarity("rouge_l", text, reference) == pytest.approx(scorer.score(reference, text)["rougeL"].fmeasure)


METRICS = ("fuzzy_match", "bleu", "gleu", "meteor", "rouge_1", "rouge_2", "rouge_3", "rouge_4", "rouge_5", "rouge_l")


@pytest.mark.parametrize("metric", METRICS)
def test_metrics_at_their_limits(metric: str) -> None:
    words = " ".join("abcdefghij"[n * n % 10] for n in range(MAX_COMPARED // 2))
    began = time.monotonic()
    for text, reference in (
        ("", ""),
        ("", "a"),
        ("a", ""),
        ("\u3000", "\u200b"),
        (words, words[::-1]),
        ("y" * MAX_COMPARED, "ys" * 30_000),
    ):
        assert 0 <= similarity(metric, text, reference) <= 1
    assert time.monotonic() - began < 10


def test_bleu_keeps_no_text() -> None:
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    similarity("bleu", "a b", "a c")
    assert Tokenizer13a.__call__.cache_info().currsize == 0


# --- graders ---


@pytest.mark.parametrize(
    ("operation", "text", "reference", "score"),
    [
        ("eq", "é", "é", 1), ("eq", "É", "é", 0), ("ne", "É", "é", 1), ("ne", "é", "é", 0), ("like", "a café", "café", 1),
        ("like", "a CAFÉ", "café", 0), ("like", "café", "a café", 0), ("ilike", "a CAFÉ", "café", 1), ("ilike", "tea", "café", 0),
        ("like", "100%", "0%", 1), ("like", "abc", "a%c", 0),
    ],
)  # fmt: skip
async def test_string_check(operation: str, text: str, reference: str, score: float) -> None:
    fields = CHECK | {"operation": operation, "reference": reference}
    assert (await outcome(text, **fields)).reward == score


def multi(formula: str, **graders: Any) -> dict[str, Any]:
    return {"type": "multi", "graders": graders, "calculate_output": formula}


async def test_a_multi_grader_reckons_with_its_parts() -> None:
    near = {"type": "text_similarity", "input": "this is a test", "reference": "this is a test!", "evaluation_metric": "fuzzy_match"}
    graded = await outcome("é", **multi("0.5 * same + near / 2", same=CHECK, near=near))
    assert graded.reward == pytest.approx(0.5 + 14 / 29)
    assert graded.sub_rewards == pytest.approx({"same": 1, "near": 28 / 29})
    single = await outcome("é", type="multi", graders=CHECK, calculate_output="1 - same")
    assert (single.reward, single.sub_rewards, single.errors) == (0, {"same": 1.0}, Errors())


async def test_a_part_without_a_score_leaves_the_whole_without_one() -> None:
    broken = CHECK | {"input": "{{sample.output_json.x}}"}
    graded = await outcome("no JSON", **multi("1 - a + b", a=broken, b=CHECK))
    assert (graded.reward, graded.sub_rewards, graded.errors) == (0, {"b": 0.0}, Errors(sample_parse_error=True))


async def test_formulas_that_fail_are_told_apart() -> None:
    assert (await outcome(**multi("a +", a=CHECK))).errors == Errors(formula_parse_error=True)
    assert (await outcome(**multi("a + b", a=CHECK))).errors == Errors(formula_parse_error=True)
    graded = await outcome(**multi("1 / (a - 1)", a=CHECK))
    assert (graded.errors, graded.reward, graded.sub_rewards) == (Errors(other_error=True), 0, {"a": 1.0})


async def test_a_text_too_long_to_compare_has_no_score() -> None:
    fields = {"type": "text_similarity", "input": "{{sample.output_text}}", "reference": "a", "evaluation_metric": "rouge_l"}
    assert (await outcome("a" * MAX_COMPARED, **fields)).errors == Errors()
    assert (await outcome("a" * (MAX_COMPARED + 1), **fields)).errors == Errors(truncated_observation_error=True)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        (CHECK | {"reference": "{{item}}"}, "reference"),
        (multi("a", a=CHECK, b=CHECK | {"input": "{{nothing.x}}"}), "graders.b.input"),
        (multi("a + c", a=CHECK), "calculate_output"),
        (multi("a +", a=CHECK), "calculate_output"),
        ({"type": "multi", "graders": CHECK | {"input": "{{"}, "calculate_output": "same"}, "graders.input"),
        (CHECK | {"type": "text_similarity", "evaluation_metric": "cosine", "operation": ...}, "evaluation_metric"),
        ({"type": "score_model", "model": "m", "input": [{"role": "user", "content": "x"}]}, "type"),
    ],
)
async def test_what_no_sample_could_be_graded_with_is_refused(fields: dict[str, Any], field: str) -> None:
    given = {name: value for name, value in fields.items() if value is not ...}
    with pytest.raises(Refused) as refused:
        await check(grader(**given), TOOLS)
    assert refused.value.field == field
    assert refused.value.message.endswith(".")


async def test_a_good_grader_passes_the_check() -> None:
    await check(grader(**multi("same ^ 2", same=CHECK)), TOOLS)


def test_errors_add_up() -> None:
    one, other = Errors(other_error=True), Errors(python_grader_runtime_error=True, python_grader_runtime_error_details="why")
    assert json.dumps(vars(one | other)).count("true") == 2
    assert (one | other).python_grader_runtime_error_details == "why"
    assert not Errors()
    assert len(vars(Errors())) == 14
