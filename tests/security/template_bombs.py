"""Renders one hostile chat template after another, each in a forked child, and prints what became of it as JSON.

`python template_bombs.py FOLDER SHARE`: SHARE makes the limits on time smaller, for a quick run.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from core import limits
from core.data.records import Message
from core.data.rendering import render
from core.errors import StudioError

CANARY = "canary"
BOMBS = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
    "{% endfor %}{% endfor %}{% endfor %}",
    "a giant power": "{{ 9 ** (9 ** 9) }}",
    "a giant text": "{{ 'A' * 10 ** 10 }}",
    "a text of almost 1 GB": "{{ 'A' * 10 ** 9 }}",
    "a text that doubles": "{% set n = namespace(x='ab') %}"
    "{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "a giant list": "{{ [1] * 10 ** 10 }}",
    "many texts": "{% for i in range(99999) %}{{ 'x' * 99999 }}{% endfor %}",
    "padding by format": "{{ '%9999999999d' % 1 }}",
    "padding by method": "{{ 'x'.center(10 ** 10) }}",
    "a long range": "{% for i in range(10 ** 9) %}x{% endfor %}",
    "endless recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "deep brackets": "{{ " + "(" * 50_000 + ")" * 50_000 + " }}",
    "subclasses": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ cycler.__init__.__globals__.os.system('touch " + CANARY + "') }}",
    "raise_exception's globals": "{{ raise_exception.__globals__['os'].system('touch " + CANARY + "') }}",
    "a filter's globals": "{{ ''|attr('__class__')|attr('mro') }}{{ self.__init__.__globals__ }}",
    "import": "{% import 'os' as os %}{{ os.system('touch " + CANARY + "') }}",
    "include": "{% include '/etc/passwd' %}",
}


def attempt(tokenizer: PreTrainedTokenizerFast, template: str) -> None:
    """Render, and leave with 0 after an error with advice; anything else ends otherwise."""
    tokenizer.chat_template = template
    try:
        texts = render([[Message("user", "hello")]], tokenizer, add_generation_prompt=True)
    except StudioError as error:
        os._exit(0 if error.what and error.fix else 3)
    os._exit(4 if any(texts) else 0)  # harmless nothing is fine as well


def main() -> None:
    """Fork for each bomb and report its exit, its seconds of the processor and its memory."""
    os.chdir(Path(sys.argv[1]))
    limits.CPU_S *= float(sys.argv[2])
    limits.KILLED_AFTER_S *= float(sys.argv[2])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    for name, template in BOMBS.items():
        child = os.fork()
        if child == 0:
            attempt(tokenizer, template)
        _, status, usage = os.wait4(child, 0)
        cpu_s, peak_mib = usage.ru_utime + usage.ru_stime, usage.ru_maxrss >> 10
        line = {"name": name, "exit": os.waitstatus_to_exitcode(status), "cpu_s": cpu_s, "peak_mib": peak_mib}
        sys.stdout.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
