"""What a grader is told: OpenAI's six graders as frozen values, with the bounds that OpenAPI shows.

Knows shapes only; what a template, a formula or a source must hold is checked where it is read. The wire's requests are made of
these, and a reinforcement job's method will be.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, ValidationInfo, field_validator

from trainers.spec import Frozen

MAX_TEXT = 2**18
"""Characters of a template, and of a python grader's source: OpenAI's 256 kB."""
Metric = Literal["cosine", "fuzzy_match", "bleu", "gleu", "meteor", "rouge_1", "rouge_2", "rouge_3", "rouge_4", "rouge_5", "rouge_l"]
Name = Annotated[str, Field(max_length=256, description="Name of the grader, for the answer; its type unless given.")]
Template = Annotated[str, Field(max_length=MAX_TEXT, description="Text with references: {{item.answer}}, {{sample.output_text}}.")]
PassThreshold = Annotated[float | None, Field(description="Accepted as OpenAI does, and ignored: a reward is no verdict.")]


class StringCheckGrader(Frozen):
    """Compares two texts: 1 or 0."""

    type: Literal["string_check"]
    name: Name = ""
    input: Template
    reference: Template
    operation: Literal["eq", "ne", "like", "ilike"] = Field(
        description="eq and ne compare; like asks whether input contains reference, ilike the same in any case."
    )


class TextSimilarityGrader(Frozen):
    """Measures how near two texts are: from 0 to 1, cosine from -1."""

    type: Literal["text_similarity"]
    name: Name = ""
    input: Template
    reference: Template
    evaluation_metric: Metric = Field(description="How nearness is measured.")
    pass_threshold: PassThreshold = None


class PythonGrader(Frozen):
    """Runs `grade(sample, item)` of a source in a process without network and files: any finite number."""

    type: Literal["python"]
    name: Name = ""
    source: str = Field(min_length=1, max_length=MAX_TEXT, description="Python source that defines grade(sample, item) -> float.")
    image_tag: Annotated[str, Field(max_length=128)] | None = Field(
        default=None, description="Accepted as OpenAI does, and ignored: the source runs on the service's Python and its standard library."
    )


class TextPart(Frozen):
    """Text of a message."""

    type: Literal["input_text", "output_text"]
    text: Template


class ImagePart(Frozen):
    """An image of a message."""

    type: Literal["input_image"]
    image_url: Template
    detail: Literal["auto", "low", "high"] | None = Field(default=None, description="How closely the model looks.")


class Audio(Frozen):
    """Sound, in base64."""

    data: str = Field(description="The bytes in base64.")
    format: Literal["mp3", "wav"] = Field(description="How the bytes are to be read.")


class AudioPart(Frozen):
    """Sound of a message."""

    type: Literal["input_audio"]
    input_audio: Audio


Part = Annotated[TextPart | ImagePart | AudioPart, Field(discriminator="type")]


class Message(Frozen):
    """One message to the model that grades."""

    role: Literal["user", "assistant", "system", "developer"]
    content: Template | Part | Annotated[list[Template | Part], Field(min_length=1, max_length=64)] = Field(
        description="Text, or parts of text, images and audio."
    )
    type: Literal["message"] | None = None


Messages = Annotated[list[Message], Field(min_length=1, max_length=64, description="What the model is asked, with references.")]
ModelName = Annotated[str, Field(min_length=1, max_length=256, description="A model that TUNESMITH_GRADER_MODELS lists.")]


class SamplingParams(Frozen):
    """How the model that grades is sampled; what is not given is the endpoint's to choose."""

    max_completions_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(default=None, description="Longest answer, in tokens.")
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(default=None, description="0 takes the likeliest token.")
    top_p: Annotated[float, Field(gt=0, le=1)] | None = Field(default=None, description="Share of the probability that is sampled from.")
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = Field(
        default=None, description="Same seed, same answer, if the endpoint can."
    )
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = Field(
        default=None, description="For models that reason."
    )


def _ascending(bounds: list[float]) -> list[float]:
    if bounds[0] >= bounds[1]:
        raise ValueError("must name the lower end first")
    return bounds


class ScoreModelGrader(Frozen):
    """Asks a model for a number, cut to `range`."""

    type: Literal["score_model"]
    name: Name = ""
    model: ModelName
    input: Messages
    range: Annotated[list[float], Field(min_length=2, max_length=2), AfterValidator(_ascending)] | None = Field(
        default=None, description="Lowest and highest score, [0, 1] unless given; what the model answers is cut to it."
    )
    sampling_params: SamplingParams | None = Field(default=None, description="How the model is sampled.")
    pass_threshold: PassThreshold = None

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest score."""
        low, high = self.range or (0.0, 1.0)
        return low, high


Label = Annotated[str, Field(min_length=1, max_length=256)]


class LabelModelGrader(Frozen):
    """Asks a model for one of `labels`: 1 when it is a passing one, else 0. Only inside a multi grader, as OpenAI has it."""

    type: Literal["label_model"]
    name: Name = ""
    model: ModelName
    input: Messages
    labels: Annotated[list[Label], Field(min_length=1, max_length=128)] = Field(description="What the model may answer.")
    passing_labels: Annotated[list[Label], Field(min_length=1, max_length=128)] = Field(description="Those of labels that score 1.")

    @field_validator("passing_labels")
    @classmethod
    def _among_labels(cls, passing: list[str], given: ValidationInfo) -> list[str]:
        if not set(passing) <= set(given.data.get("labels", passing)):
            raise ValueError("must be among 'labels'")
        return passing


def _form(value: Any) -> str:
    """One grader has a type; a map of graders has graders."""
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return "one" if isinstance(kind, str) else "named"


PartGrader = Annotated[
    StringCheckGrader | TextSimilarityGrader | PythonGrader | ScoreModelGrader | LabelModelGrader, Field(discriminator="type")
]
NamedGraders = Annotated[dict[Annotated[str, Field(min_length=1, max_length=64)], PartGrader], Field(min_length=1, max_length=16)]


class MultiGrader(Frozen):
    """Reckons one number from the scores of several graders."""

    type: Literal["multi"]
    name: Name = ""
    graders: Annotated[Annotated[PartGrader, Tag("one")] | Annotated[NamedGraders, Tag("named")], Discriminator(_form)] = Field(
        description="Graders by the names that calculate_output uses, or one grader, which goes by its own name. None may be multi."
    )
    calculate_output: str = Field(
        min_length=1, max_length=4096, description="Formula over the graders' names: + - * / ^, min max abs floor ceil exp sqrt log."
    )

    @property
    def parts(self) -> dict[str, PartGrader]:
        """The graders by the names that the formula knows."""
        return self.graders if isinstance(self.graders, dict) else {self.graders.name: self.graders}


SingleGrader = StringCheckGrader | TextSimilarityGrader | PythonGrader | ScoreModelGrader | LabelModelGrader
Grader = Annotated[StringCheckGrader | TextSimilarityGrader | PythonGrader | ScoreModelGrader | MultiGrader, Field(discriminator="type")]
"""What a request may name; a label_model stands only inside a multi."""
