"""Take out of a generated text what is no description: thoughts, the prompt, greetings, offers, control tokens."""

from __future__ import annotations

import re

_THOUGHT_TAG = re.compile(
    r"<\s*(/?)\s*(?:think|thinking|thought|thoughts|reasoning|reflection|scratchpad|analysis)\s*>|◁(/?)think▷",
    re.IGNORECASE,
)
_TOKENS = re.compile(r"<\|[^|<>\n]{1,40}\|>|</?s>|<(?:bos|eos|pad|unk|image|end_of_turn|start_of_turn)>|\[/?INST\]")
_ANSWER_TAGS = re.compile(r"</?(?:answer|caption|description|output|response)>", re.IGNORECASE)
_ROLE = re.compile(r"\A\s*(?:assistant|ai|answer|response)\s*(?::|\n)\s*", re.IGNORECASE)
_USER_ROLE = re.compile(r"\A\s*(?:user|human|question|q)\s*(?::|\n)\s*", re.IGNORECASE)

# "Sure! Here's a detailed description of the image:", in several languages, at the beginning.
_AGREES = (
    r"(?:sure(?:\sthing)?|certainly|of\scourse|absolutely|okay|ok|yes|no\sproblem|gladly|great(?:\squestion)?|natürlich|gerne?"
    r"|klar|selbstverständlich|bien\ssûr|certainement|avec\splaisir|d['’]accord|claro(?:\sque\ssí)?|por\ssupuesto|certo"
    r"|certamente|com\scerteza|natuurlijk|zeker|graag|конечно|разумеется|当然(?:可以)?|好的|もちろん(?:です)?|はい|물론(?:입니다|이죠)?)"
)
_HERE_IS = (
    r"(?:here(?:['’]s|\sis|\sare)|below\sis|the\sfollowing\sis|this\sis\sa\s(?:detailed\s)?description|hier\sist|voici"
    r"|aquí\s(?:tienes|está)|ecco|aqui\sestá|hier\sis|вот|以下是|这是|以下は|다음은)"
)
_PREAMBLE = re.compile(
    rf"\A\W*(?:{_AGREES}\s*[!.,:！。，、]+\s*)?{_HERE_IS}[^\n.:：。]{{0,160}}[:：]\s*|\A\W*{_AGREES}\s*[!！]+\s*(?=\S)"
    r"|\A\W*(?:detailed\s|image\s|comprehensive\s)*(?:description|caption|analysis)\s*(?:of\sthe\simage)?\W*:\W*(?=\w)",
    re.IGNORECASE,
)
_RULE = re.compile(r"\A(?:-{3,}|\*{3,})\s*\n|\n\s*(?:-{3,}|\*{3,})\Z")  # a line that set the description apart
# An offer at the end: "Let me know if you'd like more details!"
_OFFER = re.compile(
    r"(?:\A|(?<=[.!?。！？*\n]))\s*(?:(?:please\s)?(?:let\sme\sknow|feel\sfree\sto|don['’]t\shesitate\sto)|(?:i\s)?hope\sthis"
    r"|would\syou\slike\sme\sto|do\syou\s(?:want|need)\sme\sto|is\sthere\sanything"
    r"|if\s(?:you\s(?:need|have|want|would\slike)|you['’]d\slike)[^\n]*(?:let\sme\sknow|feel\sfree|just\sask|i\scan|i['’]d\sbe)"
    r"|(?:sag|lass)\s(?:mir|mich)\b|n['’]hésitez|si\snecesitas|希望这|如果您)[^\n]*\Z",
    re.IGNORECASE,
)


def clean_caption(text: str, prompt: str = "") -> tuple[str, str | None]:
    r"""The description in a generated text, and the flag "thinking" if there is only a thought.

    >>> clean_caption("<think>A dog?</think> Sure! Here's a detailed description:\n\nA dog sits.", "Describe it.")
    ('A dog sits.', None)
    >>> clean_caption("<think>Let me look at the"), clean_caption("Describe it. A dog sits.", "Describe it.")
    (('', 'thinking'), ('A dog sits.', None))
    """
    thoughtless = _without_thoughts(text)
    flag = "thinking" if thoughtless != text and not any(map(str.isalnum, _TOKENS.sub("", thoughtless))) else None
    cleaned = _ANSWER_TAGS.sub("", _TOKENS.sub("", thoughtless))
    cleaned = _ROLE.sub("", _without_prompt(_ROLE.sub("", cleaned), prompt))
    cleaned = _PREAMBLE.sub("", cleaned, count=1)
    cleaned = _OFFER.sub("", cleaned.rstrip())
    return _RULE.sub("", cleaned.strip()).strip(), flag


def _without_thoughts(text: str) -> str:
    """The text outside of thoughts; one without an end goes on to the end, one without a beginning began in the prompt.

    >>> _without_thoughts("<think>a</think>b"), _without_thoughts("b<think>a"), _without_thoughts("a</think>b")
    ('b', 'b', 'b')
    """
    kept: list[str] = []
    end, inside = 0, False
    for tag in _THOUGHT_TAG.finditer(text):
        if tag[1] or tag[2]:  # the end of a thought
            kept = kept if inside else []
            end, inside = tag.end(), False
        elif not inside:
            kept.append(text[end : tag.start()])
            inside = True
    return "".join(kept if inside else [*kept, text[end:]])


def _without_prompt(text: str, prompt: str) -> str:
    """The text without the prompt before it, however spaces and capitals differ."""
    words = prompt.split()
    if not words:
        return text
    start = _USER_ROLE.match(text)
    begin = start.end() if start else 0
    echo = re.compile(r"\s*[\"'“]?" + r"\s+".join(map(re.escape, words)) + r"[\"'”]?\s*", re.IGNORECASE)
    found = echo.match(text, begin)
    return text[found.end() :] if found else text
