"""The README's Python, run as it stands there."""

import re
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def test_the_readme_s_python_runs():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    names = {"pairs": [("Who lit the lamp?", "Ada lit the lamp.")]}
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)
    assert len(blocks) >= 3 and len(names["out"].attentions) == 6
