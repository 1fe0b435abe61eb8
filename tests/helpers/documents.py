"""The documents that users read, and the Python in them."""

import re

from astra_gym.experiments import publish
from astra_gym.ssl_core.utils.provenance import ROOT

README = ROOT / "README.md"
PAGES = {page: page.read_text(encoding="utf-8") for page in publish.pages(README)}
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", "\n".join(PAGES.values()), re.DOTALL | re.MULTILINE)
CODE = dict.fromkeys(text for language, text in BLOCKS if language == "python")
PYTHON = [text for text in CODE if "(RewardTerm)" not in text]
[TERM] = [text for text in CODE if "(RewardTerm)" in text]
