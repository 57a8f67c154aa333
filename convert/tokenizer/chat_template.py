"""The chat templates of a checkpoint as GGUF states them."""

from __future__ import annotations

from llmkit.convert.tokenizer.files import TokenizerFiles
from llmkit.convert.tokenizer.vocabulary import is_unicode
from llmkit.errors import FormatError
from llmkit.formats.chattemplates import read_chat_templates
from llmkit.formats.gguf import Value, ValueType, array, string


def chat_template_metadata(files: TokenizerFiles, notes: list[str]) -> dict[str, Value]:
    """`tokenizer.chat_template`, `tokenizer.chat_template.<name>` and the list of names; {} if there is none.

    Raises FormatError for a template file that is not UTF-8 or too large. Templates are not run here.
    """
    templates = read_chat_templates(files.folder, files.config, notes)
    found: dict[str, Value] = {}
    for name, text in templates.items():
        if not is_unicode(text):
            raise FormatError(files.folder, f"chat template {name!r} is not valid Unicode")
        found["tokenizer.chat_template" if name == "default" else f"tokenizer.chat_template.{name}"] = string(text)
    named = [name for name in templates if name != "default"]
    if named:
        found["tokenizer.chat_templates"] = array(ValueType.STRING, named)
    return found
