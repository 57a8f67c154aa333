"""Hard texts for tokenizers, all written or generated here: what splits, merges and falls back in unusual ways."""

from __future__ import annotations

import random
import unicodedata

# A sentence or two in many scripts: "Water is life; it falls from the sky in 2024." and the like, freely.
SCRIPTS = {
    "english": "The quick brown fox jumps over the lazy dog; it wasn't amused, and they've told us so.",
    "german": "Falsches Üben von Xylophonmusik quält jeden größeren Zwerg – 12,5 % täglich!",
    "french": "L'été dernier, où étaient-ils ? « Chez nous », répondit-elle, à 20 h 30.",
    "spanish": "¿Qué hora es? ¡Son las 7! El pingüino añora la montaña.",
    "polish": "Zażółć gęślą jaźń, źdźbło i łódź.",
    "czech": "Příliš žluťoučký kůň úpěl ďábelské ódy.",
    "turkish": "Pijamalı hasta yağız şoföre çabucak güvendi. İstanbul'da ışık.",
    "vietnamese": "Trời mưa rất to, nhưng chúng tôi vẫn đi học đúng giờ.",
    "icelandic": "Kæmi ný öxi hér, ykist þjófum nú bæði víl og ádrepa.",
    "greek": "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία. Ποιος είσαι;",
    "russian": "Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "ukrainian": "Чуєш їх, доцю, га? Кумедна ж ти, прощайся без ґольфів!",
    "bulgarian": "нещо на български, още 3 думи",
    "armenian": "Բարեւ, ինչպե՞ս ես։",
    "georgian": "გამარჯობა, როგორ ხარ?",
    "hebrew": "שלום עולם, מה שלומך היום? 15 ש\u05c1ָל\u05d5\u05b9ם",
    "arabic": "مرحبا بالعالم، كيف حالك؟ ١٢٣٤٥ مُحَمَّد",
    "persian": "می‌خواهم یک کتاب بخرم ۱۲۳۴",
    "urdu": "یہ ایک جملہ ہے۔",
    "hindi": "नमस्ते दुनिया, क्षत्रिय ज्ञान ४५६ हिन्दी",
    "bengali": "আমি বাংলায় গান গাই।",
    "tamil": "தமிழ் மொழி மிகவும் பழமையானது.",
    "telugu": "తెలుగు భాష",
    "thai": "สวัสดีชาวโลก ฉันชื่อสมชาย ๑๒๓",
    "lao": "ສະບາຍດີ",
    "khmer": "កាន់តែពិសេសអាច សួស្តី",
    "burmese": "မင်္ဂလာပါ",
    "tibetan": "བཀྲ་ཤིས་བདེ་ལེགས།",
    "amharic": "ሰላም ልዑል",
    "chinese": "今天天气很好，我们去公园散步吧。共1314151天～",
    "traditional": "繁體中文：龍龜鬱灣。",
    "japanese": "吾輩は猫である。名前はまだ無い。カタカナ・ｶﾀｶﾅ 〆切",
    "korean": "안녕하세요 세계! 한국어 텍스트 ㅋㅋㅋ",
    "jamo": "\u1112\u1161\u11ab\u1100\u1173\u11af",
    "cherokee": "ᎣᏏᏲ ᏅᏩᏛᎢ",
    "cuneiform": "𒀭𒈾𒁀𒀸",
    "gothic": "𐌼𐌰𐌲 𐌲𐌻𐌴𐍃",
    "math": "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝟘𝟙𝟚 ∀x∈ℝ: ⌈x⌉ = −⌊−x⌋, α∧¬β ≤ ∞ ½ ² ³ Ⅷ ④",
    "braille": "⠓⠑⠇⠇⠕",
    "mixed": "我想在apple工作, потом в Köln, そしてSão Paulo.",
}

EMOJI = (
    "😀",
    "👨‍👩‍👧‍👦 family",
    "🏳️‍🌈🏴‍☠️",
    "👍🏽👍🏿",
    "🇩🇪🇯🇵🇺",
    "❤️ vs ❤ vs ♥",
    "🦙🦙 llama",
    "😶‍🌫️ (several joined)",
    "1️⃣2️⃣#️⃣",
    "a😀b 😀 c",
)

COMBINING = (
    "e\u0301 é e\u0301\u0327",
    "Z\u0351\u036b\u0343a\u0300\u0301\u0302l\u0334g\u0321o\u0489",
    "\u0301 starts with a mark",
    "a\u200db a\u200cb \u200eleft \u200fright \u2060joiner",
    "ﬁ ﬂ ﬀ Ǆ ŉ ℃ Å Å",
    "\ufeffbyte order mark \ufeff inside",
)

SPACES = (
    " ",
    "  ",
    "   ",
    " " * 16,
    " " * 17 + "x",
    "\t",
    "\t\t\t",
    " \t \t",
    "\n",
    "\n\n",
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n",
    "\r\n\r\n",
    "\r",
    "a\r\nb\rc\n",
    " leading",
    "  leading",
    "trailing ",
    "trailing   ",
    "a  b   c    d     e",
    "line\n    indented\n\tdeeper\n",
    "no\u00a0break\u00a0space \u00a0 both",
    "\u2003em \u2009thin\u3000wide\u2028line\u2029paragraph",
    "x\u000bvertical\u000cfeed",
    "x\u0085next",
    "! \n ?",
    "...   \n",
    "word\n\n\n   word",
)

NUMBERS = (
    *("1234567890"[:n] for n in range(1, 11)),
    "3 33 333 3333 33333 333333 3333333 33333333",
    "3.3 3..3 3...3 1,234,567.89 1e-10 0x1F 1_000",
    "a1b22c333d4444",
    "٣٤٥ ४५६ ๑๒๓ ①②③ ½¾ ²³ Ⅳ 一二三",
    "2024-02-29T23:59:60Z +1 (555) 010-9999 192.168.0.1",
    "100%50€ $3.50 -7 °C",
    "\u00b2x \u00b9\u00b2\u00b3",
)

CODE = (
    "def f(x: int) -> str:\n    return f'{x!r:>10}'  # it's\n",
    "for(int i=0;i<10;++i){a[i]&=~(1u<<i);}\n",
    '{"key": [1, 2.5, null, true], "nested": {"a": "\\u00e9"}}',
    "<div class='a b'>&nbsp;&lt;</div>",
    "SELECT * FROM t WHERE a='it''s' AND b<>'';",
    "https://example.org/a_b-c?d=e%20f&g=#h",
    "C:\\path\\to\\file.txt $HOME/.config ~user",
    "camelCaseWord snake_case_word CONSTANT_CASE kebab-case HTTPServer",
    "------======= ***** ///// ````` '''''' \"\"\"\"\"\" ......!!!!!!????",
    "a->b::c<d>(e)[f]{g}|h^i~j`k@l#m$n%o&p*q+r=s",
    "\\begin{align}x^2_{i}\\\\\\end{align}",
    "if (a) {\n\t\treturn b;\n\t}\n\n\n}",
)

CONTRACTIONS = (
    "I'm you're he's she'd we'll they've don't",
    "I'M YOU'RE HE'S SHE'D WE'LL THEY'VE DON'T",
    "'s 't 're 've 'm 'll 'd 'S 'Re",
    "'x ' 'sx 'rex ''s 's's",
    "it’s l’été",
    "rock'n'roll 'tis o'clock",
    "ſ's 'ſ K'k",
)

CONTROLS = (
    "\x00",
    "a\x00b",
    "\x01\x02\x1b[31mred\x1b[0m\x7f",
    "\x80\x9f",
    "\ufffd replaced \ufffd",
    "\ufffe\uffff",
    "\U0010ffff private \ue000",
    "\U000e0041 tag",
)

# Tokens that look special but are plain text, and pieces of the vocabulary's own alphabets.
LOOKALIKES = (
    "<s> </s> <unk> <pad> <0x0A> <|x|> [INST] [/INST] [PAD5]",
    "<|im_star <|im_start |> <| im_start|>",
    "▁ ▁▁ a▁b ▁word",
    "Ġ Ġword Ċ ĉ č Ā ń",
)

LONG = (
    "a" * 1000,
    "ab" * 500,
    " a" * 300,
    "word " * 200,
    "漢" * 300,
    "😀" * 100,
    "-" * 257,
    "\n" * 129,
    " " * 300 + "end",
    "1" * 300,
)


def random_texts(count: int, seed: int = 0) -> list[str]:
    """Texts of characters from all over Unicode and from the awkward corners, in changing mixtures."""
    rng = random.Random(seed)
    assigned = [
        chr(code) for code in range(0x20, 0x30000, 7) if unicodedata.category(chr(code)) not in ("Cs", "Cn", "Co")
    ]
    corners = list(" \n\t\r'`\"sSmtdrevlL09.,;-_/\\ÅéßИ漢か한ا한\u0301\u200d😀🏽²½Ⅷ\u00a0\u3000▁Ġ")
    phrases = "the a I'm we'll 2024 def return 東京 мир été straße  \n\n 3.14 <b> {} // ;"
    texts = []
    for _ in range(count):
        pools = rng.choices([assigned, corners, phrases.split(" ")], weights=[1, 3, 2], k=rng.randint(1, 3))
        texts.append(
            "".join(rng.choice(rng.choice(pools)) + rng.choice(["", "", " "]) for _ in range(rng.randint(1, 60)))
        )
    return texts


def plain_texts() -> list[str]:
    """Every text above and some random ones; no special tokens but for lookalikes."""
    return [
        "",
        *SCRIPTS.values(),
        *EMOJI,
        *COMBINING,
        *SPACES,
        *NUMBERS,
        *CODE,
        *CONTRACTIONS,
        *CONTROLS,
        *LOOKALIKES,
        *LONG,
        *random_texts(200),
    ]


def texts_with(tokens: list[str]) -> list[str]:
    """Texts with the given special tokens at the start, inside, doubled, and glued to words."""
    texts = []
    for token in tokens:
        texts += [
            token,
            f"{token}Hello",
            f"Hello{token}",
            f"Hello {token} world",
            f"{token}{token}",
            f" {token} \n{token}\n",
        ]
    if tokens:
        joined = "\n".join(f"{token}user\nIt's {i}  ok" for i, token in enumerate(tokens))
        texts += [joined, "".join(tokens), "x".join(tokens)]
    return texts
