"""The report of `tavq doctor`: what was found, and its lines of plain text."""

from __future__ import annotations

from dataclasses import dataclass, field

from tavq_plugin.hosts.summary import GRADIENT

PLACES = ("stem", "codebook", "head")  # where the gradient norm is read


@dataclass
class Findings:
    """What one examination found. A problem prevents a training step, and states its fix; a note does not."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class Report(Findings):
    """All that `examine` found."""

    host: str = ""
    adapter: str | None = None
    quantizer: str | None = None
    taps: list[str] = field(default_factory=list)
    image: list[int] = field(default_factory=list)  # h w of the images, pixels
    levels: list[list[int]] = field(default_factory=list)  # b h w of each level's indices, fine to coarse
    codebook: list[int] | None = None  # k c
    table: str = ""  # which tensor it is, if that had to be found or was named
    grad_to: str | None = None
    gradient: dict[str, dict[str, float]] = field(default_factory=dict)  # granularity → norm at stem, codebook, head
    text: dict[str, float] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether a training step would work."""
        return not self.problems

    def add(self, findings: Findings) -> None:
        """Add the problems and notes of one examination."""
        self.problems += findings.problems
        self.notes += findings.notes


def lines(report: Report) -> list[str]:
    """The report as lines of plain text."""
    out = [f"host       {report.host}"]
    if report.adapter:
        out += [f"adapter    {report.adapter}", f"quantizer  {report.quantizer}"]
        out += [f"tap {i}      {path}" for i, path in enumerate(report.taps, 1)]
        codebook = "not explicit" if report.codebook is None else "×".join(map(str, report.codebook))
        codebook += f" ({report.table})" if report.table else ""
        out += [f"codebook   {codebook}", f"gradient   {GRADIENT.get(report.grad_to or '', 'unknown')}"]
    if report.levels:
        on = f"images of {'×'.join(map(str, report.image))} pixels" if report.image else "example images"
        out += [f"grids      {', '.join('×'.join(map(str, level[1:])) for level in report.levels)} ({on})"]
    if report.gradient:
        out += ["gradient norm of the alignment with random text, at the encoder's stem, the codebook and the head:"]
        out += ["           " + "".join(f"{place:>10}" for place in PLACES)]
        out += [
            f"  {name:9}" + "".join(f"{norms[place]:10.2e}" for place in PLACES)
            for name, norms in report.gradient.items()
        ]
    if report.text:
        shown = {name.replace("s_a_text", "s per text").replace("_", " "): value for name, value in report.text.items()}
        out += ["text       " + ", ".join(f"{value:g} {name}" for name, value in shown.items())]
    out += [f"note       {_one_line(note)}" for note in report.notes]
    out += [f"PROBLEM    {_one_line(problem)}" for problem in report.problems]
    return [*out, "a training step would work" if report.ok else "a training step would NOT work"]


def _one_line(text: str) -> str:
    return " ".join(text.split())
