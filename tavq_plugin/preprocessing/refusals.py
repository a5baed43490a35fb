"""Whether a text refuses to describe its image, in any of a dozen languages.

A text is cut into clauses. It is a refusal if a clause refuses, and what is left after apologies, refusals, reasons and
offers of help describes nothing. So "I can't identify the man, but he wears a blue coat" is a description, and so is
what a sign says: "Sorry! We're closed, reads the sign".
"""

from __future__ import annotations

import re

_MOST_OTHER_WORDS = 3  # of a refusal, outside the clauses below; an ideogram or kana counts as a third of a word

# Ends of clauses: punctuation, and words before which a new thought begins.
_CLAUSES = re.compile(
    r"[.!?;:,…\n。！？；：，、،۔।]+\s*|\s[-–—]\s"
    r"|\s(?=(?:but|however|yet|because|and\si|aber|doch|mais|pero|ma|però|mas|maar|но|ale)\s)",
    re.IGNORECASE,
)
# What a refusal says of itself; each pattern must match somewhere in a clause.
_REFUSES = re.compile(
    r"""
    # English
      (?:^|\b(?:i|we)\s)(?:just\s|really\s|currently\s|also\s|do\s|must\s|have\sto\s)*
        (?:can['’]?t|cannot|can\snot|could\s?n['’]?t|could\snot|won['’]?t|will\snot|decline\sto|do\snot\shave
      |don['’]t\shave)
        \s(?!let\b)
    | \b(?:i['’]?\s?a?m|we['’]?\s?a?re)\s(?:just\s|really\s|currently\s|also\s)?(?:unable|not\s(?:able|allowed
      |comfortable|permitted))
    | \bi\s(?:must|have\sto|will|would\slike\sto)\sdecline\b
    | \byou\s(?:forgot|did\snot|didn['’]t|have\snot|haven['’]t)\b
    | \band\scannot\slook\sat\s(?:images|pictures)
    | ^as\san?\s(?:\w+-based\s)?(?:ai\b|artificial\sintelligence|language\smodel|large\slanguage|text-based)
    | ^(?:and\s|because\s)?i['’]?\s?a?m\s(?:just\s|only\s)?an?\s(?:ai\b|language\smodel|text-based)
    | ^i\s(?:do\snot|don['’]t)\ssee$ | ^(?:i\s)?(?:do\snot|don['’]t)\ssee\s(?:(?:an?|any|the)\s)?(?:image
      |picture|photo)s?\b(?!\sof)
    | ^(?:it\s(?:seems|appears|looks\slike)\s(?:that\s)?)?(?:there\sis\s)?no\simage\s(?:was|is|has|in\sour
      |provided|attached)
    | ^(?:the|your|this)\simage\s(?:could\snot|can['’]?t|cannot)\sbe\s(?:loaded|displayed|processed|opened)
    | ^please\s(?:provide|upload|share|attach|send)\s(?:an?|the|your|it)\b
    | \b(?:violates?|goes\sagainst|conflicts?\swith)\s(?:our|my|the)\s(?:content|safety|usage|guidelines|polic)
    | ^your\srequest\swas\s(?:rejected|denied|blocked)
    # German, Dutch
    | \b(?:ich|wir)\b.*\b(?:kann|können|darf|dürfen|möchte|werde)\b.*\b(?:nichts?|keine\w?)\b
    | \b(?:kann|können|darf|dürfen|möchte|werde)\s(?:ich|wir)\b.*\b(?:nichts?|keine\w?)\b
    | ^als\s(?:ein\w*\s)?(?:ki\b|sprachmodell|ai\b) | \bbin\sich\snicht\sin\sder\slage | ^bitte\s(?:lade|laden|sende)
    | \b(?:ik\s(?:kan|mag|wil)|(?:kan|mag|wil)\sik)\b.*\b(?:niet|geen|niets)\b | ^als\s(?:een\s)?taalmodel
    # French
    | \bje\sne\s(?:peux|suis|saurais|vois)\s(?:\w+\s)?(?:pas|aucune?|en\smesure|vous)
    | ^en\stant\s(?:que|qu['’])\s?(?:modèle|ia\b|intelligence) | ^veuillez\s(?:télécharger|fournir|envoyer|partager)
    # Spanish, Portuguese, Italian
    | \bno\s(?:puedo|soy\scapaz|tengo\sla\scapacidad|me\ses\sposible)\b | ^¿?(?:puedes|podrías|podría|puede)\b
    | ^como\s(?:un\s)?(?:modelo\sde\s(?:lenguaje|linguagem)|ia\b|inteligencia)
    | (?:^|\beu\s|\bmas\s)não\s(?:posso|consigo|sou\scapaz)\b | ^por\sfavor$ | ^(?:por\sfavor,?\s)?(?:env|sub
      |carg)(?:ie|ia|íe|a|e|ue)\b
    | (?:^|\bio\s|\bma\s|\bpurtroppo\s)non\s(?:posso|riesco\sa|sono\sin\sgrado)\b
    # Russian, Polish, Turkish
    | \bя\sне\s(?:могу|способ\w+|в\sсостоянии|вижу\sизображ\w+)\b | \bnie\s(?:mogę|jestem\sw\sstanie)\b
    | (?:görsel|resm|resim|görüntü|fotoğraf|yardımcı)\w*\b.*\b\w*[ae]m[ıi]yorum
    # Chinese, Japanese, Korean
    | (?:我|本模型)?(?:无法|無法|不能|没办法)(?:直接)?(?:描述|提供|查看|看到|帮助|協助|协助|识别|辨认|确认|确定
      |处理|分析|访问|满足)
    | 作为(?:一个)?(?:人工智能|ai|语言模型) | ^请(?:您)?(?:上传|提供|发送)
    | (?:説明|お手伝い|お答え|対応|描写|識別|特定|認識|見ること|分析|提供)(?:は|が|する|を|すること)*(?:は
      |が)?(?:でき(?:ません|ない)|いたしかねます)
    | (?:설명|도움|도와|식별|분석|확인|제공)\S*\s?(?:드릴|할|줄|을|를)?\s?수\s?(?:가\s)?없 | (?:이미지|사진
      |그림)\S*\s볼\s수\s?없
    # Arabic, Hindi
    | لا\s(?:أستطيع|يمكنني)\s(?:المساعدة|وصف|رؤية|التعرف|تقديم) | (?:वर्णन|मदद|सहायता|पहचान|विश्लेषण)\sनहीं\sकर\sसकत
    """,
    re.VERBOSE | re.IGNORECASE,
)
# Apologies, reasons and offers, which come with a refusal and describe nothing.
_AROUND = re.compile(
    r"""^(?:
      (?:but\s|however\s|aber\s|mais\s|pero\s|ma\s|mas\s|maar\s|но\s|ale\s)?
      (?: (?:i['’]m|i\sam|we['’]re)\s(?:really\s|very\s|so\s|truly\s)?(?:sorry|afraid\b(?!\sof))
        | sorry\b(?!-) | (?:my\s|our\s)?apologies$ | i\sapologi[sz]e | unfortunately$ | regrettably$ | i\sregret
        | es\stut\smir\s(?:sehr\s)?leid | leider$ | entschuldigung | het\sspijt\sme
        | (?:je\ssuis\s)?(?:vraiment\s)?désolée?$ | malheureusement$ | lo\ssiento$ | lamentablemente$ | disculp
      | desculpe
        | lamento | mi\sdispiace | purtroppo$ | извините | простите | к\sсожалению | przepraszam | niestety | üzgünüm
        | (?:很|非常|十分)?(?:抱歉|对不起|遗憾) | 申し訳(?:ありません|ございません) | すみません | 죄송 | عذر
      | मुझे\sखेद
        | (?:as|because|since)\s(?:it|this|that|they)\s(?:shows?|contains?|may|might|could|appears?|involves?
      |depicts?|is)\b
        | due\sto\s(?:my|our|the)\s(?:guidelines|polic|content) | because\si | as\sit\s(?:may|might|could)\scontain
        | so\si\s | this\scontent\b | if\syou\s | feel\sfree | let\sme\sknow
      | could\syou\s(?:please\s)?(?:provide|upload|share)
        | can\syou\s(?:please\s)?(?:provide|upload|share) | please\s(?:try|let|feel|check|describe)
      | i['’]?d\sbe\s(?:happy|glad)
        | i\swould\sbe\s(?:happy|glad) | (?:and\s)?i['’]?(?:ll|\swill)\s | is\sthere\sanything | how\scan\si
        | (?:it|this|that)\s(?:violates|goes\sagainst) | (?:and\s)?i\scan\shelp
      )
    )""",
    re.VERBOSE | re.IGNORECASE,
)
_QUOTED = re.compile(r"[\"“„«「『][^\"”“»」』]{2,}[\"”“»」』]")
_WORD = re.compile(r"[\w'’-]+")
_IDEOGRAPH = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]")


def is_refusal(text: str) -> bool:
    """Whether a text refuses to describe its image, and describes nothing of it all the same.

    >>> is_refusal("I'm sorry, but I can't help with that."), is_refusal("Lo siento, no puedo ver la imagen.")
    (True, True)
    >>> is_refusal("Sorry! We're closed, reads the sign."), is_refusal("I can't name him, but he wears a blue coat.")
    (False, False)
    """
    refused, others = False, 0.0
    outside = _QUOTED.sub(" what is quoted there ", text.strip().strip("*_#> "))
    for clause in filter(None, (part.strip() for part in _CLAUSES.split(outside))):
        around, refuses = _AROUND.search(clause), _REFUSES.search(clause)
        refused |= bool(around or refuses)
        if not (around or refuses):
            others += _words(clause)
    return refused and others <= _MOST_OTHER_WORDS


def _words(clause: str) -> float:
    ideographs = len(_IDEOGRAPH.findall(clause))
    return len(_WORD.findall(_IDEOGRAPH.sub(" ", clause))) + ideographs / 3
