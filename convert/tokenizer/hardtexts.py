"""Texts on which tokenizers differ: what splits, merges and falls back in unusual ways. All are written for this."""

from __future__ import annotations

from typing import Final

# A sentence or two in many scripts: "Water is life; it falls from the sky in 2024." and the like, freely.
SCRIPTS: Final = {
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

EMOJI: Final = (
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

COMBINING: Final = (
    "e\u0301 é e\u0301\u0327",
    "Z\u0351\u036b\u0343a\u0300\u0301\u0302l\u0334g\u0321o\u0489",
    "\u0301 starts with a mark",
    "a\u200db a\u200cb \u200eleft \u200fright \u2060joiner",
    "ﬁ ﬂ ﬀ Ǆ ŉ ℃ Å Å",
    "\ufeffbyte order mark \ufeff inside",
)

SPACES: Final = (
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

NUMBERS: Final = (
    *("1234567890"[:n] for n in range(1, 11)),
    "3 33 333 3333 33333 333333 3333333 33333333",
    "3.3 3..3 3...3 1,234,567.89 1e-10 0x1F 1_000",
    "a1b22c333d4444",
    "٣٤٥ ४५६ ๑๒๓ ①②③ ½¾ ²³ Ⅳ 一二三",
    "2024-02-29T23:59:60Z +1 (555) 010-9999 192.168.0.1",
    "100%50€ $3.50 -7 °C",
    "\u00b2x \u00b9\u00b2\u00b3",
)

CODE: Final = (
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

CONTRACTIONS: Final = (
    "I'm you're he's she'd we'll they've don't",
    "I'M YOU'RE HE'S SHE'D WE'LL THEY'VE DON'T",
    "'s 't 're 've 'm 'll 'd 'S 'Re",
    "'x ' 'sx 'rex ''s 's's",
    "it’s l’été",
    "rock'n'roll 'tis o'clock",
    "ſ's 'ſ K'k",
)

CONTROLS: Final = (
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
LOOKALIKES: Final = (
    "<s> </s> <unk> <pad> <0x0A> <|x|> [INST] [/INST] [PAD5]",
    "<|im_star <|im_start |> <| im_start|>",
    "▁ ▁▁ a▁b ▁word",
    "Ġ Ġword Ċ ĉ č Ā ń",
)

LONG: Final = (
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


def hard_texts() -> list[str]:
    """All of them, without the long ones: some 9,000 characters."""
    return [
        *SCRIPTS.values(),
        *EMOJI,
        *COMBINING,
        *SPACES,
        *NUMBERS,
        *CODE,
        *CONTRACTIONS,
        *CONTROLS,
        *LOOKALIKES,
    ]
