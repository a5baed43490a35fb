"""Whether a text refuses to describe its image, in any of fifteen languages.

A text is cut into clauses. A clause refuses if it has one of the turns of phrase below, or if it speaks of the writer
and denies something. The text is a refusal if what is left after apologies, refusals, reasons and offers of help
describes nothing. So "I can't identify the man, but he wears a blue coat" is a description, and so is what a sign says:
"Sorry! We're closed, reads the sign".
"""

from __future__ import annotations

import re

_MOST_OTHER_WORDS = 3  # of a refusal, outside the clauses below; an ideogram or kana counts as a third of a word
_LONGEST_CLAUSE = 300  # characters of a clause that are compared with the rules
_LOOKED_AT = 4000  # characters from the beginning; a longer text describes something, or repeats itself

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
      (?:^|\bi\s|^(?:\w+\s)?we\s)(?:just\s|really\s|currently\s|also\s|do\s|must\s|have\sto\s)*
        (?:can['’]?t|cannot|can\snot|could\s?n['’]?t|could\snot|won['’]?t|will\snot|decline\sto|do\snot\shave
      |don['’]t\shave)
        \s(?!let\b|help\s(?:but|smiling|laughing|noticing|wondering|feeling)\b)
    | \b(?:i['’]?\s?a?m|we['’]?\s?a?re)\s(?:just\s|really\s|currently\s|also\s)?(?:unable|not\s(?:able|allowed
      |comfortable|permitted))
    | \bi\s(?:must|have\sto|will|would\slike\sto)\sdecline\b
    | \bi\s?(?:have\sno\s|lack\s|would\snot\s|wouldn['’]t\s|['’]?d\s(?:rather|prefer)\snot|(?:do\snot
      |don['’]t)\s(?:feel|think\sit))
    | \bi\s?(?:am|['’]m)\snot\s(?:going|programmed|designed|trained)\b | \b(?:not\sappropriate|inappropriate)\b
    | ^(?:this|that|your|the)\s(?:request|prompt|content|image|picture|photo)\s(?:\w+\s){0,2}
      (?:(?:can|could|was|is|has|does)(?:\snot\b|n['’]t\b|not\b)|cannot|flagged|blocked|rejected|denied|unsafe)
    | \bagainst\s(?:my|our)\s | ^(?:something\swent|an\s(?:unexpected\s|internal\s)?error\s(?:has\s)?occurred)
    | \byou\s(?:forgot|did\snot|didn['’]t|have\snot|haven['’]t)\b
    | \band\scannot\slook\sat\s(?:images|pictures)
    | ^as\san?\s(?:\w+-based\s)?(?:ai\b|artificial\sintelligence|language\smodel|large\slanguage|text-based)
    | ^(?:and\s|because\s)?i['’]?\s?a?m\s(?:just\s|only\s)?an?\s(?:ai\b|language\smodel|text-based)
    | ^i\s(?:do\snot|don['’]t)\ssee$ | ^(?:i\s)?(?:do\snot|don['’]t)\ssee\s(?:(?:an?|any|the)\s)?(?:image
      |picture|photo)s?\b(?!\sof)
    | ^(?:it\s(?:seems|appears|looks\slike)\s(?:that\s)?)?(?:there\sis\s)?no\s(?:image|picture|photo)\s(?:came
      |was|has|in\sour|provided|attached|is(?:$|\s(?:attached|provided|given|visible|available|shown|included|there)))
    | ^(?:the|your|this)\simage\s(?:could\snot|can['’]?t|cannot)\sbe\s(?:loaded|displayed|processed|opened)
    | ^please\s(?:provide|upload|share|attach|send)\s(?:an?|the|your|it)\b
    | \b(?:violates?|goes\sagainst|conflicts?\swith)\s(?:our|my|the)\s(?:content|safety|usage|guidelines|polic)
    | ^your\srequest\swas\s(?:rejected|denied|blocked)
    # German, Dutch
    | \b(?:ich|wir)\b.*\b(?:kann|können|darf|dürfen|möchte|werde)\b.*\b(?:nichts?|keine\w?)\b
    | \b(?:kann|können|darf|dürfen|möchte|werde)\s(?:ich|wir)\b.*\b(?:nichts?|keine\w?)\b
    | \bich\ssehe\s(?:hier\s|leider\s)*kein\w*\s(?:bild|foto) | \bkein\w*\s(?:bild
      |foto)\s(?:\w+\s){0,2}(?:angehängt|hochgeladen|vor)\b
    | ^(?:könntest|könnten|kannst|können)\s(?:du|sie)\b | \bik\szie\sgeen\s(?:afbeelding|foto)
    | ^als\s(?:ein\w*\s)?(?:ki\b|sprachmodell|ai\b) | \bbin\sich\snicht\sin\sder\slage | ^bitte\s(?:lade|laden|sende)
    | \b(?:ik\s(?:kan|mag|wil)|(?:kan|mag|wil)\sik)\b.*\b(?:niet|geen|niets)\b | ^als\s(?:een\s)?taalmodel
    # French
    | \bje\sne\s(?:peux|suis|saurais|vois)\s(?:\w+\s)?(?:pas|aucune?|en\smesure|vous)
    | \baucune\s(?:image|photo)\sn['’] | ^(?:pourriez|pouvez|peux|pourrais)[\s-](?:vous|tu)\b
      | ^en\stant\s(?:que|qu['’])\s?(?:modèle|ia\b|intelligence) | ^veuillez\s(?:télécharger|fournir|envoyer|partager)
    # Spanish, Portuguese, Italian
    | \bno\s(?:puedo|soy\scapaz|tengo\sla\scapacidad|me\ses\sposible)\b | ^¿?(?:puedes|podrías|podría|puede)\b
    | \bno\s(?:veo|hay|se\sha\w*)\s(?:\w+\s){0,2}(?:imagen|foto) | \bnão\s(?:vejo|há)\s(?:nenhuma\s
      |qualquer\s)?(?:imagem|foto)\s?(?:anexad|$)
    | \bnon\s(?:vedo\s(?:alcuna|nessuna)|ho\s(?:la\spossibilità|accesso|la\scapacità))
      | ^come\s(?:un\s)?(?:modello|ia\b|intelligenza)
    | ^(?:potresti|potrebbe|puoi|poderia|pode)\b | ^como\s(?:un\s)?(?:modelo\sde\s(?:lenguaje|linguagem)|ia\b
      |inteligencia)
    | (?:^|\beu\s|\bmas\s)não\s(?:posso|consigo|sou\scapaz)\b | ^por\sfavor$ | ^(?:por\sfavor,?\s)?(?:env|sub
      |carg)(?:ie|ia|íe|a|e|ue)\b
    | (?:^|\bio\s|\bma\s|\bpurtroppo\s)non\s(?:posso|riesco\sa|sono\sin\sgrado)\b
    # Russian, Polish, Turkish
    | \bя\sне\s(?:могу|способ\w+|в\sсостоянии|вижу\sизображ\w+)\b | \bnie\s(?:mogę|jestem\sw\sstanie)\b
    | (?:görsel|resm|resim|görüntü|fotoğraf|yardımcı)\w*\b.*\b\w*[ae]m[ıi]yorum
    # Chinese, Japanese, Korean
    | (?:我|本模型)?(?:无法|無法|不能|没办法)(?:直接)?(?:描述|提供|查看|看到|帮助|協助|协助|识别|辨认|确认|确定
      |处理|分析|访问|满足)
    | (?:没有|沒有|未)(?:看到|收到|提供)(?:任何)?(?:图片|图像|照片) | 重新上传 | 违反 | 作为(?:一个)?(?:人工智能
      |ai|语言模型) | ^请(?:您)?(?:上传|提供|发送)
    | (?:説明|お手伝い|お答え|対応|描写|識別|特定|認識|見ること|分析|提供)(?:は|が|する|を|すること)*(?:は
      |が)?(?:でき(?:ません|ない)|いたしかねます)
    | (?:설명|도움|도와|식별|분석|확인|제공)\S*\s?(?:드릴|할|줄|을|를)?\s?수\s?(?:가\s)?없 | (?:이미지|사진
      |그림)\S*\s볼\s수\s?없
    | (?:画像|写真)(?:が|を|は)?(?:確認|表示|読み込|開く|拝見|見)\S*(?:でき(?:ません|ない)|見え(?:ません|ない))
      | アップロードして(?:ください|いただ)
    | 다시\s(?:올려|업로드) | ^(?:이미지|사진)\S{0,2}\s(?:없|첨부되지)
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
        | sorry\b(?!-|\sis\b) | (?:my\s|our\s)?apologies$ | i\sapologi[sz]e | unfortunately$ | regrettably$ | i\sregret
        | es\stut\smir\s(?:sehr\s)?leid | leider$ | entschuldigung | het\sspijt\sme
        | (?:je\ssuis\s)?(?:vraiment\s)?désolée?$ | malheureusement$ | lo\ssiento$ | lamentablemente$ | disculp
      | desculpe
        | lamento | mi\sdispiace | purtroppo$ | извините | простите | к\sсожалению | przepraszam | niestety | üzgünüm
        | (?:很|非常|十分)?(?:抱歉|对不起|遗憾) | 申し訳(?:ありません|ございません) | すみません | 죄송 | عذر
      | मुझे\sखेद
        | (?:as|because|since)\s(?:it|this|that|they)\s(?:shows?|contains?|may|might|could|appears?|involves?
      |depicts?|is)\b
        | (?:this|the)\s\w+\s(?:shows|contains|has|includes)\s(?:sensitive|explicit|inappropriate)\b
      | due\sto\s(?:my|our|the)\s(?:guidelines|polic|content) | because\si | as\sit\s(?:may|might|could)\scontain
        | so\si\s | this\scontent\b | if\syou\s | feel\sfree | let\sme\sknow
      | could\syou\s(?:please\s)?(?:provide|upload|share)
        | can\syou\s(?:please\s)?(?:provide|upload|share) | please\s(?:try|let|feel|check|describe)
      | i['’]?d\sbe\s(?:happy|glad)
        | i\swould\sbe\s(?:happy|glad) | (?:and\s)?i['’]?(?:ll|\swill)\s | is\sthere\sanything | how\scan\si
        | (?:but\s)?the\suser\s(?:may|can|could|should)\s
        | (?:it|this|that)\s(?:violates|goes\sagainst) | (?:and\s)?i\scan\shelp
      )
    )""",
    re.VERBOSE | re.IGNORECASE,
)
# A clause that speaks of the writer and denies something refuses, whatever its verb.
_NEGATED = re.compile(
    r"""\b(?:not|no|never|cannot|can['’]?t|\w+n['’]t|unable|decline|prevents?|only\swork|nicht|keine?\w*
      |verstößt|ne|pas
      |aucune?|non|não|nenhum\w*|niet|geen|не|нет|nie|değil)\b | \bn['’] | [ae]m[ıi]yor | 不|没|沒|无|無 | ません|ない
      | 없|않|못 | (?:^|\s)لا\s | नहीं""",
    re.VERBOSE | re.IGNORECASE,
)
_OF_THE_WRITER = re.compile(
    r"""\b(?:i|i['’]\w+|my|me|ich|mir|mich|meine?\w*|unsere?\w*|je|j['’]\w+|ik|mij|mijn|я|мне|мои|puedo|tengo
      |voy|estoy|soy
      |posso|riesco|consigo|tenho|vou|sou|estou|mogę|jestem)\b | \bje\s | \bj['’] | 我(?!们|們) | 私 | (?:^
      |\s)(?:저|제)[는가]?\s""",
    re.VERBOSE | re.IGNORECASE,
)
_SEES = re.compile(  # or is moved by what they see
    r"\b(?:i|we)\s(?:can\s)?(?:clearly\s)?(?:see|notice|observe|spot)\b"
    r"|\bi\scan['’]?t\shelp\s(?:but|smiling|laughing|noticing|wondering|feeling)\b",
    re.IGNORECASE,
)
_INFINITIVE = re.compile(r"\bzu\s\w+n$")  # German: "nicht in der Lage, Personen zu benennen"
_APOLOGY = re.compile(
    r"""^(?:oh,?\s)?(?:(?:i['’]?\s?a?m|we['’]?\s?a?re)\s(?:\w+\s)?sorry\b|sorry\b(?!-|\sis\b)|my\sapologies\b
      |apologies$|i\sapologi
      |es\stut\smir|tut\smir|entschuldig|(?:je\ssuis\s)?désolé|je\sregrette|lo\s(?:siento|lamento)|perdon|disculp
      |mi\sdispiace|spiacente|scus|desculp|lamento|sinto\smuito|het\sspijt|извин|прост|прошу\sпрощ|przepraszam|przykro
      |üzgün|(?:很|非常|十分|实在)?(?:抱歉|对不起)|申し訳|恐れ入り|すみません|ごめん|죄송|미안|عذر|آسف|मुझे\sखेद
      |क्षमा)""",
    re.VERBOSE | re.IGNORECASE,
)
_QUOTED = re.compile(r"[\"“„«「『][^\"”“»」』]{2,}[\"”“»」』]|(?<!\w)'[^']{2,}'(?!\w)")
_WORD = re.compile(r"[\w'’-]+")
_IDEOGRAPH = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]")


def is_refusal(text: str) -> bool:
    """Whether a text refuses to describe its image, and describes nothing of it all the same.

    >>> is_refusal("I'm sorry, but I can't help with that."), is_refusal("Lo siento, no puedo ver la imagen.")
    (True, True)
    >>> is_refusal("Sorry! We're closed, reads the sign."), is_refusal("I can't name him, but he wears a blue coat.")
    (False, False)
    """
    outside = _QUOTED.sub(" what is quoted there ", text[:_LOOKED_AT].strip().strip("*_#> "))
    clauses = [part.strip() for part in _CLAUSES.split(outside) if part.strip()]
    refused, others = False, 0.0
    apologised = bool(clauses and _APOLOGY.search(clauses[0]))
    for whole in clauses:
        clause = whole[:_LONGEST_CLAUSE]
        denies = _NEGATED.search(clause) and not _SEES.search(clause)
        of_writer = denies and (apologised or _OF_THE_WRITER.search(clause))
        if of_writer or _AROUND.search(clause) or _APOLOGY.search(clause) or _REFUSES.search(clause):
            refused = True
        elif not (refused and _INFINITIVE.search(clause)):
            others += _words(whole)
    return refused and others <= _MOST_OTHER_WORDS


def _words(clause: str) -> float:
    ideographs = len(_IDEOGRAPH.findall(clause))
    return len(_WORD.findall(_IDEOGRAPH.sub(" ", clause))) + ideographs / 3
